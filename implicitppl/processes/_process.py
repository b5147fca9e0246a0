"""The contract of a distribution over functions, and what follows for any: sums and multiples.

NumPyro sees the values at finitely many points, `process(x)`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution

from implicitppl._core.points import as_points
from implicitppl.processes._function_values import FunctionValues


class Process(eqx.Module):
    """A distribution over functions: `process(x)` is the NumPyro distribution of f(x).

    Independent processes add, `p1 + p2`, and scale, `2.0 * p`.
    """

    @property
    @abstractmethod
    def has_weight_space(self) -> bool:
        """Whether a key alone determines a function: `draw` then needs no memory."""

    @abstractmethod
    def __call__(self, x: ArrayLike, *args: Any, **kwargs: Any) -> Distribution:
        """Return the distribution of the function's values at `x`."""

    @abstractmethod
    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> Callable[[ArrayLike], Array]:
        """Return S functions that stay the same over several calls: x -> (S, N) or (S, N, P)."""

    def divergence_from(self, prior: "Process") -> Float[Array, ""] | None:
        """Return KL[self || prior] of whole functions, in nats, where it is known; else None.

        It is finite where the two differ through finitely many values or weights only, as of a
        variational posterior and its prior. Losses and reports ask for it before they compare
        values at measurement points.
        """
        del prior
        return None

    def sample(
        self, key: PRNGKeyArray, x: ArrayLike, num_samples: int = 1
    ) -> Float[Array, "S N *P"]:
        """Return values of `num_samples` functions at `x`, (S, N) or (S, N, P)."""
        return self(x).sample(key, (num_samples,))

    def __add__(self, other: Any) -> "Process":
        if not isinstance(other, Process):
            return NotImplemented
        return SumProcess(self, other)

    def __radd__(self, other: Any) -> "Process":
        # `sum` of a list of processes begins with the number 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, other: Any) -> "Process":
        if not eqx.is_array_like(other) or jnp.shape(other) != ():
            return NotImplemented
        return ScaledProcess(self, jnp.asarray(other, float))

    def __rmul__(self, other: Any) -> "Process":
        return self * other


class SumDraws(eqx.Module):
    """Functions that are sums of functions drawn from independent processes."""

    first: Callable[[ArrayLike], Array]
    second: Callable[[ArrayLike], Array]

    def __call__(self, x: ArrayLike) -> Array:
        """Return the values of all functions at `x`, (N, D) or (N,)."""
        first, second = self.first(x), self.second(x)
        if first.shape != second.shape:
            raise ValueError(
                "processes that are added must have values of one shape; "
                f"got {first.shape[1:]} and {second.shape[1:]}."
            )
        return first + second


class ScaledDraws(eqx.Module):
    """Functions that are multiples of functions drawn from a process."""

    draws: Callable[[ArrayLike], Array]
    scale: Float[Array, ""]

    def __call__(self, x: ArrayLike) -> Array:
        """Return the values of all functions at `x`, (N, D) or (N,)."""
        values = self.draws(x)
        return self.scale.astype(values.dtype) * values


class SumProcess(Process):
    """f_1 + f_2 of independent processes, one of which has no density; written `p1 + p2`."""

    first: Process
    second: Process

    @property
    def has_weight_space(self) -> bool:
        """Whether both processes have one."""
        return self.first.has_weight_space and self.second.has_weight_space

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> SumDraws:
        """Return S functions, each the sum of one function of both."""
        return draw_sum(self.first, self.second, key, num_samples)

    def __call__(self, x: ArrayLike) -> FunctionValues:
        """Return the distribution of f(x), which has no density."""
        return FunctionValues(self, as_points("x", x))


class ScaledProcess(Process):
    """c f for a number c and a process without a density; written `c * p`."""

    process: Process
    scale: Float[Array, ""]

    @property
    def has_weight_space(self) -> bool:
        """Whether the process has one."""
        return self.process.has_weight_space

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> ScaledDraws:
        """Return S functions, multiples of those that the key means."""
        return ScaledDraws(self.process.draw(key, num_samples), self.scale)

    def __call__(self, x: ArrayLike) -> FunctionValues:
        """Return the distribution of f(x), which has no density."""
        return FunctionValues(self, as_points("x", x))


def draw_sum(first: Process, second: Process, key: PRNGKeyArray, num_samples: int) -> SumDraws:
    """Return S functions, each the sum of one function of both."""
    keys = jax.random.split(key)
    return SumDraws(first.draw(keys[0], num_samples), second.draw(keys[1], num_samples))
