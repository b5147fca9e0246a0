"""A distribution over functions, of which NumPyro sees the values at finitely many points.

A Gaussian one says its mean and covariance; how it is evaluated with noise is the same for a prior
and for a posterior by any method.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution

from implicitppl.processes._gaussian_draws import GaussianDraws
from implicitppl.processes._points import as_noise_variance, as_observed, as_points
from implicitppl.processes._values import GaussianProcessValues


class Process(eqx.Module):
    """A distribution over functions: `process(x)` is the NumPyro distribution of f(x)."""

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


class AbstractGaussianProcess(Process):
    """A process of which every set of values is normal; a subclass says mean and covariance."""

    @abstractmethod
    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""

    @abstractmethod
    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,), without an N x N matrix."""

    @abstractmethod
    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> GaussianDraws:
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
        return GaussianProcessValues(self, points, noise, as_observed(observed, size))
