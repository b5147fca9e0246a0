"""Where and how long a `ScoreHMC` chain stays: acceptance by place and by move, and runs.

A sound chain accepts about as often everywhere. Acceptance that falls with the energy, or with the
distance from what the surrogate has seen, says that the chain knows its tails from few visits.

Runs: in `n` independent trials of acceptance `a` a run of `r` rejections begins at the first one or
after an acceptance, so that

    P(longest >= r)  <=  (1 - a)^r (1 + (n - r) a),

and the longest is `(log(n a) + 0.577) / -log(1 - a) - 1/2` in the mean (Schilling 1990, College
Mathematics Journal 21).

Shapes: `(C, N)` for chains and draws, `T = N - 1` moves between them.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

FALSE_ALARMS = 0.01


@runtime_checkable
class Kind(Protocol):
    """A kind of move, as a row of `ScoreHMC.moves` has it.

    Attributes:
        name: for tables; nothing is read from it.
        follows_surrogate: whether an exact surrogate would be accepted but for the integrator.
        is_corrected: whether the integrator is corrected within the move.
    """

    @property
    def name(self) -> str: ...
    @property
    def follows_surrogate(self) -> bool: ...
    @property
    def is_corrected(self) -> bool: ...


class Groups(NamedTuple):
    """Acceptance by quantile groups of a quantity before the move; NaN where a group is empty.

    Attributes:
        upper: (G,) largest value in each group.
        acceptance: (G,) mean acceptance probability.
        num_moves: (G,) how many.
    """

    upper: Float[np.ndarray, " G"]
    acceptance: Float[np.ndarray, " G"]
    num_moves: Int[np.ndarray, " G"]


class Moves(NamedTuple):
    """Share of iterations and mean acceptance of each kind of move, `(K,)`."""

    names: tuple[str, ...]
    share: Float[np.ndarray, " K"]
    acceptance: Float[np.ndarray, " K"]


class Runs(NamedTuple):
    """Runs of iterations in which a chain did not move, `(C,)`.

    Attributes:
        longest: iterations of the longest run.
        expected: its mean if every iteration were accepted with the chain's mean acceptance,
            independently.
        limit: a run that long has a probability below 1% in any of the chains, likewise.
        acceptance: the chain's mean acceptance probability.
        distinct: distinct draws.
    """

    longest: Int[np.ndarray, " C"]
    expected: Float[np.ndarray, " C"]
    limit: Int[np.ndarray, " C"]
    acceptance: Float[np.ndarray, " C"]
    distinct: Int[np.ndarray, " C"]


class Proposals(NamedTuple):
    """What became of moves that follow the surrogate; the five shares have the sum 1.

    All are NaN where there are none.

    Attributes:
        accepted: mean acceptance probability.
        surrogate: lost because the surrogate is not the target.
        integrator: lost because steps have a length: what an exact surrogate would lose.
        refused: not evaluated: they diverged or ended where nothing is known.
        outside: ended where the target is zero or its evaluation failed.
        mean_error: mean of `|change of U - U~|`.
    """

    accepted: float
    surrogate: float
    integrator: float
    refused: float
    outside: float
    mean_error: float


def have_moved(
    draws: Float[np.ndarray, "C N P"], *fields: Float[np.ndarray, "C N"]
) -> Bool[np.ndarray, "C T"]:
    """Whether a draw differs from the one before it, in any scalar or any of the fields.

    The fields are for sites whose constrained values saturate: their draws agree though the state
    has moved. Accepted moves of no length at all in floating point count as rejections.
    """
    moved = np.any(draws[:, 1:] != draws[:, :-1], axis=2)
    for field in fields:
        before, after = field[:, :-1], field[:, 1:]
        moved = moved | ((before != after) & ~(np.isnan(before) & np.isnan(after)))
    return moved


def acceptance_by(
    before: Float[np.ndarray, "C T"], accept_prob: Float[np.ndarray, "C T"], num_groups: int
) -> Groups:
    """Acceptance by quantile groups of what was before the move; values not finite are left out."""
    good = np.isfinite(before)
    values, accept = before[good].astype(float), accept_prob[good]
    if not values.size:
        empty = np.full(num_groups, np.nan)
        return Groups(empty, empty, np.zeros(num_groups, int))
    upper = np.quantile(values, np.arange(1, num_groups + 1) / num_groups)
    group = np.searchsorted(upper[:-1], values)  # a value on an edge belongs below it
    count = np.bincount(group, minlength=num_groups)
    total = np.bincount(group, accept, num_groups)
    return Groups(upper, np.where(count > 0, total / np.maximum(count, 1), np.nan), count)


def acceptance_by_move(
    move: Int[np.ndarray, "C N"], accept_prob: Float[np.ndarray, "C N"], kinds: Sequence[Kind]
) -> Moves:
    """Share and acceptance of each kind of move."""
    count = np.bincount(move.ravel(), minlength=len(kinds))
    total = np.bincount(move.ravel(), accept_prob.ravel(), len(kinds))
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Moves(tuple(kind.name for kind in kinds), count / move.size, mean)


def run_limit(num_trials: int, acceptance: float, level: float = FALSE_ALARMS) -> int:
    """The shortest run of rejections whose probability in `num_trials` trials is below `level`.

    Args:
        num_trials: independent trials.
        acceptance: of each, in [0, 1].
        level: probability of a false alarm, at most.

    Returns:
        A length from 1 to `num_trials + 1`, which is never reached.

    Raises:
        ValueError: an acceptance or a level out of range.

    Example:
        >>> from implicitppl.diagnostics._surrogate_report.parts import run_limit
        >>> run_limit(1000, 0.7), run_limit(1000, 0.1)
        (10, 87)
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"`acceptance` must be in [0, 1]; got {acceptance}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1); got {level}.")
    r = np.arange(1, num_trials + 1)
    bound = (1 - acceptance) ** r * (1 + (num_trials - r) * acceptance)
    rare = np.flatnonzero(bound < level)
    return int(r[rare[0]]) if rare.size else num_trials + 1


def expected_run(num_trials: int, acceptance: float) -> float:
    """Mean of the longest run of rejections in independent trials, between 0 and their number."""
    if acceptance >= 1:
        return 0.0
    if num_trials * acceptance <= 1:
        return float(num_trials)
    length = (np.log(num_trials * acceptance) + np.euler_gamma) / -np.log1p(-acceptance) - 0.5
    return float(np.clip(length, 0, num_trials))


def longest_runs(moved: Bool[np.ndarray, "C T"], accept_prob: Float[np.ndarray, "C T"]) -> Runs:
    """The longest runs of rejections, and what independent acceptance would give."""
    num_chains, num_trials = moved.shape
    acceptance = np.clip(accept_prob.mean(axis=1), 0, 1).astype(float)
    level = FALSE_ALARMS / num_chains
    return Runs(
        np.array([_longest(~row) for row in moved]),
        np.array([expected_run(num_trials, a) for a in acceptance]),
        np.array([run_limit(num_trials, a, level) for a in acceptance]),
        acceptance,
        1 + moved.sum(axis=1),
    )


def _longest(stayed: np.ndarray) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], stayed, [False]]).astype(int)))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


def fate_of_proposals(
    move: Int[np.ndarray, "C N"],
    accept_prob: Float[np.ndarray, "C N"],
    surrogate_error: Float[np.ndarray, "C N"],
    integration_error: Float[np.ndarray, "C N"],
    kinds: Sequence[Kind],
) -> Proposals:
    """What moves that follow the surrogate lost to its errors, to the integrator, to refusal.

    A trajectory is accepted with `min(1, exp(-surrogate_error - integration_error))`, so an exact
    surrogate would give `min(1, exp(-integration_error))`. A transition corrects the integrator
    within: an exact surrogate would give 1. Random walks, and transitions under a wider density,
    are rejected by the target itself and left out.
    """
    follows = np.array([kind.follows_surrogate for kind in kinds])
    corrected = np.array([kind.is_corrected for kind in kinds])
    kept = follows[move]
    if not kept.any():
        return Proposals(*[float("nan")] * 6)
    error, accept = surrogate_error[kept].astype(float), accept_prob[kept].astype(float)
    exact = np.exp(-np.maximum(integration_error[kept].astype(float), 0))
    exact = np.where(corrected[move[kept]], 1.0, exact)
    refused, outside = np.isnan(error), np.isinf(error)
    good = ~(refused | outside)
    return Proposals(
        float(accept.mean()),
        float(np.sum((exact - accept)[good]) / error.size),
        float(np.sum((1 - exact)[good]) / error.size),
        float(refused.mean()),
        float(outside.mean()),
        float(np.mean(np.abs(error[good]))) if good.any() else float("nan"),
    )
