"""Linear functions of features with normal weights: Gaussian processes with a weight space.

    f(x) = phi(x) . w,   w ~ N(m, L L');    k(x, y) = phi(x) L L' phi(y)'

of rank p, the number of features. Draws are weights, so they stay the same functions over any
number of calls at O(p) a point.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_finite
from implicitppl._core.points import as_points
from implicitppl.processes._gaussian.base import AbstractGaussianProcess
from implicitppl.processes._parametric import Function, FunctionDraws


class FeatureProcess(AbstractGaussianProcess):
    """A Gaussian process of rank p: features with normal weights, learned or given.

    Args:
        features: `features(x)` returns (N, p) at points x (N, D); a module, which is learned with
            the rest, or a function.
        loc: (p,) means of the weights. Default 0, for features that say their number as `.size`.
        scale_tril: (p, p) lower triangular L with a positive diagonal. Default the identity.

    L is kept as its part below the diagonal and the logarithms of its diagonal, so that any step
    of an optimiser leaves it a factor.

    Mean, variance, covariance and draws are exact. At N > p points the values lie on a plane:
    `log_prob` is then that of the least jitter that works, and says nothing; compare in the space
    of weights, or give `noise_scale`.

    Raises:
        ValueError: if shapes do not fit, or the diagonal of `scale_tril` is not positive.

    Cost at N points: O(N p^2); a draw of S functions O(S p^2 + S N p).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.processes import FeatureProcess
        >>> def quadratic(x):
        ...     return jnp.concatenate([jnp.ones_like(x), x, x**2], axis=1)
        >>> process = FeatureProcess(quadratic, jnp.zeros(3), jnp.eye(3))
        >>> [float(v) for v in process(jnp.array([0.0, 1.0])).variance]
        [1.0, 3.0]
    """

    features: Any
    loc: Float[Array, " p"]
    below: Float[Array, "p p"]
    log_diagonal: Float[Array, " p"]

    def __init__(
        self,
        features: Any,
        loc: ArrayLike | None = None,
        scale_tril: ArrayLike | None = None,
    ):
        if not callable(features):
            raise ValueError(f"`features` must be a function of points (N, D); got {features!r}.")
        self.features = features
        self.loc = jnp.zeros(_size(features)) if loc is None else jnp.asarray(loc)
        if self.loc.ndim != 1:
            raise ValueError(f"`loc` must be (p,), one for each feature; got {self.loc.shape}.")
        size = self.loc.shape[0]
        factor = jnp.eye(size, dtype=self.loc.dtype) if scale_tril is None else scale_tril
        factor = jnp.asarray(factor, self.loc.dtype)
        if factor.shape != (size, size):
            raise ValueError(f"`scale_tril` must be {(size, size)}; got {factor.shape}.")
        self.below = jnp.tril(factor, -1)
        self.log_diagonal = jnp.log(jnp.diagonal(factor))
        check_finite("scale_tril", self.log_diagonal, " Its diagonal must be positive.")

    @property
    def has_weight_space(self) -> bool:
        """True: draws are weights."""
        return True

    @property
    def scale_tril(self) -> Float[Array, "p p"]:
        """The factor L of the covariance of the weights."""
        return jnp.tril(self.below, -1) + jnp.diag(jnp.exp(self.log_diagonal))

    def function(self, key: PRNGKeyArray) -> Function:
        """Return phi(.) . w of one draw of the weights."""
        noise = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        weights = self.loc + _matmul(self.scale_tril, noise)
        return lambda x: _matmul(self._features(x), weights)

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> FunctionDraws:
        """Return S functions, each of one draw of the weights; the same key gives the same ones."""
        return FunctionDraws(self, jax.random.split(key, num_samples))

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        return _matmul(self._features(as_points("x", x)), self.loc)

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        features = self._features(as_points("x", x))
        root = _matmul(features, self.scale_tril)
        return _matmul(features, self.loc), jnp.sum(root * root, axis=1)

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        left = _matmul(self._features(as_points("x", x)), self.scale_tril)
        right = left
        if y is not None:
            right = _matmul(self._features(as_points("y", y)), self.scale_tril)
        return _matmul(left, right.T)

    def _features(self, x: Float[Array, "N D"]) -> Float[Array, "N p"]:
        values = self.features(x)
        expected = (x.shape[0], self.loc.shape[0])
        if jnp.shape(values) != expected:
            raise ValueError(
                f"`features` must return {expected} at {expected[0]} points; "
                f"got {jnp.shape(values)}."
            )
        return values


def _size(features: Any) -> int:
    size = getattr(features, "size", None)
    if not isinstance(size, int):
        raise ValueError("give `loc`: `features` does not say their number as `.size`.")
    return size


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
