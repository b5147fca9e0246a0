import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.linalg._eigen import top_eigenpairs

eigenpairs = eqx.filter_jit(top_eigenpairs)


def _gram(size: int, dimension: int) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(size, dimension))
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.exp(-squared / (4.0 * dimension))


def test_full_decomposition_agrees_with_numpy(precision):
    gram = _gram(30, 3)
    pairs = eigenpairs(jnp.asarray(gram, precision))
    tolerance = 100 * float(jnp.finfo(precision).eps)
    np.testing.assert_allclose(
        pairs.values, np.linalg.eigvalsh(gram)[::-1].clip(0), atol=30 * tolerance
    )
    vectors = np.asarray(pairs.vectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(30), atol=tolerance)
    rebuilt = (vectors * np.asarray(pairs.values)) @ vectors.T
    np.testing.assert_allclose(rebuilt, gram, atol=30 * tolerance)
    assert float(pairs.trace) == pytest.approx(30)


def test_pairs_at_rounding_level_are_not_kept(precision):
    a = np.random.default_rng(2).normal(size=(60, 4))
    pairs = eigenpairs(jnp.asarray(a @ a.T, precision))
    np.testing.assert_array_equal(pairs.kept, np.arange(60) < 4)
    assert np.all(np.asarray(pairs.values) >= 0)


def test_floor_keeps_eigenvalues_that_carry_signal():
    # In float32 the textbook floor N eps is 2.4e-5 here and would drop the last two.
    values = np.r_[1.0, 1e-2, 1.5e-5, 8e-6, np.zeros(196)]
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(200, 200)))[0]
    pairs = eigenpairs(jnp.asarray((basis * values) @ basis.T, jnp.float32))
    np.testing.assert_array_equal(pairs.kept, np.arange(200) < 4)
    np.testing.assert_allclose(np.asarray(pairs.values)[:4], values[:4], rtol=5e-2)


def test_subspace_iteration_agrees_with_full_decomposition(precision):
    gram = jnp.asarray(_gram(150, 2), precision)
    full, part = eigenpairs(gram), eigenpairs(gram, 12)
    assert part.values.shape == (12,) and part.vectors.shape == (150, 12)
    np.testing.assert_allclose(part.values, np.asarray(full.values)[:12], rtol=1e-4)
    overlap = np.abs(np.sum(np.asarray(part.vectors) * np.asarray(full.vectors)[:, :12], axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-3)
    assert float(part.trace) == pytest.approx(float(full.trace))  # of all pairs, found or not


def test_one_iteration_is_not_enough_for_that_tolerance():
    gram = jnp.asarray(_gram(150, 8), jnp.float32)
    exact = np.asarray(eigenpairs(gram).values)[:12]
    rough = eigenpairs(gram, 12, num_iterations=0, oversampling=0).values
    fine = eigenpairs(gram, 12).values
    assert np.max(np.abs(rough / exact - 1)) > 0.1
    assert np.max(np.abs(fine / exact - 1)) < 0.01


def test_batches():
    grams = jnp.asarray(np.stack([_gram(10, 1), np.eye(10)]), jnp.float32)
    pairs = jax.jit(jax.vmap(top_eigenpairs))(grams)
    assert np.all(pairs.kept[1]) and not np.all(pairs.kept[0])


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`num` must be at least 1; got 0"):
        top_eigenpairs(jnp.eye(3), 0)
