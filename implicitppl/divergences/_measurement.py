"""Where two processes are compared, besides the inputs of the data: measurement points.

A measurement set is any function `(key, x) -> (M, D)` of a key and of the inputs (N, D) that the
model uses; the points are drawn once for each step, for all particles. Test inputs have no place
here: they would leak into training.

Sun et al. (2019), arXiv 1903.05779, section 3.2.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_non_negative, check_positive
from implicitppl._core.points import as_points

HALF = 0.5


@runtime_checkable
class Measurement(Protocol):
    """Any function that returns measurement points."""

    def __call__(self, key: PRNGKeyArray, x: Float[Array, "N D"]) -> Float[Array, "M D"]:
        """Return M points from a key and the inputs of the model."""
        ...


class UniformBox(eqx.Module):
    """Points uniform in a box, each coordinate in its own range.

    Args:
        num_points: M.
        low, high: (D,) or numbers, the corners.

    Raises:
        ValueError: if a corner is not below the other, or `num_points` is not positive.

    With many coordinates a few points of a box lie nowhere near the data: prefer `DataNoise`.
    """

    num_points: int = eqx.field(static=True)
    low: Array
    high: Array

    def __init__(self, num_points: int, low: ArrayLike, high: ArrayLike):
        check_positive("num_points", num_points)
        self.num_points = num_points
        self.low, self.high = jnp.asarray(low, float), jnp.asarray(high, float)
        if not bool(jnp.all(self.low < self.high)):
            raise ValueError(f"`low` must be below `high`; got {low} and {high}.")

    @classmethod
    def around(cls, x: ArrayLike, num_points: int, widen: float = 0.5) -> "UniformBox":
        """Return the box of the inputs (N, D), `widen` of its width added on either side."""
        check_non_negative("widen", widen)
        points = as_points("x", x)
        low, high = jnp.min(points, axis=0), jnp.max(points, axis=0)
        # A coordinate that does not vary has no range: half a unit on either side.
        margin = jnp.where(high > low, widen * (high - low), HALF)
        return cls(num_points, low - margin, high + margin)

    def __call__(self, key: PRNGKeyArray, x: Float[Array, "N D"]) -> Float[Array, "M D"]:
        """Return points of the box."""
        unit = jax.random.uniform(key, (self.num_points, x.shape[1]), x.dtype)
        low, high = self.low.astype(x.dtype), self.high.astype(x.dtype)
        return low + (high - low) * unit


class DataNoise(eqx.Module):
    """Rows of the inputs, drawn with replacement, plus normal noise.

    Args:
        num_points: M.
        scale: standard deviation of the noise, (D,) or a number, in units of the inputs; None for
            half the standard deviation of each coordinate of `inputs`, or of the model's inputs
            (half a unit where these are one row, which would be compared alone).
        inputs: (N, D) rows to draw from; None for those that the model uses at the step.

    The default of `FunctionalELBO`: it stays near the data in any number of coordinates.
    """

    num_points: int = eqx.field(static=True)
    scale: Array | None
    inputs: Array | None

    def __init__(
        self, num_points: int, scale: ArrayLike | None = None, inputs: ArrayLike | None = None
    ):
        check_positive("num_points", num_points)
        if scale is not None:
            check_non_negative("scale", scale)
        self.num_points = num_points
        self.scale = None if scale is None else jnp.asarray(scale, float)
        self.inputs = None if inputs is None else as_points("inputs", inputs)

    @classmethod
    def from_lengthscale(
        cls, num_points: int, lengthscale: ArrayLike, inputs: ArrayLike | None = None
    ) -> "DataNoise":
        """Return noise whose density is the square of an RBF kernel: scale l / sqrt(2)."""
        return cls(num_points, jnp.asarray(lengthscale) / jnp.sqrt(2.0), inputs)

    def __call__(self, key: PRNGKeyArray, x: Float[Array, "N D"]) -> Float[Array, "M D"]:
        """Return noisy rows."""
        row_key, noise_key = jax.random.split(key)
        rows = x if self.inputs is None else self.inputs.astype(x.dtype)
        scale = _half_spread(rows) if self.scale is None else self.scale.astype(x.dtype)
        chosen = rows[jax.random.randint(row_key, (self.num_points,), 0, rows.shape[0])]
        return chosen + scale * jax.random.normal(noise_key, chosen.shape, x.dtype)


def _half_spread(rows: Float[Array, "N D"]) -> Float[Array, " D"]:
    """Return half the deviation of each coordinate, half a unit where no coordinate varies."""
    some = jnp.any(rows != rows[0])  # a rounded deviation of equal numbers is not always 0
    return HALF * jnp.where(some, jnp.std(rows, axis=0), 1.0)


class HeldInputs(eqx.Module):
    """The same points in every step: a grid, a pool of inputs without outputs, inducing inputs.

    Args:
        points: (M, D) or (M,).
    """

    points: Float[Array, "M D"]

    def __init__(self, points: ArrayLike):
        self.points = as_points("points", points)

    @property
    def num_points(self) -> int:
        """M."""
        return self.points.shape[0]

    def __call__(self, key: PRNGKeyArray, x: Float[Array, "N D"]) -> Float[Array, "M D"]:
        """Return the points."""
        return self.points.astype(x.dtype)


def measurement_points(
    measurement: Measurement | Callable[..., Any] | None, key: PRNGKeyArray, x: Float[Array, "N D"]
) -> Float[Array, "M D"]:
    """Return the points of any measurement set; none for None.

    Raises:
        ValueError: if they are not (M, D) with the model's D.
    """
    if measurement is None:
        return x[:0]
    points = jnp.asarray(measurement(key, x))
    if points.ndim != 2 or points.shape[1] != x.shape[1]:
        raise ValueError(
            f"`measurement` must return (M, {x.shape[1]}) points, as many coordinates as the "
            f"model's inputs have; got shape {points.shape}."
        )
    return points.astype(x.dtype)
