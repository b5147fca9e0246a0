"""Processes whose values are normal: moments, sums, multiples, and given some of their values.

A subclass says mean and covariance; how it is evaluated with noise is the same for a prior and for
a posterior by any method. Given its values at some points a process is, from the covariance alone,

    m(x*) + k(x*, x) K^-1 (f - m(x)),   k(x*, x*') - k(x*, x) K^-1 k(x, x*'),   K = k(x, x).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.cholesky import safe_cholesky
from implicitppl._core.points import as_noise_variance, as_observed, as_points
from implicitppl.processes._gaussian.draws import GaussianDraws
from implicitppl.processes._gaussian.values import GaussianProcessValues
from implicitppl.processes._process import Process, ScaledDraws, ScaledProcess, SumDraws, draw_sum


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

    def given(
        self, x: Float[Array, "N D"], values: Float[Array, " N"]
    ) -> "AbstractGaussianProcess":
        """Return the process given its values at N points, exactly, at O(N^3)."""
        return given_values(self, x, values)

    def __add__(self, other: Any) -> Process:
        """Return the sum of independent processes, which is Gaussian where both are."""
        if isinstance(other, AbstractGaussianProcess):
            return GaussianSum(self, other)
        return super().__add__(other)

    def __mul__(self, other: Any) -> Process:
        """Return a multiple of the process, which is Gaussian too."""
        scaled = super().__mul__(other)
        if not isinstance(scaled, ScaledProcess):
            return scaled
        return ScaledGaussian(self, scaled.scale)

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
        return draw_sum(self.first, self.second, key, num_samples)

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


class Conditioned(AbstractGaussianProcess):
    """A Gaussian process given its values at points; `process.given` makes it."""

    process: AbstractGaussianProcess
    x: Float[Array, "N D"]
    factor: Float[Array, "N N"]
    weights: Float[Array, " N"]

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        points = as_points("x", x)
        cross = self.process.covariance(points, self.x)
        return self.process.mean_at(points) + jnp.matmul(cross, self.weights, precision="highest")

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        points = as_points("x", x)
        explained = jnp.sum(jnp.square(self._whitened(points)), axis=0)
        # A variance below zero is rounding: the values determine f there to all digits.
        return self.mean_at(points), jnp.maximum(self.process.moments(points)[1] - explained, 0)

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        left = self._whitened(as_points("x", x))
        right = left if y is None else self._whitened(as_points("y", y))
        return self.process.covariance(x, y) - jnp.matmul(left.T, right, precision="highest")

    def _whitened(self, x: Float[Array, "M D"]) -> Float[Array, "N M"]:
        return solve_triangular(self.factor, self.process.covariance(self.x, x), lower=True)


@eqx.filter_jit
def given_values(
    process: AbstractGaussianProcess, x: Float[Array, "N D"], values: Float[Array, " N"]
) -> Conditioned:
    """Return a Gaussian process given its values at N points, at O(N^3)."""
    factor = safe_cholesky(process.covariance(x)).factor
    weights = cho_solve((factor, True), values - process.mean_at(x))
    return Conditioned(process, x, factor, weights)
