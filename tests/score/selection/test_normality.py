"""The test of normality that decides what a candidate of `select` has to beat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from implicitppl.score._selection.normality import _BEGIN, _CERTAIN, not_gaussian

NUM = 100
_compiled = jax.jit(jax.vmap(not_gaussian))
_doubt = jax.jit(not_gaussian)


def _doubts(draw, dimension: int, correlation: float = 0.0, repeats: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    covariance = correlation + (1 - correlation) * np.eye(dimension)
    root = np.linalg.cholesky(covariance)
    y = draw(rng, (repeats, NUM, dimension)) @ root.T
    return np.asarray(_compiled(jnp.asarray(y, jnp.float32)))


@pytest.mark.parametrize(("dimension", "correlation"), [(1, 0.0), (2, 0.9), (10, 0.0), (10, 0.9)])
def test_gaussian_samples_are_rarely_doubted(dimension, correlation):
    # One in twenty at most is doubted, one in fifty at most for certain, within 4 standard errors.
    doubts = _doubts(lambda rng, shape: rng.normal(size=shape), dimension, correlation)
    assert np.mean(doubts > 0) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(doubts == 1) < 0.02 + 4 * np.sqrt(0.02 * 0.98 / 400)


@pytest.mark.parametrize("dimension", [2, 10])
def test_heavy_tails_and_skewness_are_seen(dimension):
    heavy = _doubts(lambda rng, shape: rng.standard_t(5, size=shape), dimension)
    skewed = _doubts(lambda rng, shape: rng.gumbel(size=shape), dimension)
    assert heavy.mean() > 0.6
    assert skewed.mean() > 0.9


def test_the_statistic_is_that_of_jarque_and_bera():
    # One coordinate, between the two thresholds, so that the doubt tells the statistic.
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        found = 0
        for _ in range(200):
            y = rng.normal(size=(NUM, 1))
            statistic = scipy.stats.jarque_bera(y[:, 0]).statistic
            expected = np.clip(((statistic - 2) / 2 - _BEGIN) / (_CERTAIN - _BEGIN), 0, 1)
            doubt = float(_doubt(y))
            assert doubt == pytest.approx(expected, abs=1e-9)
            found += 0 < doubt < 1
        assert found > 0


def test_units_do_not_matter_and_constant_coordinates_say_nothing():
    with jax.enable_x64(True):
        # Between the two thresholds, where a change would show.
        drawn = (np.random.default_rng(seed).logistic(size=(NUM, 1)) for seed in range(400))
        y = next(d for d in drawn if 0 < float(_doubt(d)) < 1)
        plain = float(_doubt(y))
        assert float(_doubt(1e6 * y - 5e5)) == pytest.approx(plain)
        constant = np.concatenate([y, np.full((NUM, 1), 3.3)], axis=1)
        assert float(_doubt(constant)) == pytest.approx(plain)
        assert float(_doubt(np.full((NUM, 2), 3.3))) == 0
