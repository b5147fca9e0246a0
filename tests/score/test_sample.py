"""Samples with their weights and covariates: what is checked once, and what follows from it."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score._sample import check_arrays, make_sample

X = np.arange(8.0).reshape(4, 2)
C = np.array([[1.0], [1.0], [2.0], [5.0]])
W = np.array([2.0, 0.0, 1.0, 1.0])


def _sample(weights: np.ndarray | None = None):
    return make_sample(*check_arrays(X, C, weights))


def test_rows_hold_the_covariates_first():
    sample = _sample()
    assert (sample.size, sample.dimension, sample.num_covariates) == (4, 2, 1)
    np.testing.assert_array_equal(sample.rows, np.concatenate([C, X], axis=1))
    np.testing.assert_array_equal(sample.x, X)
    np.testing.assert_array_equal(sample.covariates, C)
    np.testing.assert_array_equal(sample.is_scored, [False, True, True])
    assert make_sample(jnp.asarray(X)).covariates is None


def test_weights_sum_to_one_and_set_the_effective_size():
    sample, equal = _sample(W), _sample()
    np.testing.assert_allclose(sample.weights, W / 4)
    np.testing.assert_array_equal(sample.counts, W > 0)
    assert float(sample.effective_size) == pytest.approx(1 / (0.25 + 2 / 16))
    assert (sample.is_weighted, equal.is_weighted) == (True, False)
    assert float(equal.effective_size) == pytest.approx(4.0)
    np.testing.assert_allclose(sample.moments.mean[1:], W @ X / 4)


def test_some_of_the_rows_and_other_coordinates():
    index = jnp.array([0, 2])
    part = _sample(W).take(index)
    np.testing.assert_allclose(part.weights, [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(part.x, X[[0, 2]])
    np.testing.assert_allclose(_sample().take(index).weights, [0.5, 0.5])
    sample = _sample(W)
    frame = sample.frame("diagonal")
    standard = sample.seen_in(frame)
    np.testing.assert_allclose(frame.back(standard.rows), sample.rows, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(standard.moments.covariance), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(standard.weights, sample.weights)
