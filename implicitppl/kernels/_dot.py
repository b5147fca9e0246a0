"""Kernels of the inner product s = sum_d v_d x_d y_d: linear functions and polynomials.

    Linear:      k = s
    Polynomial:  k = (s + c)^n

Both are centred at the origin of the data and grow with the distance from it: centre the inputs,
and add a `Constant` for an intercept.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import check_non_negative, check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._fields import positive
from implicitppl.kernels._values import PerCoordinate, Scalar, per_coordinate, scalar


def _inner(variance: PerCoordinate, x: Array, y: Array) -> Array:
    """Return sum_d v_d x_d y_d for two points."""
    return jnp.sum(per_coordinate("variance", variance, x) * (x * y))


def _inner_gram(variance: PerCoordinate, X: Array, Y: Array | None) -> Array:
    """Return sum_d v_d X_id Y_jd for every pair, one matrix product."""
    # The same factor on both sides, so that one set of points gives a symmetric matrix.
    factor = jnp.sqrt(per_coordinate("variance", variance, X))
    scaled = factor * X
    return jnp.matmul(scaled, (scaled if Y is None else factor * Y).T, precision="highest")


def _inner_diag(variance: PerCoordinate, X: Array) -> Array:
    return jnp.sum(per_coordinate("variance", variance, X) * jnp.square(X), axis=1)


class Linear(Kernel):
    """Linear kernel sum_d v_d x_d y_d: functions w.x with independent w_d of variance v_d.

    Args:
        variance: v, of the slopes, in squared units of the values over those of the inputs; a
            scalar, or one for each coordinate (D,).

    Cost of `gram` O(N M D). The matrix has rank D at most. Functions are 0 at the origin, and
    their variance grows with the squared distance from it: with v = 1 and standardised inputs it
    is D, so 1/D is a good start in many dimensions.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Linear
        >>> float(Linear(2.0)(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
        22.0
    """

    variance: PerCoordinate = positive(1.0, kind="variance")

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return _inner(self.variance, x, y)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return _inner_gram(self.variance, X, None if X is Y else Y)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return _inner_diag(self.variance, X)


class Polynomial(Kernel):
    """Polynomial kernel (sum_d v_d x_d y_d + c)^n: polynomials of degree n and less.

    Args:
        variance: v, the weight of the coordinates, in inverse squared units of the inputs; a
            scalar, or one for each coordinate (D,). It stands inside the power: write `a * k`
            for a factor outside.
        offset: c >= 0; terms of low degree weigh more as it grows, 0 leaves degree n alone.
        degree: n >= 1, part of the structure: not learned.

    Raises:
        ValueError: if `degree` is not an integer of at least 1, or `variance` or `offset` is out
            of its range.

    Cost of `gram` O(N M D). Values grow like |x|^(2n): standardise the inputs, and in float32
    keep |x|^n below some 1e3 or the rounding of the largest value hides the others.

    Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, section 4.2.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Polynomial
        >>> float(Polynomial(degree=3)(jnp.array([1.0]), jnp.array([1.0])))
        8.0
    """

    variance: PerCoordinate = positive(1.0, kind="variance")
    offset: Scalar = positive(1.0, kind="bias")
    degree: int = eqx.field(default=2, static=True)

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)
        check_non_negative("offset", self.offset)
        if not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"`degree` must be an integer of at least 1; got {self.degree}.")

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return self._power(_inner(self.variance, x, y), x)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return self._power(_inner_gram(self.variance, X, None if X is Y else Y), X)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self._power(_inner_diag(self.variance, X), X)

    def _power(self, inner: Array, x: Array) -> Array:
        return (inner + scalar("offset", self.offset, x)) ** self.degree
