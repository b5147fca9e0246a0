import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from implicitppl._core.cholesky import safe_cholesky

factorise = jax.jit(safe_cholesky)


def _covariance(size: int, dtype: jnp.dtype) -> jax.Array:
    a = np.random.default_rng(0).normal(size=(size, 2 * size))
    return jnp.asarray(a @ a.T / size, dtype)


def test_well_conditioned_matrix_gets_no_jitter(precision):
    matrix = _covariance(5, precision)
    result = factorise(matrix)
    assert result.factor.dtype == precision
    assert float(result.jitter) == 0 and bool(result.success)
    expected = np.linalg.cholesky(np.asarray(matrix, np.float64))
    np.testing.assert_allclose(result.factor, expected, atol=50 * float(jnp.finfo(precision).eps))


def test_rank_one_matrix_gets_the_least_jitter_and_it_is_relative(precision):
    ones = np.ones((4, 4), precision)
    for scale in (1e-6, 1.0, 1e6):
        result = factorise(scale * ones)
        assert bool(result.success)
        eps = float(jnp.finfo(precision).eps)
        assert 0 < float(result.jitter) <= 1000 * eps * scale
        factor = np.asarray(result.factor)
        rebuilt = factor @ factor.T - np.asarray(result.jitter) * np.eye(4, dtype=precision)
        np.testing.assert_allclose(rebuilt / scale, ones, atol=1e4 * eps)


def test_indefinite_matrix_is_flagged_not_hidden():
    result = factorise(np.diag(np.array([1.0, -1.0], np.float32)))
    assert not bool(result.success)
    assert np.any(np.isnan(result.factor))


def test_jitter_differs_between_members_of_a_batch():
    batch = np.stack([np.eye(3), np.ones((3, 3))]).astype(np.float32)
    result = jax.jit(jax.vmap(safe_cholesky))(batch)
    assert np.all(result.success)
    assert float(result.jitter[0]) == 0 and float(result.jitter[1]) > 0


def test_derivatives():
    matrix = _covariance(3, jnp.dtype(jnp.float32))

    @jax.jit
    def factor(a: jax.Array) -> jax.Array:
        return safe_cholesky(a + a.T).factor

    check_grads(factor, (matrix,), order=1, atol=2e-2, rtol=2e-2)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`num_tries` must be non-negative; got -1"):
        safe_cholesky(jnp.eye(2), num_tries=-1)
