"""The Gaussian start: exact where the target is Gaussian, stationary where it is not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from implicitppl.infer._guides.gaussian import GaussianFit, fit_gaussian

KEY = jax.random.key(0)


def gaussian_target(size: int, condition: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and factor of a Gaussian whose scales are spread over sqrt(condition), rotated."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
    scales = np.geomspace(1.0, condition**0.5, size) / condition**0.25
    tril = np.linalg.cholesky((rotation * scales**2) @ rotation.T)
    return 50.0 * rng.normal(size=size), tril


@jax.jit
def fit_to_gaussian(loc: jax.Array, tril: jax.Array, start: jax.Array) -> GaussianFit:
    def log_density(z: jax.Array, key: jax.Array) -> jax.Array:
        del key
        u = jax.scipy.linalg.solve_triangular(tril, z - loc, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diag(tril)))
        return -0.5 * jnp.sum(u**2) - 0.5 * z.size * np.log(2 * np.pi) - log_det

    return fit_gaussian(KEY, log_density, start[None])


def run(log_density: Callable, starts: np.ndarray, **options) -> GaussianFit:
    return jax.jit(lambda starts: fit_gaussian(KEY, log_density, starts, **options))(starts)


@pytest.mark.smoke
@pytest.mark.parametrize("condition", [1.0, 1e6])
def test_a_gaussian_is_found_exactly_however_far_its_scales_are_apart(condition):
    loc, tril = gaussian_target(5, condition)
    fit = fit_to_gaussian(loc, tril, np.zeros(5))
    sd = np.sqrt(np.diag(tril @ tril.T))
    assert np.all(np.abs(np.asarray(fit.loc) - loc) < 2e-2 * sd)
    ratio = np.linalg.solve(tril, np.asarray(fit.scale_tril, np.float64))
    np.testing.assert_allclose(ratio @ ratio.T, np.eye(5), atol=2e-2)
    assert abs(float(fit.loss)) < 0.02, "the target is normalised: the loss is the KL"
    assert bool(fit.converged)


def test_it_is_stationary_for_a_target_that_is_not_gaussian():
    """1-d log p = -exp(z) + 2 z: the optimum of KL over mean and sd, by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def kl(m_log_s: np.ndarray) -> float:
        m, s = m_log_s[0], np.exp(m_log_s[1])
        z = m + s * nodes
        return float(-m_log_s[1] - np.sum(weights * (2 * z - np.exp(z))))

    best = optimize.minimize(kl, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6}).x
    fit = run(lambda z, key: jnp.sum(2 * z - jnp.exp(z)), np.zeros((1, 1)))
    assert abs(float(fit.loc[0]) - best[0]) < 0.03 * np.exp(best[1])
    assert abs(float(fit.scale_tril[0, 0]) / np.exp(best[1]) - 1) < 0.03
    own_sd = special.polygamma(1, 2) ** 0.5  # p is a log-gamma distribution of shape 2
    assert abs(own_sd / np.exp(best[1]) - 1) > 0.03, "matching moments must not pass"


def test_of_several_starts_the_best_mode_is_kept():
    def log_density(z: jax.Array, key: jax.Array) -> jax.Array:
        del key
        heavy = jnp.log(0.8) - 0.5 * jnp.sum((z - 10.0) ** 2)
        light = jnp.log(0.2) - 0.5 * jnp.sum((z + 10.0) ** 2)
        return jnp.logaddexp(heavy, light) - jnp.log(2 * jnp.pi)

    starts = np.array([[-9.0, -9.0], [8.0, 9.0], [-11.0, -12.0]])
    fit_from = jax.jit(lambda starts: fit_gaussian(KEY, log_density, starts))
    fit = fit_from(starts)
    assert np.all(np.abs(np.asarray(fit.loc) - 10.0) < 0.1)
    np.testing.assert_allclose(fit.losses, -np.log([0.2, 0.8, 0.2]), atol=0.2)
    alone = fit_from(starts[[0, 0, 0]])  # as many of them: the same program
    assert np.all(np.abs(np.asarray(alone.loc) + 10.0) < 0.1)


def test_a_start_ten_thousand_sds_away_gets_there():
    loc, tril = gaussian_target(5, 1.0)
    far = fit_to_gaussian(loc / 1000, tril / 1000, np.full(5, 9.0))
    assert bool(far.converged) and abs(float(far.loss)) < 0.05


def test_draws_outside_the_support_make_it_close_in():
    """Log p is -inf outside |z| < 1: a start of sd 3 must shrink instead of giving up."""

    def log_density(z: jax.Array, key: jax.Array) -> jax.Array:
        del key
        inside = jnp.all(jnp.abs(z) < 1)
        return jnp.where(inside, -0.5 * jnp.sum(z**2) / 0.05**2, -jnp.inf)

    fit = run(log_density, np.zeros((1, 2)), init_scale=3.0)
    assert bool(fit.converged)
    np.testing.assert_allclose(fit.scale_tril, 0.05 * np.eye(2), atol=0.005)


def test_a_noisy_density_is_averaged_over():
    """The mean of the target is redrawn for every particle: N(1 + e, 1), e ~ N(0, .5)."""

    def log_density(z: jax.Array, key: jax.Array) -> jax.Array:
        return -0.5 * jnp.sum((z - 1.0 - 0.5 * jax.random.normal(key, z.shape)) ** 2)

    fit = run(log_density, np.zeros((1, 2)))
    np.testing.assert_allclose(fit.loc, 1.0, atol=0.1)
    np.testing.assert_allclose(np.diag(fit.scale_tril), 1.0, atol=0.1)


def test_a_density_without_moments_is_not_called_converged():
    @jax.jit
    def converged(slope: float) -> jax.Array:
        start = jnp.zeros((1, 2))
        return fit_gaussian(KEY, lambda z, key: slope * jnp.sum(z), start, max_steps=300).converged

    assert not converged(0.0)
    assert not converged(np.nan)
