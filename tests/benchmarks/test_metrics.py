"""The figures of the accuracy tables: closed forms, and each flag must be able to fail."""

import numpy as np
import pytest

from benchmarks.common import metrics

NAMES = ["a", "b", "c"]
CHAINS, LENGTH = 10, 1000


def reference_draws(seed: int = 0) -> np.ndarray:
    """Ten runs of correlated normal draws with unequal scales."""
    mix = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 10.0]])
    return np.random.default_rng(seed).normal(size=(CHAINS, LENGTH, 3)) @ mix.T


def same_law(seed: int = 1) -> np.ndarray:
    return reference_draws(seed).reshape(-1, 3)


def test_all_limits_hold_for_an_independent_run() -> None:
    found = metrics.accuracy(same_law(), reference_draws(), NAMES)
    assert all(found.passes().values())
    # SW of two equal laws: half the distances of 5,000 draws each; sd over projections < .01
    assert abs(found.excess) < 0.01


@pytest.mark.parametrize(
    ("broken", "flag"),
    [
        (lambda x: x + [0.15, 0.0, 0.0], "mean_shift"),
        (lambda x: x * [1.0, 1.0, 0.87], "sd_ratio"),
        (lambda x: x * [1.0, 1.0, 1.13], "sd_ratio"),
        (lambda x: np.sign(x) * np.abs(x) ** 1.3 / 1.2, "quantile_shift"),
        (lambda x: np.stack([x[:, 0], np.roll(x[:, 1], 1), x[:, 2]], axis=1), "correlation"),
    ],
)
def test_each_flag_fails_for_draws_that_are_wrong_in_its_way(broken, flag) -> None:
    found = metrics.accuracy(broken(same_law()), reference_draws(), NAMES)
    assert not found.passes()[flag]


def test_shifts_are_in_units_of_the_reference_sd() -> None:
    x = reference_draws().reshape(-1, 3)
    sd = x.std(axis=0, ddof=1)
    found = metrics.marginal_deviations(2.0 * (x - x.mean(axis=0)) + x.mean(axis=0) + 3.0 * sd, x)
    np.testing.assert_allclose(found["mean_shift"], 3.0, rtol=1e-12)
    np.testing.assert_allclose(found["sd_ratio"], 2.0, rtol=1e-12)
    centred = (np.quantile(x, 0.95, axis=0) - x.mean(axis=0)) / sd
    np.testing.assert_allclose(found["q95_shift"], 3.0 + centred, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_sliced_wasserstein_of_a_shift_is_the_mean_projection_of_the_shift(order: int) -> None:
    x, shift = same_law(), np.array([0.3, -0.2, 5.0])
    sd = x.std(axis=0)
    projected = np.abs(metrics.directions(3) @ (shift / sd))
    expected = np.mean(projected**order) ** (1 / order)
    found = metrics.sliced_wasserstein(x + shift, x, sd, order)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_sliced_wasserstein_of_normals_of_two_scales() -> None:
    """W_1(N(0,1), N(0,s^2)) = |s - 1| E|z| = |s - 1| sqrt(2/pi), in every direction."""
    size = 200_000
    quantiles = np.sort(np.random.default_rng(0).normal(size=(size, 1)), axis=0)
    found = metrics.sliced_wasserstein(1.5 * quantiles, quantiles, np.ones(1))
    # mean |z| over 200,000 draws has standard error .6 / sqrt(200,000) = .0013
    assert abs(found - 0.5 * np.sqrt(2 / np.pi)) < 0.5 * 4 * 0.0013


def test_distance_does_not_depend_on_units() -> None:
    scale = np.array([1e-3, 1.0, 1e4])
    plain = metrics.accuracy(1.2 * same_law(), reference_draws(), NAMES)
    scaled = metrics.accuracy(1.2 * same_law() * scale, reference_draws() * scale, NAMES)
    assert plain.sliced_wasserstein == pytest.approx(scaled.sliced_wasserstein, rel=1e-9)
    assert plain.quantile_shift == pytest.approx(scaled.quantile_shift, rel=1e-9)


def test_joint_distance_sees_what_marginals_and_correlations_do_not() -> None:
    """Draws y = x w with w = +-1 has N(0,1) marginals and correlation 0, but is not normal."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=CHAINS * LENGTH)
    sign = rng.choice([-1.0, 1.0], size=x.size)
    truth = rng.normal(size=(CHAINS, LENGTH, 2))
    found = metrics.accuracy(np.stack([x, x * sign], axis=1), truth, ["x", "y"])
    assert all(found.passes().values())
    assert found.excess > 0.1


def test_draws_that_are_not_finite_fail_every_limit() -> None:
    draws = same_law()
    draws[3, 1] = np.nan
    found = metrics.accuracy(draws, reference_draws(), NAMES)
    assert not any(found.passes().values())
    assert found.excess == np.inf


def test_few_draws_meet_a_floor_of_their_own_size() -> None:
    """Two samples of size n are apart by about n^-1/2: both numbers must grow together."""
    few = metrics.accuracy(same_law()[:1000], reference_draws(), NAMES)
    many = metrics.accuracy(same_law(), reference_draws(), NAMES)
    assert few.floor > 2 * many.floor
    assert abs(few.excess) < 0.5 * few.floor
    assert few.sliced_wasserstein > 2 * many.floor, "at the floor of the whole it would fail"


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="`draws` must be"):
        metrics.accuracy(same_law()[:, :2], reference_draws(), NAMES)
    with pytest.raises(ValueError, match="equal shapes"):
        metrics.sliced_wasserstein(np.ones((3, 1)), np.ones((4, 1)), np.ones(1))
