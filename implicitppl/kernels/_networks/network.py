"""Neural kernel networks: kernels composed by a network whose every unit is a kernel.

h_0 = (k_1(x, y), ..., k_P(x, y)) are the values of primitive kernels at a pair of points. Layers
with non-negative weights, products and power series (`_nkn_layers`) turn them into one value,
which is a covariance whatever the weights are. With linear and product layers it is a polynomial
of the primitives with coefficients >= 0 (`_formula` reads it out).

Sun, Zhang, Wang, Zeng, Li, Grosse, Differentiable Compositional Kernel Learning for Gaussian
Processes, ICML 2018, arXiv 1806.04326, section 3.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from implicitppl._core.checks import check_positive
from implicitppl.kernels._base import ActiveDims, Kernel
from implicitppl.kernels._networks.formula import Formula, formula_of, polynomial_of
from implicitppl.kernels._networks.layers import Layer, NonNegativeLinear, ProductLayer
from implicitppl.kernels._networks.tiles import rectangular_in_tiles, symmetric_in_tiles
from implicitppl.kernels._parameters import as_arrays


class NeuralKernelNetwork(Kernel):
    """A kernel made of primitive kernels by a network of layers, ending in one unit.

    Args:
        primitives: kernels of the same points. `PlaneWave` primitives are complex; the kernel is
            then the real part of the last unit.
        layers: `NonNegativeLinear`, `ProductLayer`, `Activation` or any `Layer`, first to last.
        names: what a formula calls the primitives; by default their classes, numbered.

    Raises:
        ValueError: if there is no primitive, if the width of a layer does not fit the one before,
            or if the last layer has not one unit.

    Cost of `gram` O(N M (P D + W)) for P primitives and W weights, by tiles of 128 x 128: memory
    is that of the matrix and of one tile, in reverse mode too. `diag` runs the network on the
    primitives' diagonals, O(N (P D + W)). Differentiable forwards, backwards and twice.

    Several weights give the same kernel: the scale of a primitive and its column of the first
    layer, the scales of two units that are multiplied, and their order. Optimisers do not mind;
    judge the convergence of sampled weights by `gram` at a few pairs or by `polynomial`.

    Reference: Sun et al. (2018), arXiv 1806.04326, section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.kernels import RBF, Matern32, NeuralKernelNetwork
        >>> primitives = (RBF(0.5), RBF(2.0), Matern32())
        >>> k = NeuralKernelNetwork.from_widths(primitives, (4, 2), key=jax.random.key(0))
        >>> k.gram(jnp.zeros((3, 2))).shape
        (3, 3)
    """

    primitives: tuple[Kernel, ...]
    layers: tuple[Layer, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        primitives: Sequence[Kernel],
        layers: Sequence[Layer],
        names: Sequence[str] | None = None,
    ):
        _check_kernels(primitives)
        # Arrays, because a Python number is part of a program: `gram` would compile for each.
        self.primitives = as_arrays(tuple(primitives))
        self.layers = as_arrays(tuple(layers))
        self.names = _default_names(self.primitives) if names is None else tuple(names)
        _check_widths(len(self.primitives), self.layers)
        if len(set(self.names)) < len(self.names) or len(self.names) != len(self.primitives):
            raise ValueError(
                f"`names` must be {len(self.primitives)} different names, one for each primitive; "
                f"got {self.names}."
            )

    @classmethod
    def from_widths(
        cls,
        primitives: Sequence[Kernel],
        widths: Sequence[int],
        *,
        key: PRNGKeyArray,
        step: int = 2,
        names: Sequence[str] | None = None,
    ) -> "NeuralKernelNetwork":
        """Return a network of linear and product layers with the published initial weights.

        Args:
            primitives: kernels of the same points.
            widths: of the linear layers, each followed by products of `step` consecutive units; a
                linear layer to one unit comes last. (8, 4) is the published network: linear to 8,
                products 4, linear to 4, products 2, linear to 1. () is a weighted sum.
            key: of the weights.
            step: factors of each product. The degree of the polynomial is step^len(widths).
            names: what a formula calls the primitives.

        Raises:
            ValueError: if a width is not a positive multiple of `step`.
        """
        layers: list[Layer] = []
        product, width = ProductLayer(step), len(primitives)
        for layer_key, out in zip(
            jax.random.split(key, len(widths) + 1), (*widths, 1), strict=True
        ):
            if layers:
                layers.append(product)
                width = product.out_width(width)
            layers.append(NonNegativeLinear.init(width, out, key=layer_key))
            width = out
        return cls(primitives, layers, names)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return self._network([k(x, y) for k in self.primitives])

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        return _gram(self, X, Y)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self._network([k.diag(X) for k in self.primitives])

    def with_variance(
        self, X: Float[Array, "N D"], variance: ArrayLike = 1.0
    ) -> "NeuralKernelNetwork":
        """Return this network, its last layer scaled so that the mean of `diag(X)` is `variance`.

        Products make the scale of a new network hard to foresee; a prior variance near that of the
        data is where learning should start.

        Raises:
            ValueError: if the last layer is not `NonNegativeLinear`, or `variance` is not positive.
        """
        check_positive("variance", variance)
        last = self.layers[-1]
        if not isinstance(last, NonNegativeLinear):
            raise ValueError(
                f"the last layer must be NonNegativeLinear to be scaled; got {type(last).__name__}."
            )
        factor = jnp.asarray(variance, X.dtype) / jnp.mean(self.diag(X))
        scaled = NonNegativeLinear(
            jnp.asarray(last.weight, X.dtype) * factor, jnp.asarray(last.bias, X.dtype) * factor
        )
        return NeuralKernelNetwork(self.primitives, (*self.layers[:-1], scaled), self.names)

    def formula(self, X: Float[Array, "N D"] | None = None, *, min_share: float = 0.01) -> Formula:
        """Return the polynomial of primitives that this network is, largest terms first.

        Args:
            X: points whose mean prior variance the terms share, c_e mean_n k_e(x_n, x_n) each.
                Without it every primitive counts with variance 1, as those of variance 1 do.
            min_share: terms below it are left out; their sum is `discarded`.

        Returns:
            A `Formula`: print it, or use `.terms[j].kernel` for the part of one term, as in the
            posterior mean of one additive part, k_j(x, X) (K + noise)^-1 y.

        Raises:
            ValueError: if a layer is no polynomial (`Activation` "exp", "cosh", layers of your
                own), or `min_share` is not in [0, 1).

        Cost: the number of terms, C(P + d, d) for degree d, times N. For the host, not `jit`.

        Example:
            >>> import jax.numpy as jnp
            >>> from implicitppl.kernels import RBF, Linear, NeuralKernelNetwork
            >>> from implicitppl.kernels import NonNegativeLinear, ProductLayer
            >>> weight = jnp.array([[1.0, 0.1], [1.0, 2.0]])
            >>> layers = (NonNegativeLinear(weight, jnp.zeros(2)), ProductLayer())
            >>> k = NeuralKernelNetwork((RBF(), Linear()), layers)
            >>> print(k.formula(jnp.ones((1, 1)), min_share=0.1))
             63.6%  2.1 * RBF * Linear
             30.3%  1 * RBF^2
              6.1%  left out, number of terms: 1
        """
        return formula_of(self.primitives, self.layers, self.names, X, min_share)

    def polynomial(self) -> dict[tuple[int, ...], np.ndarray]:
        """Return the exact coefficients of `formula` by exponents, before any pruning.

        They are what the network determines, while many weights give equal coefficients. Weights
        with leading axes, draws of a sampler, give coefficients with those axes: look at these to
        see whether chains agree.
        """
        found = polynomial_of(len(self.primitives), self.layers)
        return {exponents: np.asarray(coefficient) for exponents, coefficient in found.items()}

    def _network(self, values: list[Array]) -> Array:
        """Return the last unit, from the values of the primitives in arrays of one shape."""
        h = stack_planes(values)
        for layer in self.layers:
            h = layer(h)
        return jnp.real(h[0])

    def _tile(self, X: Array, Y: Array | None) -> Array:
        return self._network([k.gram(X, Y) for k in self.primitives])


@eqx.filter_jit  # a loop outside `jit` would be compiled at every call
def _gram(network: NeuralKernelNetwork, X: Array, Y: Array | None) -> Array:
    if Y is None:
        return symmetric_in_tiles(network._tile, X)
    return rectangular_in_tiles(network._tile, X, Y)


def stack_planes(values: Sequence[Array]) -> Inexact[Array, "units ..."]:
    """Return real or complex arrays of one shape as one; complex if any of them is."""
    dtype = next((v.dtype for v in values if jnp.iscomplexobj(v)), values[0].dtype)
    return jnp.stack([v.astype(dtype) for v in values])


def _check_kernels(primitives: Sequence[Any]) -> None:
    if not primitives:
        raise ValueError("`primitives` must hold at least one kernel; got none.")
    for kernel in primitives:
        if not isinstance(kernel, Kernel):
            raise ValueError(f"`primitives` must be kernels; got {type(kernel).__name__}.")


def _check_widths(width: int, layers: Sequence[Layer]) -> None:
    for position, layer in enumerate(layers):
        try:
            width = layer.out_width(width)
        except ValueError as error:
            raise ValueError(
                f"`layers[{position}]` ({type(layer).__name__}) does not fit the {width} units "
                f"before it: {error}"
            ) from None
    if width != 1:
        raise ValueError(f"the last layer must have one unit; got {width}.")


def _default_names(primitives: Sequence[Kernel]) -> tuple[str, ...]:
    """Return the classes of the primitives, numbered from 1 where a class is repeated."""
    classes = [_class_name(kernel) for kernel in primitives]
    return tuple(
        name if classes.count(name) == 1 else f"{name}_{classes[: position + 1].count(name)}"
        for position, name in enumerate(classes)
    )


def _class_name(kernel: Kernel) -> str:
    if isinstance(kernel, ActiveDims):
        return f"{_class_name(kernel.kernel)}[{','.join(map(str, kernel.dims))}]"
    return type(kernel).__name__
