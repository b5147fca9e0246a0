"""Log density of a normal vector: values, derivatives in both modes, covariances at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from implicitppl.linalg import normal_log_density

log_density = jax.jit(normal_log_density)

SIZE = 6


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(SIZE, SIZE))
    with jax.enable_x64(True):
        yield jnp.asarray(rng.normal(size=(3, SIZE))), jnp.asarray(root @ root.T + np.eye(SIZE))


def _plain(residuals, covariance):
    """The same density with JAX's own derivatives."""
    factor = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(factor, residuals.T, lower=True)
    logs = jnp.sum(jnp.log(jnp.diagonal(factor))) + 0.5 * SIZE * jnp.log(2 * jnp.pi)
    return -0.5 * jnp.sum(white**2, axis=0) - logs


def test_values_are_those_of_scipy(problem):
    residuals, covariance = problem
    expected = multivariate_normal(np.zeros(SIZE), np.asarray(covariance)).logpdf(residuals)
    np.testing.assert_allclose(log_density(residuals, covariance), expected, rtol=1e-12)


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("argument", [0, 1])
def test_derivatives_of_both_modes_are_those_of_the_factorisation(problem, mode, argument):
    ours = np.asarray(jax.jit(mode(normal_log_density, argument))(*problem))
    plain = np.asarray(jax.jit(jax.jacrev(_plain, argument))(*problem))
    if argument == 1:  # only the symmetric part of the derivative means something
        ours, plain = ours + np.swapaxes(ours, 1, 2), plain + np.swapaxes(plain, 1, 2)
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-12)


def test_second_derivatives_in_a_parameter(problem):
    residuals, covariance = problem

    def along(density):
        return lambda t: jnp.sum(density(jnp.sin(t) * residuals, covariance + jnp.exp(t)))

    ours, exact = along(normal_log_density), jax.jit(jax.hessian(along(_plain)))(0.3)
    for second in (jax.grad(jax.grad(ours)), jax.hessian(ours)):
        np.testing.assert_allclose(jax.jit(second)(0.3), exact, rtol=1e-8)


def test_a_covariance_of_low_rank_gets_a_jitter_and_finite_derivatives():
    value_and_slopes = jax.value_and_grad(lambda k: normal_log_density(jnp.zeros((1, 4)), k)[0])
    value, slopes = jax.jit(value_and_slopes)(np.ones((4, 4), np.float32))
    assert np.isfinite(value) and np.all(np.isfinite(slopes))


def test_an_indefinite_covariance_gives_nan():
    covariance = np.diag(np.array([1.0, -1.0], np.float32))
    assert np.isnan(log_density(np.zeros((1, 2), np.float32), covariance)[0])


def test_vmap_over_covariances_of_which_one_needs_jitter(problem):
    residuals, covariance = problem
    pair = np.stack([covariance, np.ones_like(covariance)])
    both = jax.jit(jax.vmap(normal_log_density, (None, 0)))(residuals, pair)
    np.testing.assert_allclose(both[0], log_density(residuals, covariance), rtol=1e-12)
    assert np.all(np.isfinite(both))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`covariance` must be \(3, 3\)"):
        normal_log_density(jnp.zeros((1, 3)), jnp.eye(2))
