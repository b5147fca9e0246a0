"""The Laplace posterior over functions: where everything is linear it is the exact one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.functional import laplace as functional_laplace
from implicitppl.processes import BayesianNetwork, LinearizedNetwork


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_of_a_linear_model_it_is_exact_regression_under_the_prior_of_its_functions():
    """With f = J w and K = J_C J_C', the prior of w is N(0, I) and the posterior is known."""
    rng = np.random.default_rng(0)
    rows, points = jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.normal(size=(30, 4)))
    jitter = 1e-9
    factor = jnp.linalg.cholesky(points @ points.T + jitter * jnp.eye(30))
    root = functional_laplace.root(rows, points, factor, 0.5, jnp.full(30, 1e3))
    exact = jnp.linalg.inv(jnp.eye(4) + rows.T @ rows / 0.25)
    np.testing.assert_allclose(root @ root.T, exact, rtol=1e-6, atol=1e-8)


def test_directions_that_would_exceed_the_priors_variance_are_left_out():
    rows, points = jnp.eye(3)[:1], jnp.eye(3)
    factor = jnp.diag(jnp.sqrt(jnp.array([1.0, 2.0, 50.0])))
    limit = jnp.array([1.0, 3.0, 10.0])
    root = functional_laplace.root(rows, points, factor, 1.0, limit)
    assert root.shape == (3, 2)
    np.testing.assert_allclose(root @ root.T, jnp.diag(jnp.array([0.5, 2.0, 0.0])), atol=1e-12)


def test_the_mode_of_a_linear_function_is_the_ridge_solution():
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=20))
    line = BayesianNetwork(3, depth=0, key=jax.random.key(0))
    # Three points whose values are those of the slopes, and the origin: a ridge on everything.
    points = jnp.concatenate([jnp.eye(3), jnp.zeros((1, 3))])
    settings = functional_laplace.Laplace(3000, 0.05, 0.0, initial_noise=0.1)
    data = (x, y, points, 2.0 * jnp.eye(4), jnp.asarray(0.7))
    ((slopes, intercept),), log_noise = functional_laplace.mode(line, *data, settings)[0]
    rows = np.column_stack([x, np.ones(20)])
    seen = np.column_stack([points, np.ones(4)])
    precision = (0.7 + np.exp(log_noise)) ** -2
    expected = np.linalg.solve(
        rows.T @ rows * precision + seen.T @ seen / 4, rows.T @ y * precision
    )
    np.testing.assert_allclose(np.append(slopes, intercept), expected, atol=1e-5)


def test_an_expansion_is_that_of_the_linearised_network():
    start = eqx.filter_jit(BayesianNetwork)(5, 6, key=jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(7, 5))

    @eqx.filter_jit
    def both(start, x):
        process = LinearizedNetwork(start)  # of equal scales, so that its covariance is that of J
        expansion = functional_laplace.expansion(start, start.means, x)
        return expansion, process.mean_at(x), process.covariance(x)

    (value, slope), mean, covariance = both(start, x)
    slope = np.asarray(slope)
    np.testing.assert_allclose(value, mean, rtol=1e-12)
    np.testing.assert_allclose(slope @ slope.T * np.exp(-4), covariance, rtol=1e-10)
