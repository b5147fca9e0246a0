"""Networks for series and textures start at the periods that values show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import nkn_texture, nkn_time_series

KEY = jax.random.key(0)


def periods(x: np.ndarray, y: np.ndarray | None) -> list[float]:
    network = nkn_time_series(jnp.asarray(x)[:, None], y, key=KEY)
    return [float(network.primitives[i].period) for i in (1, 7)]  # type: ignore[attr-defined]


@pytest.fixture
def months() -> np.ndarray:
    return np.arange(140.0)


def test_the_strongest_periods_come_first_whatever_the_trend(months):
    season = 2 * np.sin(2 * np.pi * months / 12) + np.cos(2 * np.pi * months / 5)
    trend = 100 + 3 * months + 0.05 * months**2
    np.testing.assert_allclose(periods(months, season + trend), [12, 5], rtol=0.02)
    # The assertion can fail: the published start knows nothing of the season.
    assert abs(periods(months, None)[0] / 12 - 1) > 0.5


def test_without_periods_those_published_stay(months):
    published = periods(months, None)
    assert periods(months, 1 + months + months**2) == published
    slow = periods(months, np.sin(2 * np.pi * months / 100))  # not three times in the data
    assert all(period < 140 / 3 or period in published for period in slow)


def test_units_do_not_matter(months):
    season = np.sin(2 * np.pi * months / 12)
    in_months, in_years = periods(months, season)[0], periods(months / 12, 1e3 * season)[0]
    np.testing.assert_allclose(in_months, 12 * in_years, rtol=0.03)  # cells of the grid


def test_two_periods_are_two_peaks(months):
    one, other = periods(months, np.sin(2 * np.pi * months / 11.37))
    assert abs(1 / one - 1 / other) * 139 > 1.5


def test_a_texture_has_one_period(months):
    x = months / 140
    network = nkn_texture(jnp.asarray(x)[:, None], np.sin(2 * np.pi * x * 20), key=KEY)
    period = network.primitives[3].period  # type: ignore[attr-defined]
    np.testing.assert_allclose(float(period), 1 / 20, rtol=0.02)


@pytest.mark.parametrize("y", [np.ones(3), np.full(140, np.nan), np.ones((140, 1))])
def test_values_that_do_not_fit_are_refused(months, y):
    with pytest.raises(ValueError, match=r"`y` must be finite and \(140,\)"):
        periods(months, y)
