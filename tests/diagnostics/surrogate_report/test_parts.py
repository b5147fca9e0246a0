"""Runs of rejections against simulation; acceptance by place and move; the fate of proposals."""

from typing import NamedTuple

import numpy as np
import pytest

from implicitppl.diagnostics._surrogate_report.parts import (
    acceptance_by,
    acceptance_by_move,
    expected_run,
    fate_of_proposals,
    have_moved,
    longest_runs,
    run_limit,
)


class Kind(NamedTuple):
    """A row of `ScoreHMC.moves`, as far as the report reads it."""

    name: str
    follows_surrogate: bool
    is_corrected: bool


KINDS = (
    Kind("random walk", False, False),
    Kind("long", True, False),
    Kind("transition of 3", True, True),
    Kind("wide transition", False, True),
)


@pytest.mark.parametrize("acceptance", [0.05, 0.3, 0.7])
def test_run_limit_keeps_its_false_alarm_rate(acceptance):
    rng = np.random.default_rng(0)
    size, level = 4000, 0.05
    moved = rng.uniform(size=(size, 500)) < acceptance
    longest = longest_runs(moved, np.full(moved.shape, acceptance)).longest
    limit = run_limit(500, acceptance, level)
    error = np.sqrt(level * (1 - level) / size)
    rate = np.mean(longest >= limit)
    assert rate < level + 4 * error
    assert rate > level * (1 - acceptance) / 2  # not a loose bound: a step less is too often
    assert np.mean(longest >= limit - 2) > level + 4 * error or acceptance < 0.1
    mean_error = longest.std() / np.sqrt(size)
    assert longest.mean() == pytest.approx(expected_run(500, acceptance), abs=4 * mean_error + 0.6)


def test_runs():
    moved = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    runs = longest_runs(moved, np.array([[0.4] * 5, [0.0] * 5, [1.0] * 5]))
    np.testing.assert_array_equal(runs.longest, [2, 5, 0])
    np.testing.assert_array_equal(runs.distinct, [3, 1, 6])
    np.testing.assert_array_equal(runs.limit[1:], [6, 1])
    np.testing.assert_array_equal(runs.expected[1:], [5, 0])
    with pytest.raises(ValueError, match="`acceptance` must be in"):
        run_limit(10, 1.5)
    with pytest.raises(ValueError, match="`level` must be in"):
        run_limit(10, 0.5, 0.0)


def test_moves_are_seen_where_draws_saturate():
    draws = np.zeros((1, 4, 1))
    energy = np.array([[1.0, 1.0, 2.0, 2.0]])
    gap = np.array([[np.nan, np.nan, np.nan, 0.1]])
    np.testing.assert_array_equal(have_moved(draws, energy, gap), [[False, True, True]])


def test_acceptance_by_group_and_move():
    before = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, np.inf]])
    accept = np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 9.0, 0.5, 9.0]])
    groups = acceptance_by(before, accept, 2)
    np.testing.assert_array_equal(groups.num_moves, [3, 3])
    np.testing.assert_allclose(groups.acceptance, [0.2, 0.4])
    np.testing.assert_allclose(groups.upper, [2.5, 4.0])
    ties = acceptance_by(np.ones((1, 8)), np.ones((1, 8)), 2)
    assert ties.num_moves.sum() == 8 and np.isnan(ties.acceptance[1])
    assert acceptance_by(np.full((1, 3), np.nan), np.ones((1, 3)), 2).num_moves.sum() == 0
    moves = acceptance_by_move(np.array([[0, 1, 1, 1]]), accept[:1], KINDS)
    np.testing.assert_allclose(moves.share, [0.25, 0.75, 0, 0])
    np.testing.assert_allclose(moves.acceptance, [0.1, 0.3, np.nan, np.nan])


def test_fate_of_proposals():
    """A trajectory, a transition, a refused, a failed one; a walk and a wide one are left out."""
    move = np.array([[1, 2, 1, 1, 0, 3]])
    surrogate = np.array([[0.2, 0.2, np.nan, np.inf, 5.0, 5.0]])
    integration = np.array([[0.3, 9.0, 9.0, 0.0, 0.0, 0.0]])
    accept = np.array([[np.exp(-0.5), np.exp(-0.2), 0, 0, 0, 0]])
    fate = fate_of_proposals(move, accept, surrogate, integration, KINDS)
    lost = np.exp(-0.3) - np.exp(-0.5) + 1 - np.exp(-0.2)
    np.testing.assert_allclose(fate.surrogate, lost / 4)
    np.testing.assert_allclose(fate.integrator, (1 - np.exp(-0.3)) / 4)
    assert (fate.refused, fate.outside) == (0.25, 0.25)
    assert sum(fate[:5]) == pytest.approx(1)
    assert fate.mean_error == pytest.approx(0.2)
    walks = fate_of_proposals(move * 0, accept, surrogate, integration, KINDS)
    assert np.isnan(walks).all()
