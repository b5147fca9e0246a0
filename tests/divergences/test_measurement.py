"""Where functions are compared: each set lies where it says, and bad ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.divergences import DataNoise, HeldInputs, UniformBox
from implicitppl.divergences._measurement import measurement_points

X = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)) * [1.0, 10.0])
KEY = jax.random.key(1)


def test_a_box_has_a_range_for_each_coordinate():
    box = UniformBox.around(X, 4000, widen=0.25)
    points = box(KEY, X)
    low, high = jnp.min(X, axis=0), jnp.max(X, axis=0)
    margin = 0.25 * (high - low)
    assert points.shape == (4000, 2)
    assert bool(jnp.all(points >= low - margin)) and bool(jnp.all(points <= high + margin))
    # Uniform: mean in the middle, variance width^2 / 12, within 4 standard errors.
    width = 1.5 * (high - low)
    unit = (np.asarray(points) - np.asarray(low - margin)) / np.asarray(width)
    np.testing.assert_allclose(unit.mean(0), 0.5, atol=4 * 12**-0.5 / 4000**0.5)
    np.testing.assert_allclose(unit.var(0), 1 / 12, rtol=4 * 0.9 / 4000**0.5)


def test_a_coordinate_that_does_not_vary_has_half_a_unit():
    constant = jnp.column_stack([jnp.linspace(0, 1, 5), jnp.full(5, 3.0)])
    points = UniformBox.around(constant, 100)(KEY, constant)
    assert bool(jnp.all(jnp.abs(points[:, 1] - 3) <= 0.5))


def test_noise_is_added_to_rows_of_the_data():
    rows = DataNoise(30, scale=0.0)(KEY, X)
    assert all(bool(jnp.any(jnp.all(row == X, axis=1))) for row in rows)
    one = X[:1]
    noisy = DataNoise(4000, scale=jnp.array([0.5, 2.0]))(KEY, one) - one
    np.testing.assert_allclose(jnp.std(noisy, axis=0), [0.5, 2.0], rtol=4 / (2 * 4000) ** 0.5)
    by_kernel = DataNoise.from_lengthscale(4000, 2.0)(KEY, one) - one
    np.testing.assert_allclose(jnp.std(by_kernel), 2**0.5, rtol=4 / 8000**0.5)


def test_the_default_noise_is_half_the_spread_of_the_rows():
    two = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    points = DataNoise(4000, inputs=two)(KEY, X)
    assert bool(jnp.all(points[:, 1] == 0))
    # Rows +-1 and noise of half their standard deviation, 1: variance 1 + 1/4.
    assert float(jnp.var(points[:, 0])) == pytest.approx(1.25, rel=4 * 1.2 / 4000**0.5)


def test_the_default_noise_of_one_row_is_half_a_unit():
    # Of one row nothing varies, and without noise the guide would be held at that row alone.
    points = DataNoise(4000)(KEY, jnp.array([[0.1, 7.0]]))
    np.testing.assert_allclose(points.mean(axis=0), [0.1, 7.0], atol=4 * 0.5 / 4000**0.5)
    np.testing.assert_allclose(points.std(axis=0), 0.5, rtol=4 / 8000**0.5)


def test_held_inputs_stay():
    held = HeldInputs(jnp.arange(3.0))
    assert held(KEY, X[:, :1]).tolist() == [[0.0], [1.0], [2.0]] and held.num_points == 3


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: UniformBox(0, 0.0, 1.0), "`num_points` must be positive"),
        (lambda: UniformBox(3, 1.0, 1.0), "`low` must be below `high`"),
        (lambda: DataNoise(3, scale=-1.0), "`scale` must be"),
        (lambda: HeldInputs(jnp.array([jnp.nan])), "`points` must be finite"),
        (
            lambda: measurement_points(lambda key, x: x[:, :1], KEY, X),
            r"must return \(M, 2\) points",
        ),
    ],
    ids=["none", "empty box", "negative", "nan", "width"],
)
def test_bad_sets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
