"""What every kernel promises; a new kernel is one row of `ROWS`.

The checks are functions of a kernel, so that the last tests can show that each of them refuses a
kernel that breaks the promise.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

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
    Periodic,
    Polynomial,
    RationalQuadratic,
    SpectralMixture,
    White,
    as_arrays,
    constrain,
    parameters,
    positive,
    unconstrain,
)

Names = tuple[tuple[str, str], ...]
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
every_kernel = pytest.mark.parametrize("name", ROWS)


def points(num: int, seed: int = 0, dtype: jnp.dtype | None = None) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 3)), dtype)


def twins(dtype: jnp.dtype | None = None) -> jax.Array:
    """Rows of which two are equal and one is the origin."""
    X = points(4, dtype=dtype)
    return jnp.concatenate([X[:1], X, jnp.zeros_like(X[:1])])


def has_white_noise(kernel: Kernel) -> bool:
    return any(isinstance(part, White) for part in _parts(kernel))


def _parts(kernel: Kernel) -> list[Kernel]:
    inside = [value for value in vars(kernel).values() if isinstance(value, Kernel)]
    return [kernel, *(part for value in inside for part in _parts(value))]


def check_matrices(kernel: Kernel) -> None:
    X, Y = points(20), points(5, 1)
    grams = jax.jit(lambda k, X, Y: (k.gram(X), k.gram(X, X), k.gram(X, Y), k.diag(X)))
    gram, cross_gram, other, diag = grams(as_arrays(kernel), X, Y)
    scale = float(jnp.max(jnp.abs(gram)))
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_allclose(jnp.diagonal(gram), diag, atol=1e-12 * scale)
    eigenvalues = np.linalg.eigvalsh(gram)
    assert eigenvalues[0] >= -1e-10 * eigenvalues[-1]
    pairs = jax.jit(lambda k, X, Y: jax.vmap(lambda x: jax.vmap(lambda y: k(x, y))(Y))(X))
    np.testing.assert_allclose(pairs(as_arrays(kernel), X, Y), other, atol=1e-12 * scale)
    np.testing.assert_allclose(pairs(as_arrays(kernel), X, X), cross_gram, atol=1e-7 * scale)
    if not has_white_noise(kernel):
        np.testing.assert_allclose(gram, cross_gram, atol=1e-12 * scale)


def check_derivatives(kernel: Kernel, smooth: bool = True) -> None:
    X, Y = twins(), jnp.concatenate([twins()[:3], points(2, 1)])

    def total(k: Kernel, X: jax.Array, Y: jax.Array) -> jax.Array:
        mixed = jnp.sum(jnp.sin(k.gram(X))) + jnp.sum(jnp.sin(k.gram(X, Y)))
        return mixed + jnp.sum(k.gram(X, X)) + jnp.sum(k.diag(X))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1, 2)))(as_arrays(kernel), X, Y)):
        assert np.all(np.isfinite(leaf))
    orders = [jax.grad(kernel.__call__)] + [jax.jacfwd(jax.grad(kernel.__call__, 1))] * smooth
    for x in (X[0], X[-1]):
        for order in orders:
            assert np.all(np.isfinite(jax.jit(order)(x, x)))


def check_against_differences(kernel: Kernel) -> None:
    """At distinct points, for the inputs and all parameters at once."""
    # The logarithm of a bias that is left out is not finite.
    free = jax.tree.map(lambda u: jnp.where(jnp.isfinite(u), u, 0), unconstrain(kernel))
    vector, restore = ravel_pytree(free)
    X, Y = points(3), points(2, 1)

    @jax.jit
    def values(u: jax.Array, X: jax.Array, Y: jax.Array) -> tuple[jax.Array, ...]:
        k = constrain(restore(u))
        return k.gram(X, Y), k.diag(X)

    check_grads(
        lambda *args: values(*(jnp.asarray(a) for a in args)),
        (vector, X, Y),
        order=1,
        modes=["rev"],
        atol=1e-6,
        rtol=1e-6,
    )


def check_contractions(kernel: Kernel) -> None:
    X, Y, V = points(4), points(5, 1), points(5, 2)
    w = jnp.linspace(0.1, 1.0, 5)

    @jax.jit
    def both(k: Kernel) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        def rows(argument: int) -> jax.Array:
            gradient = jax.grad(k.__call__, argument)
            return jax.vmap(lambda x: jax.vmap(lambda y: gradient(x, y))(Y))(X)

        fast = k.mean_gradient(X, Y, w), k.directional_gradient(X, Y, V)
        slow = jnp.einsum("m,nmd->nd", w, rows(1)), jnp.einsum("md,nmd->n", V, rows(0))
        return fast, slow

    for fast, slow in zip(*both(as_arrays(kernel)), strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-9)


def check_precision(make: Callable[[], Kernel], digits: float) -> None:
    grams = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            dtype = jnp.float64 if x64 else jnp.float32
            X, Y, kernel = points(6, dtype=dtype), points(3, 1, dtype), make()
            parts = jax.jit(lambda k, X, Y: (k.gram(X), k.gram(X, Y), k.diag(X), k(X[0], Y[0])))(
                as_arrays(kernel), X, Y
            )
            assert {part.dtype for part in parts} == {jnp.dtype(dtype)}
            grams.append(np.concatenate([np.ravel(part) for part in parts]))
    np.testing.assert_allclose(*grams, atol=digits * np.abs(grams[1]).max())


def check_transformations(kernel: Kernel) -> None:
    """The matrix under `jit`, and under `vmap` over kernels and inputs at once."""
    X = jnp.stack([points(5), points(5, 1)])
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.3 * leaf]), as_arrays(kernel))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], pair) for i in range(2)]
    compiled = jax.jit(lambda k, X: k.gram(X))
    expected = [each[0].gram(X[0]), compiled(each[1], X[1])]
    scale = max(float(jnp.max(jnp.abs(gram))) for gram in expected)
    np.testing.assert_allclose(compiled(each[0], X[0]), expected[0], atol=1e-12 * scale)
    batched = eqx.filter_vmap(lambda k, x: k.gram(x))(pair, X)
    np.testing.assert_allclose(batched, jnp.stack(expected), atol=1e-12 * scale)


def check_parameters(kernel: Kernel, names: Names) -> None:
    found = parameters(kernel)
    assert tuple((name, parameter.kind) for name, parameter in found.items()) == names
    free = unconstrain(kernel)
    back = constrain(free)
    assert jax.tree.structure(back) == jax.tree.structure(kernel)
    for name, parameter in parameters(back).items():
        np.testing.assert_allclose(parameter.value, found[name].value, rtol=1e-12)
        assert parameter.is_positive == (name.split(".")[-1] != "frequency")


@every_kernel
def test_matrices(name):
    with jax.enable_x64(True):
        check_matrices(ROWS[name].make())


@every_kernel
def test_derivatives_are_finite_at_coinciding_points_and_at_the_origin(name):
    check_derivatives(ROWS[name].make(), ROWS[name].smooth)


@every_kernel
def test_derivatives_agree_with_differences(name):
    with jax.enable_x64(True):
        check_against_differences(ROWS[name].make())


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
        (lambda kernel: check_precision(lambda: kernel, 1e-5), Single()),
        (lambda kernel: check_parameters(kernel, (VARIANCE,)), Wave()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Kernel) else "",
)
def test_the_checks_refuse_kernels_that_break_the_promise(check, kernel):
    with jax.enable_x64(True), pytest.raises(AssertionError):
        check(kernel)
