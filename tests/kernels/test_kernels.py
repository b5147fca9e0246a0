"""Values, algebra and derivatives; one row per kernel."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.gaussian_process import kernels as sk

from implicitppl.kernels import (
    RBF,
    InverseMultiquadric,
    Kernel,
    Matern12,
    Matern32,
    Matern52,
    RationalQuadratic,
)

RADIAL: dict[str, Any] = {
    "RBF": (RBF, lambda scale: sk.RBF(scale)),
    "InverseMultiquadric": (InverseMultiquadric, None),
    "RationalQuadratic": (RationalQuadratic, lambda scale: sk.RationalQuadratic(scale, 1.0)),
    "Matern12": (Matern12, lambda scale: sk.Matern(scale, nu=0.5)),
    "Matern32": (Matern32, lambda scale: sk.Matern(scale, nu=1.5)),
    "Matern52": (Matern52, lambda scale: sk.Matern(scale, nu=2.5)),
}
COMPOSITE = {
    "sum": lambda: RBF(0.7) + Matern32(1.3, 2.0),
    "product": lambda: RBF(0.7) * RationalQuadratic(1.3),
    "scaled": lambda: 2.0 * Matern52(0.8) * 0.5,
    "active": lambda: RBF(0.7).on((0, 2)) + InverseMultiquadric().on([1]),
}
KERNELS = {name: lambda family=row[0]: family(0.8, 1.7) for name, row in RADIAL.items()} | COMPOSITE
every_radial = pytest.mark.parametrize("name", RADIAL)
every_kernel = pytest.mark.parametrize("name", KERNELS)


def _points(dtype: jnp.dtype, num: int = 6, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 3)), dtype)


@pytest.mark.parametrize("name", [n for n, row in RADIAL.items() if row[1] is not None])
def test_gram_agrees_with_scikit_learn(name, precision):
    family, peer = RADIAL[name]
    X, Y = _points(precision), _points(precision, 4, 1)
    expected = 1.7 * peer(0.8)(np.asarray(X, np.float64), np.asarray(Y, np.float64))
    gram = family(0.8, 1.7).gram(X, Y)
    assert gram.dtype == precision
    np.testing.assert_allclose(gram, expected, atol=100 * float(jnp.finfo(precision).eps))


def test_inverse_multiquadric_and_exponent_in_closed_form():
    x, y = jnp.array([0.0, 3.0]), jnp.array([4.0, 0.0])  # |x - y| = 5
    assert float(InverseMultiquadric(2.0, 3.0)(x, y)) == pytest.approx(3 / np.sqrt(1 + 25 / 4))
    assert float(InverseMultiquadric(5.0, exponent=2.0)(x, y)) == pytest.approx(0.25)
    assert float(RationalQuadratic(5.0, mixture=0.5)(x, y)) == pytest.approx(2**-0.5)


@every_kernel
def test_gram_and_diag_agree_with_the_kernel_on_points(name):
    kernel = KERNELS[name]()
    at_points, gram, diag = (eqx.filter_jit(f) for f in (kernel, kernel.gram, kernel.diag))
    X, Y = np.asarray(_points(jnp.float32)), np.asarray(_points(jnp.float32, 4, 1))
    for other in (X, Y):
        slow = np.array([[at_points(x, y) for y in other] for x in X])
        np.testing.assert_allclose(gram(X, other), slow, atol=2e-5)
    np.testing.assert_allclose(gram(X), gram(X, X), atol=1e-3)
    np.testing.assert_allclose(diag(X), [at_points(x, x) for x in X], rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(gram(X)), diag(X), rtol=1e-6)


@every_kernel
def test_gram_is_positive_semi_definite(name):
    with jax.enable_x64(True):
        gram = eqx.filter_jit(KERNELS[name]().gram)(_points(jnp.float64, 20))
        assert np.linalg.eigvalsh(gram)[0] > -1e-12


@every_radial
def test_a_lengthscale_for_each_coordinate(name):
    family = RADIAL[name][0]
    scales = jnp.array([0.5, 1.0, 2.0])
    X, Y = _points(jnp.float32), _points(jnp.float32, 4, 1)
    expected = family(1.0).gram(X / scales[None, :], Y / scales[None, :])
    np.testing.assert_allclose(family(scales).gram(X, Y), expected, atol=1e-5)
    np.testing.assert_allclose(family(scales)(X[0], Y[0]), expected[0, 0], atol=1e-5)


@every_kernel
def test_derivatives_at_distinct_points(name):
    with jax.enable_x64(True):
        kernel = KERNELS[name]()
        x, y = _points(jnp.float64, 2)

        @jax.jit
        def at_arrays(a: jax.Array, b: jax.Array) -> jax.Array:
            return kernel(jnp.asarray(a), jnp.asarray(b))

        check_grads(at_arrays, (x, y), order=2, atol=1e-6, rtol=1e-6)


@every_kernel
def test_derivatives_at_coinciding_points_are_finite_and_zero(name):
    kernel, X = KERNELS[name](), _points(jnp.float32)
    for gradient in jax.jit(jax.grad(lambda *p: kernel(*p), (0, 1)))(X[0], X[0]):
        np.testing.assert_array_equal(gradient, np.zeros(3))

    twins = np.concatenate([X[:1], X])
    slopes = jax.jit(jax.grad(lambda k, a, b: jnp.sum(k.gram(a) + k.gram(a, b)), (0, 1, 2)))
    leaves = jax.tree.leaves(slopes(kernel, twins, twins))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


@pytest.mark.parametrize("name", [name for name in RADIAL if name != "Matern12"])
def test_second_derivative_at_coinciding_points(name):
    # Hess_x k(x, y) = 2 v phi'(0) / l^2 I at x = y, where sqrt would give NaN or 0.
    kernel = RADIAL[name][0](0.8, 1.7)
    slope = {"RBF": -0.5, "RationalQuadratic": -0.5, "InverseMultiquadric": -0.5}
    slope |= {"Matern32": -1.5, "Matern52": -5 / 6}
    x = jnp.ones(3)
    expected = 2 * 1.7 * slope[name] / 0.8**2 * np.eye(3)
    hessian = jax.jit(jax.jacfwd(jax.grad(lambda *p: kernel(*p))))(x, x)
    np.testing.assert_allclose(hessian, expected, rtol=1e-5, atol=1e-6)


@every_kernel
def test_gradient_contractions_agree_with_differentiation_of_the_kernel(name):
    with jax.enable_x64(True):
        kernel = KERNELS[name]()
        X, Y, V = (_points(jnp.float64, 5, seed) for seed in (0, 1, 2))
        w = jnp.asarray(np.random.default_rng(3).uniform(size=5))
        slope = jax.grad(lambda *p: kernel(*p), 1)
        rows_of = jax.jit(jax.vmap(jax.vmap(slope, (None, 0)), (0, None)))
        mean, directional = map(eqx.filter_jit, (kernel.mean_gradient, kernel.directional_gradient))
        for other in (Y, X):
            rows = np.asarray(rows_of(X, other))
            np.testing.assert_allclose(
                mean(X, other, w), np.einsum("m,nmd->nd", w, rows), atol=1e-10
            )
            np.testing.assert_allclose(
                directional(X, other, V), -np.einsum("md,nmd->n", V, rows), atol=1e-10
            )
        np.testing.assert_allclose(  # and the generic fall-back is the same thing
            eqx.filter_jit(Kernel.mean_gradient)(kernel, X, Y, w), mean(X, Y, w), atol=1e-10
        )


def test_distant_points_keep_their_digits_in_float32():
    X = _points(jnp.float32, 50)
    near = RBF(1.0).gram(X)
    shifted = X + 100  # rounds X itself to 7.6e-6
    np.testing.assert_allclose(RBF(1.0).gram(shifted), near, atol=1e-4)
    ard = RBF(jnp.array([1.0, 1.0, 1.0])).gram(shifted, shifted)
    np.testing.assert_allclose(ard, near, atol=1e-4)


def test_no_array_of_shape_n_m_d():
    num, dimension = 37, 11
    X = jnp.zeros((num, dimension))
    for name, make in KERNELS.items():
        if name in ("product", "active"):
            continue  # the product falls back to one query at a time, `active` fixes D
        kernel = make()
        text = str(
            jax.make_jaxpr(lambda a, k=kernel: (k.gram(a), k.mean_gradient(a, a, a[:, 0])))(X)
        )
        assert f"[{num},{num}]" in text
        assert f"{num},{num},{dimension}" not in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RBF(0.0), r"`lengthscale` must be positive; got 0.0"),
        (lambda: RBF(jnp.array([1.0, -1.0])), r"`lengthscale` must be positive"),
        (lambda: Matern32(1.0, -2.0), r"`variance` must be positive; got -2.0"),
        (lambda: InverseMultiquadric(exponent=0.0), r"`exponent` must be positive; got 0.0"),
        (lambda: RationalQuadratic(mixture=-1.0), r"`mixture` must be positive; got -1.0"),
        (lambda: -1.0 * RBF(), r"`scale` must be non-negative; got -1.0"),
        (lambda: RBF().on(()), r"`dims` must be distinct non-negative coordinates; got \(\)"),
        (lambda: RBF().on((4,))(jnp.zeros(3), jnp.zeros(3)), r"`dims` must be below D = 3"),
        (
            lambda: RBF(jnp.ones(2)).gram(jnp.zeros((4, 3))),
            r"`lengthscale` must be a scalar or one",
        ),
    ],
)
def test_errors_name_argument_rule_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rational_quadratic_of_a_large_mixture_is_an_rbf(precision):
    X, Y = _points(precision), _points(precision, 4, 1)
    found, expected = RationalQuadratic(0.8, mixture=1e12).gram(X, Y), RBF(0.8).gram(X, Y)
    np.testing.assert_allclose(found, expected, atol=20 * float(jnp.finfo(precision).eps))
