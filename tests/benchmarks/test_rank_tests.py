"""Tests of uniform ranks: exact counts, size and power, and tables from fixed rows."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.common import rank_tests
from benchmarks.hmc import calibration as calibration
from benchmarks.hmc import calibration_tables as tables

N, NUM_RANKS, REPEATS = 200, 100, 200


@functools.cache
def simulated(sd: float, shift: float, repeats: int = REPEATS) -> np.ndarray:
    """Ranks `(repeats, N)` of N(0, 1) truths among 99 draws of N(shift, sd^2)."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(repeats, N, 1))
    return np.sum(shift + sd * rng.normal(size=(repeats, N, NUM_RANKS - 1)) < truth, axis=-1)


def rejected(sd: float, shift: float) -> dict[str, float]:
    """How often each test rejects at 5%."""
    ranks = simulated(sd, shift)
    chi = [rank_tests.chi_square(r, NUM_RANKS) <= 0.05 for r in ranks]
    return {"band": float(np.mean(~accepted(ranks))), "chi": float(np.mean(chi))}


def accepted(ranks: np.ndarray) -> np.ndarray:
    """Whether the band test accepts each row at 5%."""
    return rank_tests.ecdf_test(ranks, NUM_RANKS) > 0.05


def test_counts_below_are_counts() -> None:
    ranks = np.array([[0, 3, 3, 1], [2, 2, 2, 2]])
    expected = [[1, 2, 2], [0, 0, 4]]
    np.testing.assert_array_equal(rank_tests.counts_below(ranks, 4), expected)


def test_least_tail_is_the_binomial_one() -> None:
    ranks = np.array([0, 0, 0, 1])  # of 0, 1, so count_1 = 3 ~ Binomial(4, 1/2)
    expected = 2 * stats.binom.sf(2, 4, 0.5)
    np.testing.assert_allclose(rank_tests.least_tail(ranks, 2), expected)


def test_sizes_are_five_percent() -> None:
    error = (0.05 * 0.95 / REPEATS) ** 0.5
    for share in rejected(1.0, 0.0).values():
        assert abs(share - 0.05) <= 3 * error


@pytest.mark.parametrize(("sd", "shift"), [(0.7, 0.0), (1.5, 0.0), (1.0, 0.35)])
def test_narrow_wide_and_shifted_draws_are_rejected(sd: float, shift: float) -> None:
    found = rejected(sd, shift)
    assert found["band"] >= 0.9
    assert found["chi"] >= 0.7


def test_band_holds_as_often_as_the_test_accepts() -> None:
    low, high = rank_tests.band(N, NUM_RANKS)
    ranks = simulated(1.0, 0.0)
    counts = rank_tests.counts_below(ranks, NUM_RANKS)
    inside = np.all((low <= counts) & (counts <= high), axis=1)
    assert (
        np.mean(inside == accepted(ranks)) >= 0.99
    )  # they differ in ties of the discrete statistic


def test_holm_multiplies_by_what_is_left() -> None:
    np.testing.assert_allclose(rank_tests.holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])


def test_bins_must_hold_equally_many_ranks() -> None:
    with pytest.raises(ValueError, match="divide 100 ranks; got 30"):
        rank_tests.chi_square(np.arange(100), 100, 30)


def test_a_rank_counts_thinned_draws_of_all_chains() -> None:
    draws = np.arange(500 * 4).reshape(500, 4) / 2000
    assert calibration.few(draws).shape == (25, 4)
    assert calibration.rank(draws, 2.0) == NUM_RANKS - 1
    assert calibration.rank(draws, -1.0) == 0
    assert abs(calibration.rank(draws, 0.5) - 50) <= 4  # one of 25 of each chain


def test_epidemic_solves_its_equations() -> None:
    from scipy.integrate import solve_ivp

    def slope(_: float, y: np.ndarray) -> np.ndarray:
        new = 2.0 * y[0] * y[1] / calibration.BOYS
        return np.array([-new, new - 0.4 * y[1]])

    days = np.arange(1.0, 15.0)
    start = [calibration.BOYS - 3.0, 3.0]
    exact = solve_ivp(slope, (0, 14), start, t_eval=days, rtol=1e-10, atol=1e-10).y[1]
    found = calibration.epidemic(np.log([[2.0, 0.4, 3.0], [1.0, 0.5, 1.0]]))
    assert found.shape == (2, 14)
    np.testing.assert_allclose(np.exp(found[0]), exact, rtol=0.02)  # two steps a day


@pytest.mark.slow
def test_data_come_from_the_model() -> None:
    truth, log_ill, y = calibration.simulated(0)
    rates = np.log([[truth[name] for name in ("infection", "recovery", "first")]])
    np.testing.assert_allclose(calibration.epidemic(rates)[0], log_ill, rtol=1e-4, atol=1e-4)
    assert y.shape == (14,)
    assert np.all(y >= 0)


def fixed_rows() -> list[dict[str, Any]]:
    """Rows of a calibrated and of a shifted sampler."""
    rows = []
    for wrong, shift in ((False, 0.0), (True, 1.0)):
        for rank in simulated(1.0, shift, repeats=1)[0]:
            row: dict[str, Any] = {"wrong": wrong, "ranks": {"x": int(rank)}, "rhat": 1.02}
            sizes = {"ess_bulk": 450.0, "ess_tail": 90.0, "ess_thinned": 80.0}
            rows.append(row | sizes | {"evaluations": 2604, "cpu_seconds": 36.0})
    return rows


def test_the_report_shows_both_samplers_and_all_failures() -> None:
    text = tables.report(fixed_rows())
    right, wrong = text.split("wrong on purpose")
    assert "ScoreHMC: 200 data sets, 2,604 evaluations each, 2.00 CPU hours." in right
    assert "R-hat above 1.01 in 200 and above 1.05 in 0 of 200 runs" in right
    assert "(bulk and tail) in 200, fewer than 100 in 200" in right
    adjusted = [float(part.split("| x |")[1].split("|")[3]) for part in (right, wrong)]
    assert adjusted[0] > 0.05 > 0.001 > adjusted[1]


def test_the_picture_is_drawn_from_rows(tmp_path: Path) -> None:
    tables.draw(fixed_rows(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
