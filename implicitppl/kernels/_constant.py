"""Kernels that do not look at the points: a constant, and white noise.

Constant:  k(x, y) = v                 the same unknown level everywhere
White:     gram(X) = v I               independent noise at every row
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._fields import positive
from implicitppl.kernels._values import Scalar, scalar


class Constant(Kernel):
    """Constant kernel v: functions that are one unknown number.

    Args:
        variance: v, in squared units of the values.

    Cost of `gram` O(N M). The matrix has rank one. To multiply a kernel by a constant write
    `2.0 * k`; adding this kernel gives a function an unknown mean.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Constant
        >>> Constant(2.0).gram(jnp.zeros((1, 3)), jnp.ones((2, 3))).tolist()
        [[2.0, 2.0]]
    """

    variance: Scalar = positive(1.0, kind="variance")

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return scalar("variance", self.variance, x)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        shape = (X.shape[0], (X if Y is None else Y).shape[0])
        return jnp.full(shape, scalar("variance", self.variance, X))

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.full((X.shape[0],), scalar("variance", self.variance, X))

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        return jnp.zeros_like(X)

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        return jnp.zeros_like(X[:, 0])


class White(Kernel):
    """White noise of variance v: v I in `gram(X)`, and 0 between any two sets of points.

    Noise belongs to a row, not to a place, so two arguments never share it: `gram(X, Y)` is 0
    even if `Y` is `X`, and so is k(x, x) for two given points; `diag(X)` is v, the diagonal of
    `gram(X)`. Two equal rows of `X` have independent noise.

    Args:
        variance: v, in squared units of the values.

    Cost of `gram` O(N M). Sums, products, scaling and `on` keep the rule, as they hand on an
    omitted `Y`; a kernel of your own with `White` inside keeps it only if it overrides `gram` and
    `diag`. Predictive variances from `diag` contain the noise.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import White
        >>> X = jnp.zeros((2, 1))
        >>> White(3.0).gram(X).tolist(), White(3.0).gram(X, X).tolist()
        ([[3.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]])
    """

    variance: Scalar = positive(1.0, kind="variance")

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return jnp.zeros((), x.dtype)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        if Y is not None:
            return jnp.zeros((X.shape[0], Y.shape[0]), X.dtype)
        return scalar("variance", self.variance, X) * jnp.eye(X.shape[0], dtype=X.dtype)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.full((X.shape[0],), scalar("variance", self.variance, X))

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        return jnp.zeros_like(X)

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        return jnp.zeros_like(X[:, 0])
