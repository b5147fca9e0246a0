import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from implicitppl.kernels._distances import median_lengthscale, squared_distances


def _points(num: int, dtype: jnp.dtype, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 3)), dtype)


def test_squared_distances_agree_with_scipy(precision):
    X, Y = _points(7, precision), _points(5, precision, 1)
    tolerance = 100 * float(jnp.finfo(precision).eps)
    cross, own = jax.jit(lambda X, Y: (squared_distances(X, Y), squared_distances(X)))(X, Y)
    np.testing.assert_allclose(cross, cdist(X, Y) ** 2, atol=tolerance)
    np.testing.assert_allclose(own, cdist(X, X) ** 2, atol=tolerance)
    assert np.all(np.diagonal(own) == 0) and np.all(np.asarray(own) >= 0)


@pytest.mark.parametrize("num", [2, 3, 4, 5, 20])  # odd and even numbers of pairs
def test_median_agrees_with_scipy(num, precision):
    X = _points(num, precision, num)
    result = jax.jit(median_lengthscale)(X)
    assert result.dtype == precision
    tolerance = 20 * float(jnp.finfo(precision).eps)
    np.testing.assert_allclose(result, np.median(pdist(X)), rtol=tolerance)


def test_median_of_tied_distances():
    X = jnp.array([[0.0], [1.0], [2.0], [3.0]])  # distances 1 1 1 2 2 3
    assert float(median_lengthscale(X)) == 1.5
    assert float(median_lengthscale(jnp.concatenate([X, X[3:] + 1]))) == 2.0  # 4x1 3x2 2x3 1x4


def test_median_without_the_diagonal():
    # With the zero diagonal in, three points would have median of (0 0 0 1 1 2 2 3 3) = 1.
    assert float(median_lengthscale(jnp.array([[0.0], [1.0], [3.0]]))) == 2.0


def test_median_of_many_samples_uses_evenly_spaced_rows():
    X = _points(101, jnp.float32)
    thinned = jax.jit(lambda X: median_lengthscale(X, max_samples=51))(X)
    assert float(thinned) == float(jax.jit(median_lengthscale)(X[::2]))


def test_coinciding_samples_give_one_and_the_rest_is_differentiable():
    value_and_grad = jax.jit(jax.value_and_grad(median_lengthscale))
    value, gradient = value_and_grad(jnp.ones((5, 2)))
    assert float(value) == 1.0 and np.all(np.asarray(gradient) == 0)
    _, gradient = value_and_grad(jnp.array([[0.0], [1.0], [3.0]]))
    np.testing.assert_allclose(np.asarray(gradient)[:, 0], [0, -1, 1], atol=1e-6)


def test_same_value_under_jit_and_vmap():
    banks = jnp.stack([_points(20, jnp.float32, seed) for seed in range(3)])
    batched = jax.jit(jax.vmap(median_lengthscale))(banks)
    np.testing.assert_allclose(batched, [median_lengthscale(bank) for bank in banks], rtol=1e-6)


def test_errors_name_argument_rule_and_value():
    with pytest.raises(
        ValueError, match=r"`samples` must be \(M, D\) with M >= 2; got shape \(1, 2\)"
    ):
        median_lengthscale(jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"`max_samples` must be at least 2; got 1"):
        median_lengthscale(jnp.zeros((3, 2)), max_samples=1)
