"""Inverses of small matrices: against NumPy, derivatives, singular matrices, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from implicitppl.linalg._inverse import small_inverse
from tests.helpers import assert_compiles_once

invert = jax.jit(small_inverse)


def _matrix(size: int, dtype: jnp.dtype, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(size, size)), dtype)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_agrees_with_numpy(size, precision):
    tolerance = 1e-3 if precision == jnp.float32 else 1e-9
    for seed in range(4):
        matrix = _matrix(size, precision, seed)
        result = invert(matrix)
        exact = np.asarray(matrix, np.float64)
        sign, log_abs_det = np.linalg.slogdet(exact)
        assert result.inverse.dtype == precision
        np.testing.assert_allclose(
            np.asarray(result.inverse) @ np.asarray(matrix), np.eye(size), atol=tolerance
        )
        assert float(result.sign) == sign
        assert float(result.log_abs_det) == pytest.approx(log_abs_det, abs=tolerance)


def test_a_zero_in_the_corner_needs_a_pivot(precision):
    matrix = jnp.asarray([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [4.0, -3.0, 8.0]], precision)
    result = invert(matrix)
    np.testing.assert_allclose(result.inverse, np.linalg.inv(np.asarray(matrix)), atol=1e-5)
    assert float(result.sign) == np.sign(np.linalg.det(np.asarray(matrix, np.float64)))


@pytest.mark.parametrize("order", [[1, 0, 2], [1, 2, 0], [2, 1, 0], [3, 2, 1, 0]])
def test_the_sign_is_that_of_the_permutation(order):
    matrix = np.eye(len(order), dtype=np.float32)[order]
    result = invert(matrix)
    assert float(result.sign) == np.sign(np.linalg.det(matrix))
    np.testing.assert_array_equal(result.inverse, matrix.T)


def test_a_singular_matrix_is_flagged():
    result = invert(np.ones((3, 3), np.float32))
    assert float(result.sign) == 0
    assert float(result.log_abs_det) == -jnp.inf
    assert not np.all(np.isfinite(result.inverse))


def test_derivatives_of_both_modes_and_the_second():
    matrix = _matrix(3, jnp.dtype(jnp.float32)) + 3 * jnp.eye(3)

    @jax.jit
    def log_abs_det(a: jax.Array) -> jax.Array:
        return small_inverse(a).log_abs_det

    @jax.jit
    def inverse(a: jax.Array) -> jax.Array:
        return small_inverse(a).inverse

    check_grads(log_abs_det, (matrix,), order=2, atol=2e-2, rtol=2e-2)
    check_grads(inverse, (matrix,), order=1, atol=2e-2, rtol=2e-2)
    slope = jax.grad(log_abs_det)(matrix)
    np.testing.assert_allclose(slope, np.linalg.inv(np.asarray(matrix)).T, atol=1e-5)


def test_a_batch_needs_no_batched_lapack_call():
    """Those wait inside jaxlib's thread pool, and two at once never return on two cores."""
    batch = jnp.stack([_matrix(4, jnp.dtype(jnp.float32), seed) for seed in range(6)])
    mapped = jax.jit(jax.vmap(small_inverse))
    np.testing.assert_allclose(
        mapped(batch).inverse, np.linalg.inv(np.asarray(batch)), rtol=1e-3, atol=1e-3
    )
    assert "lapack" not in mapped.lower(batch).as_text()
    lapack = jax.jit(jax.vmap(jnp.linalg.inv)).lower(batch).as_text()
    assert "lapack" in lapack, "the check must see a LAPACK call"


def test_the_second_call_compiles_nothing():
    mapped = jax.jit(jax.vmap(small_inverse))
    first, second = jnp.stack([jnp.eye(3)] * 2), jnp.stack([2 * jnp.eye(3)] * 2)
    assert_compiles_once(mapped, (first,), (second,))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`matrix` must be square; got shape \(2, 3\)"):
        small_inverse(jnp.ones((2, 3)))
