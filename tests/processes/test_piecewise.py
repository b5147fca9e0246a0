"""Structured priors against their closed forms."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.processes import PiecewiseConstant, PiecewiseLinear, RandomPeriodic

KEY = jax.random.key(0)
NUM = 20_000
GRID = np.array([-0.5, 0.0, 0.6, 0.7, 1.3, 2.0])


@eqx.filter_jit
def sample(process, x):
    return process.sample(KEY, x, NUM)


def second_moments(draws):
    """Covariances of the columns, and their standard errors by the products themselves."""
    draws = np.asarray(draws, np.float64)
    centred = draws - draws.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    return products.mean(0), products.std(0) / math.sqrt(len(products))


@pytest.mark.parametrize("rate", [3.0, 0.3])
def test_piecewise_constant_has_the_covariance_of_poisson_knots(rate):
    process = PiecewiseConstant(-0.5, 2.0, rate, location=2.0, scale=3.0)
    draws = sample(process, GRID)
    distances = np.abs(GRID[:, None] - GRID[None, :]) / 2.5
    exact = 3.0**2 / 12 * np.exp(-rate * distances)
    found, errors = second_moments(draws)
    means = np.asarray(draws.mean(0))
    assert np.max(np.abs(means - 3.5)) < 4 * math.sqrt(9 / 12 / NUM)
    assert np.max(np.abs(found - exact) / errors) < 4
    wrong = 3.0**2 / 12 * np.exp(-1.2 * rate * distances)
    assert np.max(np.abs(found - wrong) / errors) > 4


def test_knots_are_poisson_in_number():
    process = PiecewiseConstant(rate=3.0)
    fine = np.linspace(0, 1, 1000)
    draws = jax.jit(lambda key: process.sample(key, fine, 3000))(KEY)
    jumps = np.sum(np.diff(np.asarray(draws), axis=1) != 0, axis=1)
    num_present = jax.jit(jax.vmap(lambda key: process._knots(key)[1].sum()))
    present = np.asarray(num_present(jax.random.split(KEY, NUM)))
    for count in range(6):
        chance = math.exp(-3.0) * 3.0**count / math.factorial(count)
        error = math.sqrt(chance * (1 - chance) / NUM)
        share = np.mean(present == count)
        assert abs(share - chance) < 4 * error
        assert abs(share - 0.85 * chance) > 4 * error
        assert count in jumps
    assert abs(jumps.mean() - 3) < 4 * math.sqrt(3 / 3000)


@pytest.mark.parametrize("rate", [0.1, 3.0, 40.0, 1000.0])
def test_room_for_knots_is_exceeded_with_probability_below_one_in_a_million(rate):
    room = PiecewiseConstant(rate=rate).max_knots
    log_terms = [-rate + n * math.log(rate) - math.lgamma(n + 1) for n in range(room + 1)]
    assert 1 - sum(math.exp(term) for term in log_terms) < 1e-6
    assert room < rate + 8 * math.sqrt(rate) + 8


def test_piecewise_constant_takes_levels_only():
    draws = np.asarray(PiecewiseConstant(rate=3.0).sample(KEY, jnp.linspace(-1, 2, 200), 50))
    assert all(len(np.unique(draw)) <= 12 for draw in draws)
    assert draws.min() >= 0 and draws.max() <= 1


def test_piecewise_linear_without_knots_is_a_line_between_uniform_ends():
    """Cov(f(s), f(t)) = ((1 - s)(1 - t) + s t) / 12 on [0, 1]; constant outside."""
    process = PiecewiseLinear(rate=1e-9)
    x = np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    draws = sample(process, x)
    inside = np.clip(x, 0, 1)
    exact = (np.outer(1 - inside, 1 - inside) + np.outer(inside, inside)) / 12
    found, errors = second_moments(draws)
    assert np.max(np.abs(np.asarray(draws.mean(0)) - 0.5)) < 4 * math.sqrt(1 / 12 / NUM)
    assert np.max(np.abs(found - exact) / errors) < 4
    assert np.max(np.abs(found - 1.1 * exact) / errors) > 4


def test_piecewise_linear_interpolates_its_knots():
    process = PiecewiseLinear(-1.0, 3.0, 3.0, location=-1.0, scale=2.0)
    with jax.enable_x64(True):  # between close knots, rounding in float32 looks like bends
        draws = np.asarray(process.sample(KEY, jnp.linspace(-1, 3, 4001), 200))
    assert np.all(np.isfinite(draws)) and draws.min() >= -1 and draws.max() <= 1
    bends = np.abs(np.diff(draws, n=2, axis=1)) > 1e-5
    # A bend lies between two points of the grid: it is seen once or twice.
    counts = np.sum(bends & ~np.pad(bends, ((0, 0), (1, 0)))[:, :-1], axis=1)
    assert {0, 1, 2, 3} <= set(counts.tolist())
    assert abs(counts.mean() - 3) < 4 * math.sqrt(3 / 200) + 0.1
    # Ends have the variance of one level, 4/12; in between there is less.
    ends = process.sample(KEY, jnp.array([-2.0, 3.0, 5.0, 1.0]), NUM)
    error = 4 * (1 / 3) * math.sqrt(0.8 / NUM)
    spread = jnp.var(ends, axis=0)
    assert jnp.all(jnp.abs(spread[:3] - 1 / 3) < error) and spread[3] < 1 / 3 - 4 * error
    np.testing.assert_array_equal(ends[:, 1], ends[:, 2])


def test_random_periodic_with_a_known_period_has_the_covariance_of_its_harmonics():
    process = RandomPeriodic(0.8, 0.8, 3, 1.0, location=1.0, scale=2.0)
    draws = sample(process, GRID)
    distance = GRID[:, None] - GRID[None, :]
    weights = np.array([1, 1 / 4, 1 / 9]) / (1 + 1 / 4 + 1 / 9)
    waves = [w * np.cos(2 * math.pi * h * distance / 0.8) for h, w in enumerate(weights, 1)]
    exact = 4 * sum(waves)
    found, errors = second_moments(draws)
    assert np.max(np.abs(np.asarray(draws.mean(0)) - 1)) < 4 * 2 / math.sqrt(NUM)
    assert np.max(np.abs(found - exact) / errors) < 4
    assert np.max(np.abs(found - 4 * np.cos(2 * math.pi * distance / 0.8)) / errors) > 4


def test_random_periods_are_log_uniform_and_each_function_repeats():
    process = RandomPeriodic(0.5, 2.0, 1)
    lags = np.array([0.0, 0.3, 1.0])
    draws = jax.jit(lambda key: process.draw(key, NUM)(lags))(KEY)
    found, errors = second_moments(draws)
    periods = np.exp(np.linspace(math.log(0.5), math.log(2.0), 20_001))
    exact = np.array([np.cos(2 * math.pi * lag / periods).mean() for lag in lags])
    assert np.max(np.abs(found[0] - exact) / errors[0]) < 4
    assert np.max(np.abs(found[0] - np.cos(2 * math.pi * lags)) / errors[0]) > 4


@pytest.mark.parametrize("kind", [PiecewiseConstant, PiecewiseLinear, RandomPeriodic])
def test_location_and_scale_are_learned(kind):
    def total(location, scale):
        return jnp.mean(kind(location=location, scale=scale).sample(KEY, GRID, 4))

    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(1.0, 2.0)
    assert float(slopes[0]) == pytest.approx(1) and np.isfinite(slopes[1]) and slopes[1] != 0


BAD = {
    "interval": (lambda: PiecewiseConstant(1.0, 1.0), "`low` must be below `high`; got 1.0 and"),
    "rate": (lambda: PiecewiseLinear(rate=0.0), "`rate` must be positive; got 0.0"),
    "scale": (lambda: PiecewiseLinear(scale=-1.0), "`scale` must be positive; got -1.0"),
    "coordinates": (lambda: PiecewiseConstant()(jnp.zeros((3, 2))), "must have 1 coordinates"),
    "coordinates, linear": (lambda: PiecewiseLinear()(jnp.zeros((3, 2))), "must have 1"),
    "periods": (lambda: RandomPeriodic(2.0, 1.0), "`max_period` must be at least `min_period`"),
    "harmonics": (lambda: RandomPeriodic(num_harmonics=0), "`num_harmonics` must be at least 1"),
    "coordinates, periodic": (lambda: RandomPeriodic()(jnp.zeros((3, 2))), "must have 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
