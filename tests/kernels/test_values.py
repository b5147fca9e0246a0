"""Values against scikit-learn, against slow NumPy versions of the formulas, and in closed form."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import kernels as sk
from sklearn.metrics.pairwise import polynomial_kernel

from implicitppl.kernels import (
    RBF,
    ArcCosine,
    Constant,
    Cosine,
    Kernel,
    Linear,
    Periodic,
    Polynomial,
    SpectralMixture,
    White,
)

Pair = Callable[[np.ndarray, np.ndarray], float]
ARD = np.array([0.6, 1.1, 1.9])
WEIGHTS = np.array([0.7, 1.2])
MEANS = np.array([[0.3, 0.1, 0.5], [0.05, 0.4, 0.2]])
SCALES = np.array([[0.05, 0.1, 0.02], [0.2, 0.03, 0.1]])


def _points(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 3))


def _mixture(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for w, means, scales in zip(WEIGHTS, MEANS, SCALES, strict=True):
        for tau, mean, scale in zip(x - y, means, scales, strict=True):
            w *= math.exp(-2 * math.pi**2 * tau**2 * scale**2) * math.cos(2 * math.pi * tau * mean)
        total += w
    return total


def _arc_cosine(order: int, bias: float) -> Pair:
    """By quadrature: 2 E[h(a) h(b)] over the plane of the Gaussian pair (a, b), in polar angle.

    With (a, b) = rho (r cos(phi), r' cos(phi - theta)), the radius integrates in closed form:
    E[rho^(2 n)] = 2^n n! and the angle is uniform.
    """

    def value(x: np.ndarray, y: np.ndarray) -> float:
        z, other = (np.append(np.sqrt(ARD) * p, np.sqrt(bias)) for p in (x, y))
        r, r_other = np.linalg.norm(z), np.linalg.norm(other)
        theta = np.arccos(np.clip(z @ other / (r * r_other), -1, 1))
        low, high = theta - np.pi / 2, np.pi / 2  # both cosines positive
        nodes, weights = np.polynomial.legendre.leggauss(40)
        phi = (high + low) / 2 + (high - low) / 2 * nodes
        heights = (np.cos(phi) * np.cos(phi - theta)) ** order
        mean = weights @ heights * (high - low) / 2 / (2 * np.pi)
        return 2 * (r * r_other) ** order * 2**order * math.factorial(order) * mean

    return value


# A row: the kernel and the formula for one pair, in NumPy.
FORMULAS: dict[str, tuple[Callable[[], Kernel], Pair]] = {
    "Periodic": (
        lambda: Periodic(jnp.asarray(ARD), 1.7, jnp.asarray(ARD[::-1].copy())),
        lambda x, y: 1.7 * math.exp(-2 * np.sum((np.sin(np.pi * (x - y) / ARD[::-1]) / ARD) ** 2)),
    ),
    "Cosine": (
        lambda: Cosine(jnp.asarray([0.3, -0.2, 1.5]), 1.7),
        lambda x, y: 1.7 * math.cos(2 * math.pi * (np.array([0.3, -0.2, 1.5]) @ (x - y))),
    ),
    "Cosine of one frequency": (
        lambda: Cosine(0.4),
        lambda x, y: math.cos(0.8 * math.pi * np.sum(x - y)),
    ),
    "Linear": (lambda: Linear(jnp.asarray(ARD)), lambda x, y: x @ (ARD * y)),
    "Polynomial": (
        lambda: Polynomial(jnp.asarray(ARD), 0.3, 3),
        lambda x, y: (x @ (ARD * y) + 0.3) ** 3,
    ),
    "SpectralMixture": (lambda: SpectralMixture(WEIGHTS, MEANS, SCALES), _mixture),
    "Constant": (lambda: Constant(1.7), lambda x, y: 1.7),
} | {
    f"ArcCosine {order}, {bias}": (
        lambda order=order, bias=bias: ArcCosine(1.0, jnp.asarray(ARD), bias, order),
        _arc_cosine(order, bias),
    )
    for order, bias in itertools.product((0, 1, 2), (0.0, 0.5))
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_agree_with_the_formula_in_numpy(name, precision):
    make, formula = FORMULAS[name]
    X, Y = _points(7), _points(4, 1)
    expected = np.array([[formula(x, y) for y in Y] for x in X])
    kernel, points = make(), (jnp.asarray(X, precision), jnp.asarray(Y, precision))
    tolerance = 1e-5 if precision == jnp.float32 else 1e-12
    scale = np.abs(expected).max()
    gram = jax.jit(lambda X, Y: kernel.gram(X, Y))(*points)
    assert gram.dtype == precision
    np.testing.assert_allclose(gram / scale, expected / scale, atol=tolerance)
    single = jax.jit(jax.vmap(jax.vmap(kernel, (None, 0)), (0, None)))(*points)
    assert single.dtype == precision
    np.testing.assert_allclose(single / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize(
    ("kernel", "peer"),
    [
        (lambda: Periodic(0.8, 1.7, 2.3), lambda X, Y: 1.7 * sk.ExpSineSquared(0.8, 2.3)(X, Y)),
        (lambda: Linear(), lambda X, Y: sk.DotProduct(0.0)(X, Y)),
        (lambda: Linear() + Constant(0.49), lambda X, Y: sk.DotProduct(0.7)(X, Y)),
        (
            lambda: Polynomial(0.4, 0.7, 3),
            lambda X, Y: polynomial_kernel(X, X if Y is None else Y, 3, 0.4, 0.7),
        ),
        (lambda: White(1.7), lambda X, Y: sk.WhiteKernel(1.7)(X, Y)),
        (lambda: RBF(0.8) + White(0.3), lambda X, Y: (sk.RBF(0.8) + sk.WhiteKernel(0.3))(X, Y)),
        (lambda: RBF(0.8) * Constant(2.0), lambda X, Y: (2.0 * sk.RBF(0.8))(X, Y)),
    ],
    ids=["Periodic", "Linear", "Linear + Constant", "Polynomial", "White", "sum", "product"],
)
def test_values_agree_with_scikit_learn(kernel, peer):
    X, Y = _points(7), _points(4, 1)
    if peer(X, X).shape == (7, 7) and isinstance(kernel(), Periodic):
        X, Y = X[:, :1], Y[:, :1]  # its sin^2 is of the Euclidean distance: the same for D = 1 only
    with jax.enable_x64(True):
        gram = kernel().gram
        np.testing.assert_allclose(gram(jnp.asarray(X), jnp.asarray(Y)), peer(X, Y), atol=1e-12)
        np.testing.assert_allclose(gram(jnp.asarray(X)), peer(X, None), atol=1e-12)


def test_white_noise_belongs_to_rows_through_all_algebra():
    X = jnp.asarray(_points(4), jnp.float32)
    twins = jnp.concatenate([X, X])
    composed = (2.0 * White(0.5) * Constant(3.0) + White(1.0)).on((0, 2))
    np.testing.assert_allclose(composed.gram(twins), 4 * np.eye(8))
    np.testing.assert_allclose(composed.diag(twins), np.full(8, 4.0))
    assert not np.any(composed.gram(X, X)) and float(composed(X[0], X[0])) == 0


def test_rectified_units_have_the_covariance_of_order_one():
    # Closed form: E[relu(w)^2] = 1/2, and opposite directions never fire together.
    kernel = ArcCosine(bias_variance=0.0)
    x = jnp.array([3.0, 4.0])
    assert float(kernel(x, x)) == pytest.approx(25.0)
    assert float(kernel(x, -x)) == pytest.approx(0.0, abs=1e-6)
    assert float(kernel(x, 2 * x)) == pytest.approx(50.0)
    assert float(ArcCosine(bias_variance=0.0, order=2)(x, x)) == pytest.approx(3 * 625.0)


def test_a_polynomial_of_degree_one_is_linear():
    X = jnp.asarray(_points(5), jnp.float32)
    linear = Linear(0.4) + Constant(0.7)
    np.testing.assert_allclose(Polynomial(0.4, 0.7, 1).gram(X), linear.gram(X), rtol=1e-5)


def test_one_wide_component_is_an_rbf():
    X = jnp.asarray(_points(5)[:, :1], jnp.float32)
    mixture = SpectralMixture([2.0], [[1e-9]], [[1 / (2 * np.pi * 0.7)]])
    np.testing.assert_allclose(mixture.gram(X), RBF(0.7, 2.0).gram(X), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Periodic(period=0.0), r"`period` must be positive; got 0.0"),
        (lambda: Periodic(lengthscale=-1.0), r"`lengthscale` must be positive; got -1.0"),
        (
            lambda: Periodic(period=jnp.ones(2)).gram(jnp.zeros((4, 3))),
            r"`period` must be a scalar",
        ),
        (lambda: Periodic(variance=jnp.ones(2)).gram(jnp.zeros((4, 3))), r"`variance` must be a s"),
        (lambda: Cosine(variance=0.0), r"`variance` must be positive; got 0.0"),
        (
            lambda: Cosine(jnp.ones(2))(jnp.zeros(3), jnp.zeros(3)),
            r"`frequency` must be a scalar or one for each of the D = 3 coordinates; got shape \(2",
        ),
        (lambda: Linear(-1.0), r"`variance` must be positive; got -1.0"),
        (lambda: Linear(jnp.ones(2)).diag(jnp.zeros((4, 3))), r"`variance` must be a scalar or"),
        (lambda: Polynomial(degree=0), r"`degree` must be an integer of at least 1; got 0"),
        (lambda: Polynomial(offset=-1.0), r"`offset` must be non-negative; got -1.0"),
        (lambda: ArcCosine(order=3), r"`order` must be 0, 1 or 2; got 3"),
        (lambda: ArcCosine(bias_variance=-1.0), r"`bias_variance` must be non-negative; got -1.0"),
        (lambda: ArcCosine(weight_variance=0.0), r"`weight_variance` must be positive; got 0.0"),
        (lambda: Constant(-1.0), r"`variance` must be positive; got -1.0"),
        (lambda: White(0.0), r"`variance` must be positive; got 0.0"),
        (
            lambda: SpectralMixture([1.0], [[1.0, 2.0]], [[1.0]]),
            r"must be \(Q,\), \(Q, D\) and \(Q, D\); got shapes \(1,\), \(1, 2\) and \(1, 1\)",
        ),
        (lambda: SpectralMixture([1.0, 1.0]), r"got shapes \(2,\), \(1, 1\) and \(1, 1\)"),
        (lambda: SpectralMixture([1.0], [[0.0]], [[1.0]]), r"`means` must be positive"),
        (lambda: SpectralMixture().gram(jnp.zeros((4, 3))), r"`means` must have D = 3 columns"),
    ],
)
def test_errors_name_argument_rule_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
