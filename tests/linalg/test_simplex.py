"""The quadratic programme of stacking: projection and optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.linalg._simplex import minimise_on_simplex, project_on_simplex


@pytest.mark.parametrize(
    ("point", "nearest"),
    [
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([1.0, 1.0], [0.5, 0.5]),
        ([5.0, -1.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.6, 0.6, -0.5], [0.5, 0.5, 0.0]),
    ],
)
def test_projection(point, nearest):
    np.testing.assert_allclose(project_on_simplex(jnp.array(point)), nearest, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_is_constant_on_the_support_and_larger_off_it(seed, precision):
    # The optimality conditions: (H w + g)_i = mu where w_i > 0, >= mu elsewhere.
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(12, 30)) + 2.0 * rng.normal(size=30)  # strongly collinear rows
    quadratic = jnp.asarray(factor @ factor.T / 30, precision)
    linear = jnp.asarray(rng.normal(size=12), precision)
    w = minimise_on_simplex(quadratic, linear)
    assert float(jnp.sum(w)) == pytest.approx(1, abs=1e-5)
    assert float(jnp.min(w)) >= 0
    gradient = np.asarray(quadratic @ w + linear)
    inside = np.asarray(w) > 1e-3
    level = gradient[inside].mean()
    np.testing.assert_allclose(gradient[inside], level, atol=1e-3)
    assert gradient.min() > level - 1e-3


def test_a_vertex_and_a_flat_problem():
    vertex = minimise_on_simplex(jnp.zeros((3, 3)), jnp.array([0.0, -1.0, 2.0]))
    np.testing.assert_allclose(vertex, [0, 1, 0], atol=1e-6)
    flat = jax.jit(minimise_on_simplex)(jnp.zeros((3, 3)), jnp.zeros(3))
    np.testing.assert_allclose(flat, 1 / 3, atol=1e-6)
