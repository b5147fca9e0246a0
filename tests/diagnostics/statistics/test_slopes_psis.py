"""Stein slopes and Pareto k-hat: closed forms, coverage, power, and ArviZ's own value."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from implicitppl.diagnostics import pareto_smooth, stein_slopes
from implicitppl.diagnostics._statistics.psis import k_hat_limit
from implicitppl.diagnostics._statistics.slopes import score_slope

COVARIANCE = jnp.array([[1.0, 0.6], [0.6, 2.0]])


def test_slopes_of_gaussians_are_the_diagonal_of_precision_times_covariance(key):
    z = random.normal(key, (20_000, 2)) @ jnp.diag(jnp.array([0.8, 1.5]))
    scores = -z @ jnp.linalg.inv(COVARIANCE)
    out = stein_slopes(scores, z)
    exact = jnp.diagonal(jnp.linalg.inv(COVARIANCE) @ jnp.diag(jnp.array([0.64, 2.25])))
    assert np.all(np.abs(out.slope - exact) < 4 * out.slope_se)
    assert np.all(np.abs(out.slope - 1) > 4 * out.slope_se)  # power: a wrong guide is seen
    # worst directions: eigenvalues of L^T S^-1 L
    root = jnp.diag(jnp.array([0.8, 1.5]))
    values = jnp.linalg.eigvalsh(root @ jnp.linalg.inv(COVARIANCE) @ root)
    assert abs(out.low_slope - values[0]) < 4 * out.low_se
    assert abs(out.high_slope - values[1]) < 4 * out.high_se


def test_mean_score_sees_a_shift(key):
    z = random.normal(key, (2000, 2))
    assert np.all(np.abs(stein_slopes(-z, z).mean / stein_slopes(-z, z).mean_se) < 4)
    out = stein_slopes(-(z + 0.3), z + 0.3)
    assert np.all(np.abs(out.mean / out.mean_se) > 4)


def test_standard_errors_cover(key):
    """Over 400 samples, slopes of a t-like target deviate by their standard error."""

    @jax.vmap
    def z_scores(key):
        z = random.t(key, 8.0, (400, 1))
        out = stein_slopes(-9 * z / (8 + z**2), z)
        return jnp.stack([out.z_scores[0], out.mean[0] / out.mean_se[0]])

    spread = np.asarray(jax.jit(z_scores)(random.split(key, 400))).std(0)
    np.testing.assert_allclose(spread, 1.0, atol=4 / np.sqrt(800) + 0.03)


def test_score_slope_of_a_wide_gaussian_guide(key):
    z = 2 * random.normal(key, (500, 3))  # guide variance 4, target variance 1
    slope_of = jax.jit(score_slope)
    out = slope_of(-z / 4, -z, z)
    np.testing.assert_allclose(out.slope, 0.25, rtol=1e-5)
    noisy = slope_of(-z / 4 + random.normal(random.key(1), z.shape), -z, z)
    assert 0 < abs(noisy.slope - 0.25) < 4 * noisy.se


def _arviz_psis(log_weights):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        if int(arviz.__version__.split(".")[0]) < 1:
            smooth, k = arviz.psislw(log_weights.copy())
        else:
            from arviz_stats.base import array_stats

            smooth, k = array_stats.psislw(-log_weights)  # takes log likelihoods
    return np.asarray(smooth), float(k)


@pytest.mark.parametrize("scale", [0.6, 1.0 / 0.9, 1.6, 3.0])
def test_k_hat_and_weights_equal_arviz(key, precision, scale):
    z = random.normal(key, (1500,), precision)
    log_weights = -0.5 * (z / scale) ** 2 + 0.5 * z**2
    smooth, k = _arviz_psis(np.asarray(log_weights, np.float64))
    out = pareto_smooth(log_weights)
    tol = 2e-3 if precision == jnp.float32 else 1e-8
    np.testing.assert_allclose(out.k_hat, k, atol=tol)
    np.testing.assert_allclose(out.log_weights, smooth, atol=2 * tol)
    np.testing.assert_allclose(out.ess, 1 / np.sum(np.exp(2 * smooth)), rtol=0.02)


def test_equal_weights_have_no_tail(key):
    noise = 1e-5 * random.normal(key, (1000,))
    assert pareto_smooth(noise).k_hat == 0
    np.testing.assert_allclose(pareto_smooth(noise).ess, 1000, rtol=1e-3)
    assert pareto_smooth(1e4 * noise).k_hat != 0


def test_k_hat_of_known_tails(key):
    """Weights `u^-k` are Pareto with shape k; the estimate finds it, whatever the constant."""
    u = random.uniform(key, (20_000,))
    for k in (0.3, 0.9):
        out = pareto_smooth(-k * jnp.log(u) + 7.0)
        assert abs(out.k_hat - k) < 0.12
    assert k_hat_limit(1000) == pytest.approx(2 / 3)
    assert k_hat_limit(10**6) == 0.7


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jnp.zeros((30, 2)), r"shape \(S,\)|type-check"),
        (jnp.zeros(10), "at least 25 entries; got 10"),
        (jnp.full(30, jnp.inf), "must be finite"),
    ],
)
def test_psis_bad_input(value, message):
    with pytest.raises(Exception, match=f"(?i){message}"):
        pareto_smooth(value)


def test_slopes_bad_input():
    with pytest.raises(ValueError, match="at least 8 rows; got 2"):
        stein_slopes(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
