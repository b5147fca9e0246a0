"""Gaussian processes with a weight space, and random features of kernels."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from implicitppl.kernels import (
    RBF,
    Matern12,
    Matern32,
    Matern52,
    Periodic,
)
from implicitppl.processes import AbstractGaussianProcess, FeatureProcess, RandomFeatures

KEY = jax.random.key(0)
X = np.linspace(-1, 1, 4)[:, None]


def cubic(x):
    return jnp.concatenate([jnp.ones_like(x), x, x**2, x**3], axis=1)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


FACTOR = np.tril(np.random.default_rng(0).normal(size=(4, 4)), -1) + np.diag([0.5, 1.0, 1.5, 2.0])


@pytest.fixture
def process():
    return FeatureProcess(cubic, jnp.arange(4.0), FACTOR)


def test_moments_are_those_of_the_weights(process):
    phi = X ** np.arange(4)
    mean, covariance = phi @ np.arange(4.0), phi @ FACTOR @ FACTOR.T @ phi.T
    np.testing.assert_allclose(process.scale_tril, FACTOR, rtol=1e-12)
    assert isinstance(process, AbstractGaussianProcess)
    y = np.arange(4.0)

    @eqx.filter_jit
    def evaluate(process, x, y):
        matrices = process.covariance(x), process.covariance(x, x[:2])
        return process.mean_at(x), *matrices, process(x).variance, process(x).log_prob(y)

    found_mean, square, rectangle, variance, log_prob = evaluate(process, X, y)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(square, covariance, rtol=1e-12)
    np.testing.assert_allclose(rectangle, covariance[:, :2], rtol=1e-12)
    np.testing.assert_allclose(variance, np.diag(covariance), rtol=1e-12)
    dense = multivariate_normal(mean, covariance)
    assert float(log_prob) == pytest.approx(dense.logpdf(y), rel=1e-8)


def test_draws_have_the_stated_moments_and_noise_is_added(process):
    num = 20_000
    for noise, values in ((0.0, process.sample(KEY, X, num)), (0.7, None)):
        draws = process(X, noise).sample(KEY, (num,)) if values is None else values
        draws, mean = np.asarray(draws), np.asarray(process.mean_at(X))
        covariance = np.asarray(process.covariance(X)) + noise**2 * np.eye(4)
        spread = np.diag(covariance)
        errors = np.sqrt((covariance**2 + spread[:, None] * spread[None, :]) / num)
        assert np.max(np.abs(draws.mean(0) - mean) / np.sqrt(spread / num)) < 4
        assert np.max(np.abs(np.cov(draws.T) - covariance) / errors) < 4
        assert np.max(np.abs(np.cov(draws.T) - 1.1 * covariance) / errors) > 4


def test_draws_stay_on_the_plane_of_the_features_at_many_points(process):
    many = jnp.linspace(-1, 1, 50)[:, None]
    draws = process.sample(KEY, many, 3)
    weights, *_ = jnp.linalg.lstsq(cubic(many), draws.T)
    np.testing.assert_allclose(cubic(many) @ weights, draws.T, atol=1e-10)
    np.testing.assert_array_equal(process(many).sample(KEY, (3,)), draws)


def test_any_step_leaves_a_factor_and_slopes_are_finite(process):
    def total(process):
        return jnp.sum(process(X).sample(KEY)) + jnp.sum(process(X).variance)

    slopes = eqx.filter_grad(total)(process)
    stepped = eqx.apply_updates(process, jax.tree.map(lambda g: -10 * g, slopes))
    assert jnp.all(jnp.isfinite(stepped.scale_tril)) and jnp.all(jnp.diag(stepped.scale_tril) > 0)
    assert jnp.all(jnp.triu(stepped.scale_tril, 1) == 0)
    assert jnp.any(slopes.loc != 0) and jnp.any(slopes.log_diagonal != 0)


KERNELS = {
    "rbf": RBF(0.7, 2.0),
    "matern12": Matern12(0.7, 2.0),
    "matern32": Matern32(jnp.array([0.7, 1.4]), 2.0),
    "matern52": 3.0 * Matern52(0.7, 2.0),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_features_approach_the_kernel_as_one_over_root_num(kernel):
    """Over 200 sets of features, the mean square error is (v^2 + v k(2(x - y)) - 2 k^2) / 2m."""
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(6, 2)))
    gram = jax.jit(lambda x: kernel.gram(x))
    exact, doubled = np.asarray(gram(x)), np.asarray(gram(2 * x))
    variance = exact[0, 0]
    for num in (10, 160):

        def error(key, num=num):
            features = RandomFeatures.from_kernel(kernel, 2, num, key=key)(x)
            return features @ features.T - exact

        errors = np.asarray(jax.jit(jax.vmap(error))(jax.random.split(KEY, 200)))
        expected = (variance**2 + variance * doubled - 2 * exact**2) / num
        standard = np.std(errors, axis=0) / np.sqrt(200)
        away = np.where(expected > 1e-6, standard, 1.0)  # exact on the diagonal
        assert np.max(np.abs(errors.mean(0)) / away) < 4
        ratio = np.mean(errors**2) / np.mean(expected)
        assert 0.8 < ratio < 1.25  # 0.5 or 2 where the rate were off by the root of 2
        np.testing.assert_allclose(np.diagonal(errors, axis1=1, axis2=2), 0, atol=1e-10)
    wrong = np.asarray(gram(1.5 * x))
    assert np.max(np.abs(errors.mean(0) + exact - wrong) / away) > 4


def test_a_process_of_features_is_nearly_that_of_the_kernel():
    features = RandomFeatures.from_kernel(Matern32(0.5), 1, 400, key=KEY)
    process = FeatureProcess(features)
    kernel, x = Matern32(0.5), jnp.asarray(X)
    evaluate = jax.jit(lambda x: (process.covariance(x), kernel.gram(x), process(x).variance))
    covariance, gram, variance = evaluate(x)
    np.testing.assert_allclose(covariance, gram, atol=0.2)
    np.testing.assert_allclose(variance, 1, rtol=1e-12)
    slope = jax.jit(jax.grad(lambda f: jnp.sum(FeatureProcess(f).sample(KEY, X))))(features)
    assert np.all(np.asarray(slope.waves) == 0) and np.all(np.asarray(slope.log_lengthscale) != 0)


BAD = {
    "features": (lambda: FeatureProcess(3, jnp.zeros(2)), "`features` must be a function"),
    "no number": (lambda: FeatureProcess(cubic), "give `loc`"),
    "loc": (lambda: FeatureProcess(cubic, jnp.zeros((2, 2))), r"`loc` must be \(p,\)"),
    "factor": (
        lambda: FeatureProcess(cubic, jnp.zeros(4), jnp.eye(3)),
        r"`scale_tril` must be \(4, 4\); got \(3, 3\)",
    ),
    "diagonal": (
        lambda: FeatureProcess(cubic, jnp.zeros(4), -jnp.eye(4)),
        "`scale_tril` must be finite; 4 of 4 .* diagonal must be positive",
    ),
    "shape": (
        lambda: FeatureProcess(cubic, jnp.zeros(3))(X).mean,
        r"`features` must return \(4, 3\) at 4 points; got \(4, 4\)",
    ),
    "kernel": (
        lambda: RandomFeatures.from_kernel(Periodic(), 1, 10, key=KEY),
        "`kernel` must be RBF, Matern12.* got Periodic",
    ),
    "sum": (
        lambda: RandomFeatures.from_kernel(RBF() + RBF(), 1, 10, key=KEY),
        "got Sum. Of a sum, add the processes",
    ),
    "odd": (
        lambda: RandomFeatures.from_kernel(RBF(), 1, 7, key=KEY),
        "`num_features` must be even and positive.* got 7",
    ),
    "lengthscale": (
        lambda: RandomFeatures.from_kernel(RBF(jnp.ones(3)), 2, 8, key=KEY),
        r"`lengthscale` must be a number or \(2,\); got \(3,\)",
    ),
    "coordinates": (
        lambda: RandomFeatures.from_kernel(RBF(), 2, 8, key=KEY)(jnp.asarray(X)),
        "must have 2 coordinates",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
