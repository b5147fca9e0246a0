"""The collapsed bound: Titsias' formula in dense NumPy, and the exact process as its limit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from implicitppl.gp import GaussianProcess, SparseGaussianProcess, fit
from implicitppl.kernels import RBF, Matern32, White

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, size=(40, 2))
Y = np.sin(2 * X[:, 0]) + X[:, 1] + 0.3 * RNG.normal(size=40)
Z = X[:7] + 0.1
SCALE = np.linspace(0.2, 0.5, 40)
QUERIES = RNG.uniform(-3, 3, size=(5, 2))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def process():
    return GaussianProcess(RBF(jnp.array([0.8, 1.5]), 1.3) + 0.5 * Matern32(0.7), 0.4)


def _dense(process):
    """Bound, mean and covariance at the queries by the formulas with every matrix written out."""
    points = np.concatenate([Z, X, QUERIES])
    whole = np.asarray(eqx.filter_jit(process.kernel.gram)(points, points))
    z, x, queries = slice(7), slice(7, 47), slice(47, 52)
    inner, cross = whole[z, z], whole[z, x]
    nystrom = cross.T @ np.linalg.solve(inner, cross)
    noise = np.diag(SCALE**2)
    density = multivariate_normal(np.full(40, 0.4), nystrom + noise, allow_singular=True)
    lost = np.trace(np.linalg.solve(noise, whole[x, x] - nystrom))
    best = inner + cross @ np.linalg.solve(noise, cross.T)
    ahead = whole[z, queries]
    mean = 0.4 + ahead.T @ np.linalg.solve(best, cross @ np.linalg.solve(noise, Y - 0.4))
    covariance = whole[queries, queries]
    covariance = covariance - ahead.T @ (np.linalg.inv(inner) - np.linalg.inv(best)) @ ahead
    return density.logpdf(Y) - 0.5 * lost, mean, covariance


def test_bound_and_posterior_are_those_of_the_paper(process):
    sparse = SparseGaussianProcess(process, Z)
    bound, mean, covariance = _dense(process)
    assert float(sparse.log_evidence(X, Y, SCALE)) == pytest.approx(bound, rel=1e-9)
    values = sparse.condition(X, Y, SCALE)(QUERIES)
    np.testing.assert_allclose(values.mean, mean, atol=1e-9)
    np.testing.assert_allclose(values.covariance_matrix, covariance, atol=1e-9)
    np.testing.assert_allclose(values.variance, np.diag(covariance), atol=1e-9)


def test_inducing_points_at_the_inputs_give_the_exact_process(process):
    sparse, observed = SparseGaussianProcess(process, X), np.arange(40) % 3 > 0
    exact = process.log_evidence(X, Y, SCALE, observed=observed)
    bound = sparse.log_evidence(X, Y, SCALE, observed=observed)
    assert float(bound) == pytest.approx(float(exact), abs=1e-7)
    ours = sparse.condition(X, Y, SCALE, observed=observed)(QUERIES, 0.3)
    true = process.condition(X, Y, SCALE, observed=observed)(QUERIES, 0.3)
    np.testing.assert_allclose(ours.mean, true.mean, atol=1e-7)
    np.testing.assert_allclose(ours.variance, true.variance, atol=1e-7)


def test_white_noise_of_the_kernel_is_noise_of_the_outputs(process):
    """With inducing points at the inputs the bound is the evidence, white noise included."""
    noisy = GaussianProcess(process.kernel + White(0.3), 0.4)
    sparse = SparseGaussianProcess(noisy, X)
    exact = noisy.log_evidence(X, Y, SCALE)
    assert float(sparse.log_evidence(X, Y, SCALE)) == pytest.approx(float(exact), abs=1e-6)
    ours, true = sparse.condition(X, Y, SCALE)(QUERIES), noisy.condition(X, Y, SCALE)(QUERIES)
    np.testing.assert_allclose(ours.mean, true.mean, atol=1e-6)
    np.testing.assert_allclose(ours.variance, true.variance, atol=1e-6)


def test_the_bound_rises_with_every_point_and_stays_below_the_evidence(process):
    bounds = [
        float(SparseGaussianProcess(process, X[:m]).log_evidence(X, Y, SCALE))
        for m in (1, 5, 20, 40)
    ]
    assert np.all(np.diff(bounds) > 0)
    assert bounds[-1] <= float(process.log_evidence(X, Y, SCALE)) + 1e-6


def test_fit_moves_inducing_points_unless_they_are_fixed(process):
    sparse = SparseGaussianProcess(process, Z)
    free = fit(sparse, X, Y, 0.3, num_steps=60)
    held = fit(sparse, X, Y, 0.3, num_steps=60, fixed=["inducing"])
    np.testing.assert_array_equal(held.process.inducing, Z)
    assert float(free.log_evidence) > float(held.log_evidence)
    assert float(held.log_evidence) > -float(held.losses[0])


def test_bad_input_is_refused(process):
    with pytest.raises(ValueError, match="without observations"):
        SparseGaussianProcess(process.condition(X, Y, 0.1), Z)
    with pytest.raises(ValueError, match="`inducing` must be finite"):
        SparseGaussianProcess(process, Z * np.nan)
    with pytest.raises(ValueError, match=r"`noise_scale` must be positive; got 0\.0"):
        SparseGaussianProcess(process, Z).log_evidence(X, Y, 0.0)
