"""A distribution over functions, of which NumPyro sees the values at finitely many points.

A Gaussian one says its mean and covariance; how it is evaluated with noise is the same for a prior
and for a posterior by any method.
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

from implicitppl._core.points import as_noise_variance, as_observed, as_points
from implicitppl.processes._function_values import FunctionValues
from implicitppl.processes._gaussian_draws import GaussianDraws
from implicitppl.processes._values import GaussianProcessValues


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

    def sample(
        self, key: PRNGKeyArray, x: ArrayLike, num_samples: int = 1
    ) -> Float[Array, "S N *P"]:
        """Return values of `num_samples` functions at `x`, (S, N) or (S, N, P)."""
        return self(x).sample(key, (num_samples,))

    def __add__(self, other: Any) -> "Process":
        if not isinstance(other, Process):
            return NotImplemented
        if isinstance(self, AbstractGaussianProcess) and isinstance(other, AbstractGaussianProcess):
            return GaussianSum(self, other)
        return SumProcess(self, other)

    def __radd__(self, other: Any) -> "Process":
        # `sum` of a list of processes begins with the number 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, other: Any) -> "Process":
        if not eqx.is_array_like(other) or jnp.shape(other) != ():
            return NotImplemented
        scale = jnp.asarray(other, float)
        if isinstance(self, AbstractGaussianProcess):
            return ScaledGaussian(self, scale)
        return ScaledProcess(self, scale)

    def __rmul__(self, other: Any) -> "Process":
        return self * other


class AbstractGaussianProcess(Process):
    """A process of which every set of values is normal; a subclass says mean and covariance."""

    @property
    def has_weight_space(self) -> bool:
        """False, unless a subclass overrides it and `draw`; `process(x)` then samples by `draw`."""
        return False

    @abstractmethod
    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""

    @abstractmethod
    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,), without an N x N matrix."""

    @abstractmethod
    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> Callable[[ArrayLike], Array]:
        """Return S functions; the same key and order of points give the same functions.

        There is no weight space to draw from: the functions are drawn point by point, and the
        object that is returned remembers, in Python, the points it was asked for. Make it inside
        of the `jit`, `vmap` or `grad` that it is called under.

        Args:
            key: random key.
            num_samples: S.

        Returns:
            A callable from points (N, D) or (N,) to values (S, N). Cost of a call with M new
            points after n others: O(n^2 M + M^3).
        """
        return GaussianDraws(self, key, num_samples)

    def __call__(
        self,
        x: ArrayLike,
        noise_scale: ArrayLike | None = None,
        *,
        observed: ArrayLike | None = None,
    ) -> GaussianProcessValues:
        """Return the distribution of f(x), or of f(x) + noise.

        Args:
            x: (N, D) or (N,) points.
            noise_scale: standard deviation of independent noise, a number or (N,); None for f.
            observed: (N,) booleans; `log_prob` ignores the others, whatever their values.

        Raises:
            ValueError: if shapes do not fit, or known values are not finite.
        """
        points = as_points("x", x)
        size = points.shape[0]
        noise = as_noise_variance(noise_scale, size, points.dtype)
        mask, is_noisy = as_observed(observed, size), noise_scale is not None
        return GaussianProcessValues(self, points, noise, mask, is_noisy=is_noisy)


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
        return _draw_sum(self.first, self.second, key, num_samples)

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


class GaussianSum(AbstractGaussianProcess):
    """f_1 + f_2 of independent Gaussian processes; written `p1 + p2`. Moments are exact."""

    first: AbstractGaussianProcess
    second: AbstractGaussianProcess

    @property
    def has_weight_space(self) -> bool:
        """Whether both processes have one."""
        return self.first.has_weight_space and self.second.has_weight_space

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> SumDraws:
        """Return S functions, each the sum of one function of both."""
        return _draw_sum(self.first, self.second, key, num_samples)

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        return self.first.mean_at(x) + self.second.mean_at(x)

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        first, second = self.first.moments(x), self.second.moments(x)
        return first[0] + second[0], first[1] + second[1]

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        return self.first.covariance(x, y) + self.second.covariance(x, y)


class ScaledGaussian(AbstractGaussianProcess):
    """c f for a number c and a Gaussian process; written `c * p`. Moments are exact."""

    process: AbstractGaussianProcess
    scale: Float[Array, ""]

    @property
    def has_weight_space(self) -> bool:
        """Whether the process has one."""
        return self.process.has_weight_space

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> ScaledDraws:
        """Return S functions, multiples of those that the key means."""
        return ScaledDraws(self.process.draw(key, num_samples), self.scale)

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        mean = self.process.mean_at(x)
        return self.scale.astype(mean.dtype) * mean

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        mean, variance = self.process.moments(x)
        scale = self.scale.astype(mean.dtype)
        return scale * mean, scale * scale * variance

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        covariance = self.process.covariance(x, y)
        scale = self.scale.astype(covariance.dtype)
        return scale * scale * covariance


def _draw_sum(first: Process, second: Process, key: PRNGKeyArray, num_samples: int) -> SumDraws:
    keys = jax.random.split(key)
    return SumDraws(first.draw(keys[0], num_samples), second.draw(keys[1], num_samples))
