"""The inverse from a Cholesky factor, at sizes that are halved and sizes that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.linalg._triangular import inverse_from_factor

invert = jax.jit(inverse_from_factor)


def _factor(size: int) -> np.ndarray:
    root = np.random.default_rng(size).normal(size=(size, size))
    return np.linalg.cholesky(root @ root.T / size + np.eye(size))


@pytest.mark.parametrize("size", [1, 7, 128, 129, 300])
def test_inverse_is_that_of_numpy(size: int) -> None:
    factor = _factor(size)
    expected = np.linalg.inv(factor @ factor.T)
    with jax.enable_x64(True):
        np.testing.assert_allclose(invert(jnp.asarray(factor)), expected, atol=1e-13)
    single = invert(jnp.asarray(factor, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=2e-5)


def test_blocks_of_several_matrices_at_once_and_derivatives() -> None:
    with jax.enable_x64(True):
        factors = np.stack([_factor(150), 2 * _factor(150)])
        both = np.asarray(jax.jit(jax.vmap(inverse_from_factor))(factors))
        np.testing.assert_allclose(both[0], 4 * both[1], rtol=1e-12, atol=1e-15)
        slope = jax.jit(jax.grad(lambda c: jnp.trace(inverse_from_factor(c * factors[0]))))
        np.testing.assert_allclose(slope(1.0), -2 * np.trace(both[0]), rtol=1e-10)


def test_no_factor_gives_no_inverse() -> None:
    assert np.isnan(invert(np.full((200, 200), np.nan, np.float32))).all()
