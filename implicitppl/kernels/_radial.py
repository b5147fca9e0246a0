"""Kernels of the scaled distance: k(x, y) = v phi(t), t = sum_d (x_d - y_d)^2 / l_d^2.

A kernel is its profile phi and the slope phi'. Every gradient is then one matrix product:
grad_y k(x, y) = -2 v phi'(t) (x - y) / l^2. The derivative rule of the profile is given by the
slope in closed form, so second derivatives at coinciding points are right as well (automatic
differentiation of sqrt(t) gives NaN or 0 there).
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._distances import squared_distances
from implicitppl.kernels._fields import positive
from implicitppl.kernels._values import PerCoordinate, Scalar, per_coordinate, scalar

Lengthscale = PerCoordinate


class Radial(Kernel):
    """A kernel of the scaled distance; subclasses give `profile` and `profile_slope`.

    Args:
        lengthscale: in data units; a scalar, or one for each coordinate (D,).
        variance: v = k(x, x).
    """

    lengthscale: eqx.AbstractVar[Lengthscale]
    variance: eqx.AbstractVar[Scalar]

    @abstractmethod
    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return phi(t), phi(0) = 1, elementwise in the scaled squared distance t >= 0."""

    @abstractmethod
    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return phi'(t) <= 0, finite at t = 0."""

    def __check_init__(self) -> None:
        for name in ("lengthscale", "variance"):
            check_positive(name, getattr(self, name))

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        difference = (x - y) / self._lengthscale(x)
        return self._variance(x) * self.profile(jnp.sum(difference * difference))

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        # One set of points gives the distances of `_pull`, which XLA then computes once.
        other = None if X is Y else Y
        return self._variance(X) * self.profile(self._scaled_distances(X, other))

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        self._lengthscale(X)  # the diagonal does not need it, but its shape must fit
        return jnp.full((X.shape[0],), self._variance(X), X.dtype)

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        centre = jnp.mean(Y, axis=0)[None, :]
        pull = self._pull(X, Y)
        towards = jnp.matmul(pull, weights[:, None] * (Y - centre), precision="highest")
        total = jnp.matmul(pull, weights, precision="highest")
        return (total[:, None] * (X - centre) - towards) / jnp.square(self._lengthscale(X))

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        centre = jnp.mean(Y, axis=0)[None, :]
        V = V / jnp.square(self._lengthscale(X))
        pull = self._pull(X, Y)
        along = jnp.sum((X - centre) * jnp.matmul(pull, V, precision="highest"), axis=1)
        return jnp.matmul(pull, jnp.sum((Y - centre) * V, axis=1), precision="highest") - along

    def _pull(self, X: Array, Y: Array) -> Array:
        """Return the (N, M) matrix -2 v phi'(t), so that grad_Y k = pull (X - Y) / l^2."""
        same = X is Y
        distances = self._scaled_distances(X, None if same else Y)
        return -2 * self._variance(X) * self.profile_slope(distances)

    def _scaled_distances(self, X: Array, Y: Array | None) -> Array:
        # Centred before it is divided: the quotient of a distant point rounds more than the point.
        centre = jax.lax.stop_gradient(jnp.mean(X if Y is None else Y, axis=0))[None, :]
        lengthscale = self._lengthscale(X)
        other = None if Y is None else (Y - centre) / lengthscale
        return squared_distances((X - centre) / lengthscale, other)

    def _lengthscale(self, x: Array) -> Array:
        return per_coordinate("lengthscale", self.lengthscale, x)

    def _variance(self, x: Array) -> Array:
        return scalar("variance", self.variance, x)


class RBF(Radial):
    """Gaussian kernel v exp(-|x - y|^2 / (2 l^2)).

    Args:
        lengthscale: l, in data units; scalar or (D,).
        variance: v.

    Cost of `gram` O(N M D). Vanishes, with its gradient, a few lengthscales from the data: give a
    score estimate a reference there.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import RBF
        >>> round(float(RBF(2.0)(jnp.array([0.0]), jnp.array([2.0]))), 4)
        0.6065
    """

    lengthscale: Lengthscale = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(-0.5 * t)

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return -0.5 * jnp.exp(-0.5 * t)


class InverseMultiquadric(Radial):
    """Inverse multiquadric v (1 + |x - y|^2 / l^2)^(-p).

    Args:
        lengthscale: l, in data units; scalar or (D,).
        variance: v.
        exponent: p > 0. The default 1/2 is the one of the kernel Stein discrepancy, for which
            p < 1 is needed to control convergence.

    Cost of `gram` O(N M D). Tails decay slowly: safer than `RBF` away from the data.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import InverseMultiquadric
        >>> round(float(InverseMultiquadric()(jnp.array([0.0]), jnp.array([1.0]))), 4)
        0.7071
    """

    lengthscale: Lengthscale = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")
    exponent: Scalar = positive(0.5, kind="exponent")

    def __check_init__(self) -> None:
        check_positive("exponent", self.exponent)

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 + t) ** -jnp.asarray(self.exponent, t.dtype)

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        p = jnp.asarray(self.exponent, t.dtype)
        return -p * (1 + t) ** (-p - 1)


class RationalQuadratic(Radial):
    """Rational quadratic v (1 + |x - y|^2 / (2 a l^2))^(-a).

    Args:
        lengthscale: l, in data units; scalar or (D,).
        variance: v.
        mixture: a > 0; a mixture of `RBF` kernels that tends to `RBF` as a grows.

    Cost of `gram` O(N M D).

    Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, equation (4.19).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import RationalQuadratic
        >>> round(float(RationalQuadratic()(jnp.array([0.0]), jnp.array([1.0]))), 4)
        0.6667
    """

    lengthscale: Lengthscale = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")
    mixture: Scalar = positive(1.0, kind="mixture")

    def __check_init__(self) -> None:
        check_positive("mixture", self.mixture)

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        a = jnp.asarray(self.mixture, t.dtype)
        # Not `**`: it costs twice as much, and 1 + t/(2a) loses t where a is large.
        return jnp.exp(-a * jnp.log1p(t / (2 * a)))

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        a = jnp.asarray(self.mixture, t.dtype)
        return -0.5 * jnp.exp(-(a + 1) * jnp.log1p(t / (2 * a)))
