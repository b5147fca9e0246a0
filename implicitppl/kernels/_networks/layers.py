"""Layers that map kernels to kernels: sums with weights >= 0, products, and power series.

A layer acts on planes h of shape (units, ...), one plane for each kernel: a matrix (N, M), a
diagonal (N,) or a single value. It treats every pair of points alike,

    NonNegativeLinear:  h'_o = sum_i W_oi h_i + b_o,  W >= 0, b >= 0
    ProductLayer:       h'_j = h_{js} h_{js+1} ... h_{js+s-1}
    Activation:         h'_j = f(h_j), f with Taylor coefficients >= 0

and each keeps positive semi-definite matrices so: by sums, by Schur's product theorem, by limits.

Sun, Zhang, Wang, Zeng, Li, Grosse, Differentiable Compositional Kernel Learning for Gaussian
Processes, ICML 2018, arXiv 1806.04326, section 3.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, PRNGKeyArray

from implicitppl._core.checks import check_non_negative
from implicitppl.kernels._fields import positive


class Layer(eqx.Module):
    """A map from the planes of kernels to the planes of kernels."""

    @abstractmethod
    def __call__(self, h: Inexact[Array, "inputs ..."]) -> Inexact[Array, "outputs ..."]:
        """Return the planes of this layer's units."""

    @abstractmethod
    def out_width(self, in_width: int) -> int:
        """Return how many units it has on `in_width` inputs.

        Raises:
            ValueError: if it does not fit so many.
        """


class NonNegativeLinear(Layer):
    """Sums of kernels, h' = W h + b, with W and b at least 0.

    Args:
        weight: W, (outputs, inputs).
        bias: b, (outputs,): the variance of a constant function in every unit.

    Raises:
        ValueError: if shapes do not fit each other, or an entry is negative.

    A weight of exactly 0 is allowed and stays 0 when it is learned: the logarithm is what moves.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import NonNegativeLinear
        >>> layer = NonNegativeLinear(jnp.array([[1.0, 2.0]]), jnp.array([0.5]))
        >>> layer(jnp.array([3.0, 4.0])).tolist()
        [11.5]
    """

    weight: ArrayLike = positive(kind="weight")
    bias: ArrayLike = positive(kind="bias")

    def __check_init__(self) -> None:
        shape, bias = jnp.shape(self.weight), jnp.shape(self.bias)
        if len(shape) != 2 or bias != shape[:1] or 0 in shape:
            raise ValueError(
                "`weight` must be (outputs, inputs) and `bias` (outputs,); "
                f"got shapes {shape} and {bias}."
            )
        check_non_negative("weight", self.weight)
        check_non_negative("bias", self.bias)

    @classmethod
    def init(cls, in_width: int, out_width: int, *, key: PRNGKeyArray) -> "NonNegativeLinear":
        """Return a layer as published: W ~ U(1/(2 i), 3/(2 i)) for i inputs, b = 0.01.

        A unit starts as the mean of its inputs, roughly, so values keep their scale.

        Args:
            in_width: number of inputs i.
            out_width: number of units.
            key: of the draws.
        """
        weight = jax.random.uniform(
            key, (out_width, in_width), minval=0.5 / in_width, maxval=1.5 / in_width
        )
        return cls(weight, jnp.full((out_width,), 0.01, weight.dtype))

    def __call__(self, h: Inexact[Array, "inputs ..."]) -> Inexact[Array, "outputs ..."]:
        # One matrix product over the flattened planes: faster than einsum or a sum in a loop.
        mixed = jnp.matmul(
            jnp.asarray(self.weight, h.dtype), h.reshape(h.shape[0], -1), precision="highest"
        )
        return (mixed + jnp.asarray(self.bias, h.dtype)[:, None]).reshape(-1, *h.shape[1:])

    def out_width(self, in_width: int) -> int:
        outputs, inputs = jnp.shape(self.weight)
        if in_width != inputs:
            raise ValueError(f"`weight` has {inputs} columns for {in_width} inputs.")
        return outputs


class ProductLayer(Layer):
    """Products of consecutive kernels, `step` at a time.

    Args:
        step: how many inputs each unit multiplies; 2 as published.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import ProductLayer
        >>> ProductLayer()(jnp.array([2.0, 3.0, 4.0, 5.0])).tolist()
        [6.0, 20.0]
    """

    step: int = eqx.field(default=2, static=True)

    def __check_init__(self) -> None:
        if not isinstance(self.step, int) or self.step < 1:
            raise ValueError(f"`step` must be an integer of at least 1; got {self.step}.")

    def __call__(self, h: Inexact[Array, "inputs ..."]) -> Inexact[Array, "outputs ..."]:
        groups = h.reshape(-1, self.step, *h.shape[1:])
        # Not `prod`: its derivative divides by the factors, and these may be 0.
        product = groups[:, 0]
        for factor in range(1, self.step):
            product = product * groups[:, factor]
        return product

    def out_width(self, in_width: int) -> int:
        if in_width % self.step:
            raise ValueError(f"{in_width} inputs cannot be grouped by `step` = {self.step}.")
        return in_width // self.step


_SERIES: dict[str, Callable[[Array, float, int], Array]] = {
    "exp": lambda h, offset, exponent: jnp.exp(h),
    "cosh": lambda h, offset, exponent: jnp.cosh(h),
    "power": lambda h, offset, exponent: (offset + h) ** exponent,
}


class Activation(Layer):
    """A function with non-negative Taylor coefficients, of every kernel.

    Args:
        name: "exp", "cosh", or "power" for (c + h)^p.
        offset: c >= 0 of "power".
        exponent: p of "power", an integer of at least 1: other powers have negative coefficients.

    Raises:
        ValueError: if `name` is none of these (1/(1 - h) is not among them: learning can push h
            beyond 1, where it is no covariance), or `offset` or `exponent` is out of its range.

    exp and cosh overflow where a diagonal passes 88 (float32) or 709 (float64).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Activation
        >>> Activation("power", offset=1.0, exponent=3)(jnp.array([1.0])).tolist()
        [8.0]
    """

    name: str = eqx.field(static=True)
    offset: float = eqx.field(default=1.0, static=True)
    exponent: int = eqx.field(default=2, static=True)

    def __check_init__(self) -> None:
        if self.name not in _SERIES:
            raise ValueError(f"`name` must be one of {', '.join(_SERIES)}; got {self.name!r}.")
        if not (self.offset >= 0 and math.isfinite(self.offset)):
            raise ValueError(f"`offset` must be finite and non-negative; got {self.offset}.")
        if not isinstance(self.exponent, int) or self.exponent < 1:
            raise ValueError(f"`exponent` must be an integer of at least 1; got {self.exponent}.")

    def __call__(self, h: Inexact[Array, "inputs ..."]) -> Inexact[Array, "outputs ..."]:
        return _SERIES[self.name](h, self.offset, self.exponent)

    def out_width(self, in_width: int) -> int:
        return in_width
