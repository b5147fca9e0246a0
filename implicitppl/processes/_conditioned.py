"""Any Gaussian process given its values at some points, exactly.

    m(x*) + k(x*, x) K^-1 (f - m(x)),   k(x*, x*') - k(x*, x) K^-1 k(x, x*'),   K = k(x, x)

from the covariance alone. A `GaussianProcess` has `condition`, which keeps more.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.cholesky import safe_cholesky
from implicitppl._core.points import as_points
from implicitppl.processes._base import AbstractGaussianProcess
from implicitppl.processes._gaussian_process import GaussianProcess


class Conditioned(AbstractGaussianProcess):
    """A Gaussian process given its values at points; `given_values` makes it."""

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
) -> AbstractGaussianProcess:
    """Return a Gaussian process given its values at N points, at O(N^3)."""
    if isinstance(process, GaussianProcess):
        return process.condition(x, values, 0.0)
    factor = safe_cholesky(process.covariance(x)).factor
    weights = cho_solve((factor, True), values - process.mean_at(x))
    return Conditioned(process, x, factor, weights)
