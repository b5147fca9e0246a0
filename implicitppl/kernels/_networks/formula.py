"""What a kernel network is: a polynomial of its primitives with coefficients >= 0.

    k(x, y) = sum_e c_e prod_p k_p(x, y)^(e_p)

A polynomial is a dictionary from exponents e to coefficients c_e. A linear layer adds them, a
product layer convolves them. The share of a term is the part of the prior variance that it
explains on average over data: c_e mean_n prod_p k_p(x_n, x_n)^(e_p), divided by the sum.
Coefficients alone would depend on the primitives' scales.

Sun et al. (2018), arXiv 1806.04326, section 5, where networks are read as sums of products.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl.kernels._base import Kernel
from implicitppl.kernels._fields import positive
from implicitppl.kernels._networks.layers import Activation, Layer, NonNegativeLinear, ProductLayer

Exponents = tuple[int, ...]
Coefficients = dict[Exponents, Any]


class Monomial(Kernel):
    """A term of a formula as a kernel: c prod_p k_p(x, y)^(e_p), its real part if it is complex.

    Args:
        primitives: the kernels k_p.
        exponents: e_p >= 1. Without any primitive it is the constant kernel c.
        coefficient: c.
    """

    primitives: tuple[Kernel, ...]
    exponents: Exponents = eqx.field(static=True)
    coefficient: ArrayLike = positive(kind="weight")

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        return self._product([k(x, y) for k in self.primitives], jnp.ones((), x.dtype))

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        ones = jnp.ones((X.shape[0], (X if Y is None else Y).shape[0]), X.dtype)
        return self._product([k.gram(X, Y) for k in self.primitives], ones)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self._product([k.diag(X) for k in self.primitives], jnp.ones(len(X), X.dtype))

    def _product(self, values: list[Array], ones: Array) -> Array:
        dtype = jnp.result_type(*[v for v in values if jnp.iscomplexobj(v)] or [ones])
        product = ones.astype(dtype)
        for value, exponent in zip(values, self.exponents, strict=True):
            product = product * value.astype(dtype) ** exponent
        return jnp.asarray(self.coefficient, ones.dtype) * jnp.real(product)


class Term(NamedTuple):
    """One term of a formula.

    Attributes:
        coefficient: c >= 0.
        exponents: the power of every primitive.
        share: part of the prior variance that the term explains.
        kernel: the term as a kernel; the kernels of all terms add up to the network.
    """

    coefficient: float
    exponents: Exponents
    share: float
    kernel: Monomial


class Formula(NamedTuple):
    """The polynomial that a network is, largest share first; `str` and `latex` write it.

    Attributes:
        terms: those kept.
        names: of the primitives.
        num_terms: how many have a coefficient above 0, before pruning.
        discarded: the share of the terms left out.
    """

    terms: tuple[Term, ...]
    names: tuple[str, ...]
    num_terms: int
    discarded: float

    def __str__(self) -> str:
        lines = [
            f"{100 * term.share:5.1f}%  {_written(term, self.names, ' * ', '^{}')}"
            for term in self.terms
        ]
        omitted = self.num_terms - len(self.terms)
        if omitted:
            lines.append(f"{100 * self.discarded:5.1f}%  left out, number of terms: {omitted}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def latex(self) -> str:
        """Return the sum of the terms kept in LaTeX, without surrounding dollars."""
        names = [_latex_name(name) for name in self.names]
        return " + ".join(_written(term, names, r" \, ", "^{{{}}}") for term in self.terms)


def _written(term: Term, names: Sequence[str], times: str, power: str) -> str:
    factors = [f"{term.coefficient:.3g}"]
    for name, exponent in zip(names, term.exponents, strict=True):
        if exponent:
            factors.append(name if exponent == 1 else name + power.format(exponent))
    return times.join(factors)


def formula_of(
    primitives: Sequence[Kernel],
    layers: Sequence[Layer],
    names: Sequence[str],
    X: Array | None,
    min_share: float,
) -> Formula:
    """Return the formula of a network; see `NeuralKernelNetwork.formula`."""
    if not 0 <= min_share < 1:
        raise ValueError(f"`min_share` must be at least 0 and below 1; got {min_share}.")
    polynomial = polynomial_of(len(primitives), layers)
    coefficients = {e: float(c) for e, c in polynomial.items() if c > 0}
    variances = _mean_diagonals(primitives, list(coefficients), X)
    explained = {e: c * variances[e] for e, c in coefficients.items()}
    total = sum(explained.values())
    if not (np.isfinite(total) and total > 0):
        raise ValueError(f"the mean of `diag` must be finite and positive; got {total}.")
    ranked = sorted(explained, key=lambda e: explained[e], reverse=True)
    kept = [e for e in ranked if explained[e] >= min_share * total] or ranked[:1]
    terms = [
        Term(coefficients[e], e, explained[e] / total, _monomial(primitives, e, coefficients[e]))
        for e in kept
    ]
    # Summed over what is left out: 1 - (sum of the kept) would lose its digits.
    discarded = sum(explained[e] for e in ranked[len(kept) :]) / total
    return Formula(tuple(terms), tuple(names), len(ranked), float(discarded))


def _monomial(primitives: Sequence[Kernel], exponents: Exponents, coefficient: float) -> Monomial:
    used = [(k, e) for k, e in zip(primitives, exponents, strict=True) if e]
    kernels = tuple(k for k, _ in used)
    return Monomial(kernels, tuple(e for _, e in used), jnp.asarray(coefficient))


def polynomial_of(num_primitives: int, layers: Sequence[Layer]) -> Coefficients:
    """Return the polynomial of the last unit, exactly: exponents -> coefficient (float64).

    Weights with leading axes (draws of a sampler) give coefficients of those axes.

    Raises:
        ValueError: if a layer is not a polynomial.
    """
    units: list[Coefficients] = [
        {tuple(int(p == q) for q in range(num_primitives)): np.float64(1.0)}
        for p in range(num_primitives)
    ]
    for layer in layers:
        units = _through(layer, units, (0,) * num_primitives)
    return units[0]


def _through(layer: Layer, units: list[Coefficients], constant: Exponents) -> list[Coefficients]:
    if isinstance(layer, NonNegativeLinear):
        weight, bias = np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64)
        return [
            _sum(
                [(weight[..., o, i], unit) for i, unit in enumerate(units)],
                {constant: bias[..., o]},
            )
            for o in range(weight.shape[-2])
        ]
    if isinstance(layer, ProductLayer):
        groups = [units[j : j + layer.step] for j in range(0, len(units), layer.step)]
        return [_product(group) for group in groups]
    if isinstance(layer, Activation) and layer.name == "power":
        shifted = [_sum([(1.0, u)], {constant: np.float64(layer.offset)}) for u in units]
        return [_product([u] * layer.exponent) for u in shifted]
    raise ValueError(
        "a formula has linear, product and power layers only: "
        f"{getattr(layer, 'name', type(layer).__name__)!r} is no polynomial of finite degree."
    )


def _sum(parts: Sequence[tuple[Any, Coefficients]], start: Coefficients) -> Coefficients:
    total = dict(start)
    for weight, polynomial in parts:
        for exponents, coefficient in polynomial.items():
            total[exponents] = total.get(exponents, 0.0) + weight * coefficient
    return total


def _product(factors: Sequence[Coefficients]) -> Coefficients:
    result = factors[0]
    for factor in factors[1:]:
        product: Coefficients = {}
        for e, c in result.items():
            for other, d in factor.items():
                added = tuple(a + b for a, b in zip(e, other, strict=True))
                product[added] = product.get(added, 0.0) + c * d
        result = product
    return result


def _mean_diagonals(
    primitives: Sequence[Kernel], terms: Sequence[Exponents], X: Array | None
) -> dict[Exponents, float]:
    """Return the mean over X of every term's diagonal for c = 1; 1 where there is no X."""
    if X is None:
        return dict.fromkeys(terms, 1.0)
    diagonals = np.stack([np.real(np.asarray(k.diag(X))) for k in primitives]).astype(np.float64)
    return {e: float(np.mean(np.prod(diagonals ** np.asarray(e)[:, None], axis=0))) for e in terms}


def _latex_name(name: str) -> str:
    r"""Return k_{\mathrm{...}} with what LaTeX would read as a command made harmless."""
    base, _, number = name.rpartition("_")
    if not (base and number.isdigit()):
        base, number = name, ""
    escaped = base.replace("_", r"\_")
    return rf"k_{{\mathrm{{{escaped}}}" + (f",{number}}}" if number else "}")
