"""Where a spectral mixture starts: the frequencies of data, evenly spaced or not."""

import jax
import numpy as np
import pytest

from implicitppl.kernels import SpectralMixture

PERIODS = (11.0, 2.7)


def _series(x: np.ndarray, noise: float = 0.3) -> np.ndarray:
    waves = 2 * np.sin(2 * np.pi * x / PERIODS[0] + 1) + np.cos(2 * np.pi * x / PERIODS[1])
    return 5 + waves + noise * np.random.default_rng(1).normal(size=x.shape)


def _inputs(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    even = np.arange(100.0)
    return {
        "even": even,
        "gap": np.delete(even, slice(30, 60)),
        "random": random.uniform(0, 99, 100),
    }[kind]


@pytest.mark.parametrize("kind", ["even", "gap", "random"])
def test_frequencies_of_two_waves_are_found(kind):
    x = _inputs(kind)
    y = _series(x)
    kernel = SpectralMixture.from_data(x, y, 2)
    expected = 1 / np.array(PERIODS)
    resolution = 1 / np.ptp(x)
    np.testing.assert_allclose(np.asarray(kernel.means)[:, 0], expected, atol=0.5 * resolution)
    np.testing.assert_allclose(kernel.weights, np.var(y) / 2, rtol=1e-5)
    np.testing.assert_allclose(kernel.scales, 0.5 * resolution, rtol=1e-5)
    # The assertion sees the difference: without waves, noise does not have these frequencies.
    noise = SpectralMixture.from_data(x, np.random.default_rng(2).normal(size=x.shape), 2)
    assert np.all(np.abs(np.asarray(noise.means)[:, 0] - expected) > resolution)


def test_frequencies_stay_below_the_nyquist_frequency_and_above_the_range():
    x = 0.1 * np.arange(60)
    for seed in range(5):
        y = np.random.default_rng(seed).normal(size=60)
        means = np.asarray(SpectralMixture.from_data(x, y, 10, key=jax.random.key(seed)).means)
        assert np.all(means < 5.0) and np.all(means >= 0.499 / np.ptp(x))


def test_a_key_gives_other_starts_in_proportion_to_power():
    x = _inputs("even")
    y = _series(x)
    starts = [SpectralMixture.from_data(x, y, 1, key=jax.random.key(i)).means for i in range(20)]
    again = SpectralMixture.from_data(x, y, 1, key=jax.random.key(0)).means
    np.testing.assert_array_equal(starts[0], again)
    means = np.array(starts)[:, 0, 0]
    assert len(np.unique(means)) > 3
    # Four fifths of the variance is that of the slow wave: 20 draws, z = 4 standard errors.
    near = np.mean(np.abs(means - 1 / PERIODS[0]) < 0.02)
    assert near > 0.8 - 4 * np.sqrt(0.8 * 0.2 / 20)


def test_each_coordinate_has_its_own_frequencies():
    x = np.random.default_rng(0).uniform(0, 10, (300, 2))
    y = 2 * np.sin(2 * np.pi * 0.5 * x[:, 0]) + np.sin(2 * np.pi * 0.2 * x[:, 1])
    kernel = SpectralMixture.from_data(x, y, 1)
    np.testing.assert_allclose(kernel.means, [[0.5, 0.2]], atol=0.05)


def test_the_start_is_invariant_to_units():
    x = _inputs("random")
    y = _series(x)
    metres, kilometres = (SpectralMixture.from_data(c * x, y, 3) for c in (1000.0, 1.0))
    np.testing.assert_allclose(1000 * np.asarray(metres.means), kilometres.means, rtol=1e-5)
    np.testing.assert_allclose(1000 * np.asarray(metres.scales), kilometres.scales, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "num", "message"),
    [
        (np.ones((4, 1)), np.arange(4.0), 1, r"`x` must vary in every coordinate; got a constant"),
        (np.arange(4.0), np.ones(4), 1, r"`y` must vary; got 1.0 everywhere"),
        (np.arange(4.0), np.arange(3.0), 1, r"`x` must be \(N, D\) or \(N,\) and `y` \(N,\)"),
        (np.arange(4.0), np.arange(4.0), 0, r"`num_components` must be at least 1; got 0"),
        (np.arange(3.0), np.array([0, np.nan, 1]), 1, r"`x` and `y` must be finite"),
    ],
)
def test_errors_name_argument_rule_and_value(x, y, num, message):
    with pytest.raises(ValueError, match=message):
        SpectralMixture.from_data(x, y, num)
