"""A kernel is one function of two points; matrices, sums and products follow from it.

k(x, y) for x, y of shape (D,). `gram` maps it over two sets of points and may be overridden by a
faster closed form. Two contractions of the kernel's gradient are what score estimation needs; they
are derived here from k alone, one query at a time, so that no array of shape N x M x D appears:

    mean_gradient(x)        = sum_m w_m grad_{y_m} k(x, y_m)          in R^D
    directional_gradient(x) = sum_m grad_x k(x, y_m) . v_m            a number
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_non_negative
from implicitppl.kernels._fields import positive


class Kernel(eqx.Module):
    """A covariance function k(x, y); kernels add, multiply and scale to kernels.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import RBF, Matern32
        >>> k = 2.0 * RBF(0.5) + Matern32().on((0,))
        >>> k.gram(jnp.zeros((3, 2))).shape
        (3, 3)
    """

    @abstractmethod
    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        """Return k(x, y) for two points."""

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        """Return the (N, M) matrix k(X_i, Y_j); Y = X if it is omitted."""
        other = X if Y is None else Y
        return jax.vmap(lambda x: jax.vmap(lambda y: self(x, y))(other))(X)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the diagonal of `gram(X)`: k(X_i, X_i) for every row."""
        return jax.vmap(lambda x: self(x, x))(X)

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        """Return sum_m w_m grad_{Y_m} k(X_i, Y_m) for every row X_i, in O(N M D) time.

        Only M x D numbers are held at a time for kernels without a closed form of their own.
        """

        def one(x: Array) -> Array:
            return weights @ jax.vmap(jax.grad(self.__call__, argnums=1), (None, 0))(x, Y)

        return jax.lax.map(one, X)

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        """Return sum_m grad_{X_i} k(X_i, Y_m) . V_m for every row X_i, in O(N M D) time."""

        def one(x: Array) -> Array:
            def term(y: Array, v: Array) -> Array:
                return jax.jvp(lambda u: self(u, y), (x,), (v,))[1]

            return jnp.sum(jax.vmap(term)(Y, V))

        return jax.lax.map(one, X)

    def on(self, dims: tuple[int, ...] | list[int] | int) -> "ActiveDims":
        """Return this kernel acting on the named coordinates only."""
        return ActiveDims(self, dims)

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Any) -> "Kernel":
        return Product(self, other) if isinstance(other, Kernel) else Scaled(self, other)

    def __rmul__(self, other: Any) -> "Kernel":
        return Scaled(self, other)


class Sum(Kernel):
    """k_1(x, y) + k_2(x, y); written `k1 + k2`."""

    first: Kernel
    second: Kernel

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return self.first(x, y) + self.second(x, y)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return self.first.gram(X, Y) + self.second.gram(X, Y)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self.first.diag(X) + self.second.diag(X)

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        return self.first.mean_gradient(X, Y, weights) + self.second.mean_gradient(X, Y, weights)

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        first = self.first.directional_gradient(X, Y, V)
        return first + self.second.directional_gradient(X, Y, V)


class Product(Kernel):
    """k_1(x, y) k_2(x, y); written `k1 * k2`."""

    first: Kernel
    second: Kernel

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return self.first(x, y) * self.second(x, y)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return self.first.gram(X, Y) * self.second.gram(X, Y)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self.first.diag(X) * self.second.diag(X)


class Scaled(Kernel):
    """c k(x, y) for a constant c >= 0; written `c * k`.

    Raises:
        ValueError: if `scale` is a negative number: the product would not be a covariance.
    """

    kernel: Kernel
    scale: ArrayLike = positive(kind="variance")

    def __check_init__(self) -> None:
        check_non_negative("scale", self.scale)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return jnp.asarray(self.scale, x.dtype) * self.kernel(x, y)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return jnp.asarray(self.scale, X.dtype) * self.kernel.gram(X, Y)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.asarray(self.scale, X.dtype) * self.kernel.diag(X)

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        return jnp.asarray(self.scale, X.dtype) * self.kernel.mean_gradient(X, Y, weights)

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        return jnp.asarray(self.scale, X.dtype) * self.kernel.directional_gradient(X, Y, V)


class ActiveDims(Kernel):
    """k(x[dims], y[dims]); written `k.on(dims)`.

    Args:
        kernel: the kernel to restrict.
        dims: the coordinates it sees, each from 0 to D - 1.

    Raises:
        ValueError: if `dims` is empty or has a repeated or negative entry.
    """

    kernel: Kernel
    dims: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, kernel: Kernel, dims: tuple[int, ...] | list[int] | int):
        dims = (dims,) if isinstance(dims, int) else tuple(int(d) for d in dims)
        if not dims or min(dims) < 0 or len(set(dims)) < len(dims):
            raise ValueError(f"`dims` must be distinct non-negative coordinates; got {dims}.")
        self.kernel = kernel
        self.dims = dims

    def _select(self, x: Array) -> Array:
        if max(self.dims) >= x.shape[-1]:
            raise ValueError(f"`dims` must be below D = {x.shape[-1]}; got {self.dims}.")
        return x[..., jnp.asarray(self.dims)]

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return self.kernel(self._select(x), self._select(y))

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return self.kernel.gram(self._select(X), None if Y is None else self._select(Y))

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self.kernel.diag(self._select(X))

    def mean_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], weights: Float[Array, " M"]
    ) -> Float[Array, "N D"]:
        points = self._select(X)
        others = points if X is Y else self._select(Y)
        part = self.kernel.mean_gradient(points, others, weights)
        return jnp.zeros_like(X).at[:, jnp.asarray(self.dims)].set(part)

    def directional_gradient(
        self, X: Float[Array, "N D"], Y: Float[Array, "M D"], V: Float[Array, "M D"]
    ) -> Float[Array, " N"]:
        select = self._select
        return self.kernel.directional_gradient(select(X), select(Y), select(V))
