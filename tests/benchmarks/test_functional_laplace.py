"""The Laplace posterior over functions: where everything is linear it is the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import functional_laplace


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
    start = (jnp.zeros(3), jnp.asarray(-2.0))
    data = (x, y, jnp.eye(3), jnp.eye(3) * 2.0, jnp.asarray(0.7))
    (weights, log_noise), history = functional_laplace.mode(
        start, *data, 0.05, lambda w, x: x @ w, 1500
    )
    precision = (0.7 + np.exp(log_noise)) ** -2
    expected = np.linalg.solve(x.T @ x * precision + np.eye(3) / 4, x.T @ y * precision)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert history[-1] < history[0]


def test_the_network_is_that_of_the_other_methods():
    from benchmarks.functional_methods import shapes

    flat, f = functional_laplace.network(jax.random.key(0), 5)
    assert flat.size == sum(int(np.prod(shape)) for shape, _ in shapes(5).values())
    assert f(flat, jnp.ones((7, 5))).shape == (7,)
