"""Toys of functional inference: the exact posterior of steps, figures by hand, the small form."""

import itertools
import json
import math
import sys

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import read
from benchmarks.functional import toys as functional_toys
from benchmarks.functional import toys_tables as functional_toys_tables
from benchmarks.functional.problems import GRID, PROBLEMS, Problem
from examples import functional_priors
from examples.functional_priors import steps_posterior
from implicitppl.processes import PiecewiseConstant


def test_steps_posterior_is_that_of_every_path(monkeypatch: pytest.MonkeyPatch):
    """Forward-backward against a sum over all 3^4 paths of three levels."""
    monkeypatch.setattr(functional_priors, "LEVELS", 3)
    grid, rate, noise = np.array([0.0, 0.1, 0.4, 1.0]), 2.0, 0.3
    x, y = grid[[0, 2]], np.array([0.2, 0.7])
    levels = np.array([1, 3, 5]) / 6
    stay = np.exp(-rate * np.diff(grid))
    weights, paths = [], []
    for path in itertools.product(range(3), repeat=4):
        chance = 1 / 3
        for i, kept in enumerate(stay):
            chance *= kept * (path[i] == path[i + 1]) + (1 - kept) / 3
        f = levels[list(path)]
        weights.append(chance * np.prod(stats.norm(f[[0, 2]], noise).pdf(y)))
        paths.append(f)
    share, f = np.array(weights) / sum(weights), np.array(paths)
    found = steps_posterior(x, y, noise, grid, rate, (0.0, 1.0), num_draws=20_000)
    assert found.log_evidence == pytest.approx(math.log(sum(weights)))
    np.testing.assert_allclose(found.mean, share @ f)
    second = share @ f**2 - (share @ f) ** 2
    np.testing.assert_allclose(found.deviation, np.sqrt(second))
    error = 4.5 * found.deviation / math.sqrt(20_000)
    assert np.all(np.abs(found.draws.mean(axis=0) - found.mean) < error)
    # Neighbours too: the chance that a level is kept from the second point to the third.
    kept = share @ (f[:, 1] == f[:, 2])
    drawn = np.mean(found.draws[:, 1] == found.draws[:, 2])
    assert abs(drawn - kept) < 4.5 * math.sqrt(kept * (1 - kept) / 20_000)


def test_steps_posterior_has_the_prior_of_the_process():
    """Without data it is the prior; with data it is what weighted draws of the process say."""
    grid, x, y, noise = (
        np.linspace(0, 1, 6),
        np.array([0.1, 0.3, 0.8]),
        np.array([0.4, 0.5, 0.8]),
        0.2,
    )
    draw = jax.jit(lambda key: PiecewiseConstant().draw(key, 40_000)(np.r_[x, grid]))
    draws = np.asarray(draw(jax.random.key(0)))
    log_weight = stats.norm(draws[:, :3], noise).logpdf(y).sum(axis=1)
    weight = np.exp(log_weight)
    found = steps_posterior(x, y, noise, grid, 3.0, (0.0, 1.0))
    share = weight / weight.sum()
    mean = share @ draws[:, 3:]
    error = np.sqrt(share**2 @ (draws[:, 3:] - mean) ** 2)
    assert np.all(np.abs(found.mean - mean) < 4.5 * error)
    spread = weight.std() / weight.mean() / math.sqrt(len(weight))
    assert abs(found.log_evidence - math.log(weight.mean())) < 4.5 * spread
    wrong = steps_posterior(x, y, noise, grid, 0.5, (0.0, 1.0))
    assert not np.all(np.abs(wrong.mean - mean) < 4.5 * error)


def problem() -> Problem:
    none = np.zeros(1)
    exact = np.stack([np.zeros(GRID), np.ones(GRID)])
    return Problem(none, none, 1.0, None, None, 0, 1, 0.5, exact, prior_deviation=4.0)  # type: ignore[arg-type]


def test_figures_are_those_of_shifted_and_scaled_draws():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(50, GRID))
    draws = (draws - draws.mean(axis=0)) / draws.std(axis=0, ddof=1)
    grid = problem().grid
    found = functional_toys.figures(problem(), 2 * draws + np.where(grid > 0.5, 3, 0.1))
    assert found["mean_gap"] == pytest.approx(0.1)
    assert found["mean_gap_anywhere"] == pytest.approx(3)
    assert (found["ratio_low"], found["ratio_high"]) == pytest.approx((2, 2))
    assert found["share_of_prior_at_ends"] == pytest.approx([0.5, 0.5])


def test_small_increments_are_counted_in_the_gap_alone():
    grid = problem().grid
    jump = np.where(grid < 0.5, 0.0, 1.0)
    points = grid[::8]
    inside = np.sum((points > 0.2) & (points < 0.8)) - 1
    found = functional_toys.small_increments(problem(), np.stack([jump, 0 * jump]))
    assert found == pytest.approx(1 - 0.5 / inside)
    outside = np.where(grid < 0.1, 0.0, 1.0)
    assert functional_toys.small_increments(problem(), outside[None]) == 1


@pytest.mark.slow
def test_the_small_form_writes_rows(tmp_path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["functional_toys", "--quick", "--out", str(out)])
    functional_toys.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["method"] for row in rows] == ["moments"]
    assert all(np.isfinite(row["mean_gap"]) and len(row["mean"]) == GRID for row in rows)


def test_the_page_shows_the_committed_rows():
    rows = read(RESULTS / "functional-toys.jsonl")
    assert functional_toys_tables.table(rows) in functional_toys_tables.PAGE.read_text()
    assert {row["problem"] for row in rows} == set(PROBLEMS) and len(rows) > len(PROBLEMS)
