"""Log density of a normal vector: values, derivatives in both modes, covariances at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from implicitppl.linalg import normal_log_density

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
    np.testing.assert_allclose(normal_log_density(residuals, covariance), expected, rtol=1e-12)


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("argument", [0, 1])
def test_derivatives_of_both_modes_are_those_of_the_factorisation(problem, mode, argument):
    ours = mode(normal_log_density, argument)(*problem)
    plain = jax.jacrev(_plain, argument)(*problem)
    if argument == 1:  # only the symmetric part of the derivative means something
        ours, plain = ours + jnp.swapaxes(ours, 1, 2), plain + jnp.swapaxes(plain, 1, 2)
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-12)


def test_second_derivatives_in_a_parameter(problem):
    residuals, covariance = problem

    def along(density):
        return lambda t: jnp.sum(density(jnp.sin(t) * residuals, covariance + jnp.exp(t)))

    for second in (jax.grad(jax.grad(along(normal_log_density))), jax.hessian(along(_plain))):
        value = second(0.3)
        np.testing.assert_allclose(value, jax.hessian(along(_plain))(0.3), rtol=1e-8)


def test_a_covariance_of_low_rank_gets_a_jitter_and_finite_derivatives():
    value, slopes = jax.value_and_grad(lambda k: normal_log_density(jnp.zeros((1, 4)), k)[0])(
        jnp.ones((4, 4))
    )
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(slopes))


def test_an_indefinite_covariance_gives_nan():
    assert jnp.isnan(normal_log_density(jnp.zeros((1, 2)), jnp.diag(jnp.array([1.0, -1.0])))[0])


def test_vmap_over_covariances_of_which_one_needs_jitter(problem):
    residuals, covariance = problem
    pair = jnp.stack([covariance, jnp.ones_like(covariance)])
    both = jax.vmap(normal_log_density, (None, 0))(residuals, pair)
    np.testing.assert_allclose(both[0], normal_log_density(residuals, covariance), rtol=1e-12)
    assert jnp.all(jnp.isfinite(both))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`covariance` must be \(3, 3\)"):
        normal_log_density(jnp.zeros((1, 3)), jnp.eye(2))
