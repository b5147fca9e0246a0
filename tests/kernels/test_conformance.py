"""Every kernel keeps its promises; a new kernel is one row of `ROWS`.

The last tests show that each of the checks refuses a kernel that breaks the promise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from implicitppl.kernels import (
    RBF,
    ArcCosine,
    Constant,
    Cosine,
    InverseMultiquadric,
    Kernel,
    Linear,
    Matern12,
    Matern32,
    Matern52,
    NeuralKernelNetwork,
    NonNegativeLinear,
    Periodic,
    Polynomial,
    ProductLayer,
    RationalQuadratic,
    SpectralMixture,
    White,
    positive,
)
from tests.kernels.checks import (
    Names,
    check_against_differences,
    check_contractions,
    check_derivatives,
    check_matrices,
    check_memory,
    check_parameters,
    check_precision,
    check_transformations,
)

LENGTHSCALE, VARIANCE = ("lengthscale", "lengthscale"), ("variance", "variance")
STATIONARY: Names = (LENGTHSCALE, VARIANCE)
PERIODIC: Names = (*STATIONARY, ("period", "period"))
ARC: Names = (VARIANCE, ("weight_variance", "variance"), ("bias_variance", "bias"))


def inside(field: str, names: Names) -> Names:
    return tuple((f"{field}.{name}", kind) for name, kind in names)


class Row(NamedTuple):
    """A kernel on three coordinates.

    Attributes:
        make: builds it; arrays are made inside, in the precision of the test.
        names: its parameters in order, each with its kind.
        smooth: whether second derivatives exist where points coincide.
        digits: largest error in float32 over the largest entry; 1e-4 where one over a small number
            amplifies rounding.
    """

    make: Callable[[], Kernel]
    names: Names
    smooth: bool = True
    digits: float = 1e-5


def _ard() -> jax.Array:
    return jnp.array([0.6, 1.1, 1.9])


ROWS: dict[str, Row] = {
    "RBF": Row(lambda: RBF(0.8, 1.7), STATIONARY),
    "RBF, ARD": Row(lambda: RBF(_ard()), STATIONARY),
    "InverseMultiquadric": Row(
        lambda: InverseMultiquadric(0.8, 1.7, 0.7), (*STATIONARY, ("exponent", "exponent"))
    ),
    "RationalQuadratic": Row(
        lambda: RationalQuadratic(0.8, 1.7, 0.7), (*STATIONARY, ("mixture", "mixture"))
    ),
    "Matern12": Row(lambda: Matern12(0.8, 1.7), STATIONARY, smooth=False, digits=1e-3),
    "Matern32": Row(lambda: Matern32(0.8, 1.7), STATIONARY),
    "Matern52": Row(lambda: Matern52(0.8, 1.7), STATIONARY),
    "Periodic": Row(lambda: Periodic(0.8, 1.7, 2.3), PERIODIC),
    "Periodic, ARD": Row(lambda: Periodic(_ard(), 1.7, _ard()[::-1]), PERIODIC),
    "Cosine": Row(
        lambda: Cosine(jnp.array([0.3, -0.2, 0.5]), 1.7), (("frequency", "frequency"), VARIANCE)
    ),
    "Linear": Row(lambda: Linear(0.7), (VARIANCE,)),
    "Linear, ARD": Row(lambda: Linear(_ard()), (VARIANCE,)),
    "Polynomial": Row(lambda: Polynomial(_ard(), 0.7, 3), (VARIANCE, ("offset", "bias"))),
    "ArcCosine 0": Row(lambda: ArcCosine(1.7, 0.7, 0.3, 0), ARC, smooth=False, digits=1e-3),
    "ArcCosine 1": Row(lambda: ArcCosine(1.7, _ard(), 0.3), ARC),
    "ArcCosine 2": Row(lambda: ArcCosine(1.7, 0.7, 0.3, 2), ARC),
    "ArcCosine of the paper": Row(lambda: ArcCosine(bias_variance=0.0), ARC),
    "Constant": Row(lambda: Constant(1.7), (VARIANCE,)),
    "White": Row(lambda: White(1.7), (VARIANCE,)),
    "SpectralMixture": Row(
        lambda: SpectralMixture(
            [0.7, 1.2],
            [[0.3, 0.1, 0.5], [0.05, 0.4, 0.2]],
            [[0.05, 0.1, 0.02], [0.2, 0.03, 0.1]],
        ),
        (("weights", "variance"), ("means", "frequency"), ("scales", "frequency")),
    ),
    "NeuralKernelNetwork": Row(
        lambda: NeuralKernelNetwork(
            (RBF(0.8), Linear(0.3), Matern32(0.5)),
            (
                NonNegativeLinear(jnp.array([[0.5, 1.2, 0.4], [0.9, 0.3, 0.7]]), jnp.ones(2)),
                ProductLayer(),
            ),
        ),
        inside("primitives[0]", STATIONARY)
        + inside("primitives[1]", (VARIANCE,))
        + inside("primitives[2]", STATIONARY)
        + inside("layers[0]", (("weight", "weight"), ("bias", "bias"))),
    ),
    "sum": Row(
        lambda: RBF(0.7) + White(0.5), inside("first", STATIONARY) + inside("second", (VARIANCE,))
    ),
    "product": Row(
        lambda: Periodic(0.9) * Matern32(2.0),
        inside("first", PERIODIC) + inside("second", STATIONARY),
    ),
    "scaled": Row(
        lambda: 2.0 * Cosine(0.4),
        (("kernel.frequency", "frequency"), ("kernel.variance", "variance"), ("scale", "variance")),
    ),
    "active": Row(
        lambda: (Linear(0.7) + White(0.5)).on((0, 2)),
        inside("kernel.first", (VARIANCE,)) + inside("kernel.second", (VARIANCE,)),
    ),
}
VARIANTS = {
    "RBF, ARD",
    "Periodic, ARD",
    "Linear, ARD",
    "ArcCosine 2",
    "ArcCosine of the paper",
    "InverseMultiquadric",
    "scaled",
}
"""Rows that differ little from another one."""
every_kernel = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in VARIANTS else [])
        for name in ROWS
    ],
)


@every_kernel
def test_matrices(name):
    with jax.enable_x64(True):
        check_matrices(ROWS[name].make())


@every_kernel
def test_derivatives_are_finite_at_coinciding_points_and_at_the_origin(name):
    check_derivatives(ROWS[name].make(), ROWS[name].smooth)


@pytest.mark.exhaustive
@every_kernel
def test_derivatives_agree_with_differences(name):
    with jax.enable_x64(True):
        check_against_differences(ROWS[name].make())


@pytest.mark.exhaustive
@every_kernel
def test_contractions_of_the_gradient(name):
    with jax.enable_x64(True):
        check_contractions(ROWS[name].make())


@every_kernel
def test_precision(name):
    check_precision(ROWS[name].make, ROWS[name].digits)


@every_kernel
def test_transformations(name):
    with jax.enable_x64(True):
        check_transformations(ROWS[name].make())


@every_kernel
def test_memory(name):
    check_memory(ROWS[name].make())


@every_kernel
def test_parameters(name):
    with jax.enable_x64(True):
        check_parameters(ROWS[name].make(), ROWS[name].names)


class Wave(Kernel):
    """cos(x + y): symmetric, and not positive."""

    width: float = positive(1.0, kind="lengthscale")

    def __call__(self, x, y):
        return jnp.cos(jnp.sum(x + y) / jnp.asarray(self.width, x.dtype))


class Lopsided(Wave):
    def __call__(self, x, y):
        return jnp.exp(-jnp.sum(jnp.square(x - 1.01 * y)))


class Kinked(Wave):
    def __call__(self, x, y):
        return jnp.exp(-jnp.sqrt(jnp.sum(jnp.square(x - y))))


class Detached(Wave):
    def gram(self, X, Y=None):
        return jax.lax.stop_gradient(super().gram(X, Y))


class Doubled(Wave):
    def mean_gradient(self, X, Y, weights):
        return 2 * super().mean_gradient(X, Y, weights)


class Single(Wave):
    def diag(self, X):
        return super().diag(X).astype(jnp.float32)


class Own(Wave):
    def diag(self, X):
        return 2 * jnp.exp(-X[:, 0])


@pytest.mark.parametrize(
    ("check", "kernel"),
    [
        (check_matrices, Wave()),
        (check_matrices, Lopsided()),
        (check_matrices, 1.0 * Own() + RBF()),
        (check_derivatives, Kinked()),
        (check_against_differences, Detached()),
        (check_contractions, Doubled()),
        (check_memory, Wave()),
        (lambda kernel: check_precision(lambda: kernel, 1e-5), Single()),
        (lambda kernel: check_parameters(kernel, (VARIANCE,)), Wave()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Kernel) else "",
)
def test_the_checks_refuse_kernels_that_break_the_promise(check, kernel):
    with jax.enable_x64(True), pytest.raises(AssertionError):
        check(kernel)
