"""What a process accepts as inputs, outputs and noise, checked once at the boundary.

Inputs are N points of D coordinates, (N, D); an array (N,) is N points of one coordinate. Values
that are known while nothing is traced must be finite; traced ones are taken as they are.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from implicitppl._core.checks import as_floating, check_finite, is_known


def as_points(name: str, x: ArrayLike) -> Float[Array, "N D"]:
    """Return inputs as (N, D).

    Raises:
        ValueError: if `x` has more than two dimensions, no rows, or values that are not finite.
    """
    points = as_floating(x)
    if points.ndim == 1:
        points = points[:, None]
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"`{name}` must be (N, D) or (N,) points; got shape {points.shape}.")
    check_finite(name, points)
    return points


def as_values(
    name: str, y: ArrayLike, size: int, observed: Bool[Array, " N"] | None
) -> Float[Array, " N"]:
    """Return outputs as (N,), with 0 where they are not observed.

    Raises:
        ValueError: if the shape is not `(size,)`, or an observed value is not finite.
    """
    values = as_floating(y)
    if values.shape != (size,):
        raise ValueError(f"`{name}` must be ({size},), one for each point; got {values.shape}.")
    if observed is not None:
        values = jnp.where(observed, values, 0)
    check_finite(name, values, " Pass `observed=` to say which outputs are missing.")
    return values


def check_points(
    x: ArrayLike, y: ArrayLike, observed: ArrayLike | None = None
) -> tuple[Float[Array, "N D"], Float[Array, " N"], Bool[Array, " N"] | None]:
    """Return inputs (N, D), outputs (N,) and the mask of observed ones, or raise `ValueError`."""
    points = as_points("x", x)
    mask = as_observed(observed, points.shape[0])
    return points, as_values("y", y, points.shape[0], mask).astype(points.dtype), mask


def as_observed(observed: ArrayLike | None, size: int) -> Bool[Array, " N"] | None:
    """Return the mask of observed outputs, or None where all are.

    Raises:
        ValueError: if it is not `size` booleans.
    """
    if observed is None:
        return None
    mask = jnp.asarray(observed)
    if mask.shape != (size,) or mask.dtype != bool:
        raise ValueError(
            f"`observed` must be {size} booleans, one for each point; "
            f"got {mask.dtype} of shape {mask.shape}."
        )
    return mask


def as_noise_variance(
    noise_scale: ArrayLike | None, size: int, dtype: jnp.dtype
) -> Float[Array, " N"]:
    """Return the noise variance of every point; zeros without noise.

    Raises:
        ValueError: if `noise_scale` is negative, not finite, or neither a number nor (size,).
    """
    if noise_scale is None:
        return jnp.zeros((size,), dtype)
    scale = jnp.asarray(noise_scale, dtype)
    if scale.shape not in ((), (size,)):
        raise ValueError(
            f"`noise_scale` must be a number or ({size},), one for each point; "
            f"got shape {scale.shape}."
        )
    if is_known(scale) and not bool(np.all(np.asarray(scale) >= 0)):
        raise ValueError(
            f"`noise_scale` is a standard deviation and must be non-negative; got {noise_scale}."
        )
    check_finite("noise_scale", scale)
    return jnp.broadcast_to(jnp.square(scale), (size,))


def check_width(x: Array, size: int) -> None:
    """Raise `ValueError` if points do not have `size` coordinates."""
    if x.shape[1] != size:
        raise ValueError(f"`x` must have {size} coordinates for this process; got {x.shape[1]}.")
