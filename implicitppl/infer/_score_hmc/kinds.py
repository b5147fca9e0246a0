"""The kinds of moves, and which of them is used: by jumps for each evaluation, not by acceptance.

Leapfrog steps are free and evaluations are not, so the best move is that with the largest expected
squared jump for each evaluation, acceptance included. A coordinate that does not move would be
hidden in a sum over coordinates, so their harmonic mean is compared.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

WALK_TARGET = 0.3  # acceptance of random walks


class Kind(NamedTuple):
    """A kind of move.

    Attributes:
        name: for tables.
        time: length of a trajectory, in coordinates in which the target has about unit covariance.
        num_trajectories: how many there are in a move.
        follows_surrogate: whether an exact surrogate would be accepted but for the integrator; the
            target itself rejects other moves.
        is_corrected: whether the integrator is corrected within the move.
    """

    name: str
    time: float
    num_trajectories: int
    follows_surrogate: bool
    is_corrected: bool


MOVES = (
    Kind("random walk", 0.0, 0, follows_surrogate=False, is_corrected=False),
    Kind("short", 0.4, 1, follows_surrogate=True, is_corrected=False),
    Kind("medium", 0.8, 1, follows_surrogate=True, is_corrected=False),
    Kind("long", 1.5, 1, follows_surrogate=True, is_corrected=False),
    Kind("transition of 3", 1.5, 3, follows_surrogate=True, is_corrected=True),
    Kind("transition of 8", 1.5, 8, follows_surrogate=True, is_corrected=True),
    Kind("wide transition", 1.5, 3, follows_surrogate=False, is_corrected=True),
)
WALK, WIDE = 0, len(MOVES) - 1
NUM_MOVES, MAX_TRAJECTORIES = len(MOVES), max(kind.num_trajectories for kind in MOVES)
NUM_DESIGN = 64
WIDTH, WIDE_SHARE = 0.75, 0.15
BEST_SHARE = 0.8  # of the moves that are no random walks


class Adaptation(NamedTuple):
    """What warm-up learns beside the surrogate.

    Attributes:
        step_size: of the leapfrog integrator.
        walk_scale: of the random walk, in the coordinates of the trajectories.
        probabilities: (K,) of the kinds of moves.
        jumps: (K, D) sum of accepted squared jumps of each coordinate in the trials.
        trials: (K,) number of trials.
        design: (Q, D) points to evaluate next for the surrogate's sake.
    """

    step_size: Float[Array, ""]
    walk_scale: Float[Array, ""]
    probabilities: Float[Array, " K"]
    jumps: Float[Array, "K D"]
    trials: Int[Array, " K"]
    design: Float[Array, "Q D"]


def initial(dimension: int, dtype: jnp.dtype) -> Adaptation:
    """Return the adaptation before the first iteration: random walks only."""
    return Adaptation(
        jnp.asarray(0.5, dtype),
        jnp.asarray(2.38 / dimension**0.5, dtype),
        jnp.zeros(NUM_MOVES, dtype).at[WALK].set(1.0),
        jnp.zeros((NUM_MOVES, dimension), dtype),
        jnp.zeros(NUM_MOVES, jnp.int32),
        jnp.zeros((NUM_DESIGN, dimension), dtype),
    )


def counted(
    i: Int[Array, ""],
    kind: Int[Array, ""],
    accept: Float[Array, " C"],
    jump: Float[Array, "C D"],
    old: Adaptation,
    trials: int,
    end: int,
) -> Adaptation:
    """Return the adaptation after a move: the size of walks, and from the trials on its jumps.

    Nothing changes from iteration `end` on.
    """
    rate = 1 / (1 + i.astype(accept.dtype)) ** 0.5
    scale = old.walk_scale * jnp.exp(rate * (jnp.mean(accept) - WALK_TARGET))
    learning = i < end
    trial = (i >= trials) & learning
    # A jump that is not finite was refused; 0 times it would be no number.
    squares = jnp.mean(jnp.where(accept[:, None] > 0, accept[:, None] * jump**2, 0), axis=0)
    return old._replace(
        walk_scale=jnp.where((kind == WALK) & learning, scale, old.walk_scale),
        jumps=old.jumps.at[kind].add(jnp.where(trial, squares, 0)),
        trials=old.trials.at[kind].add(trial.astype(old.trials.dtype)),
    )


def exploring(safe: float, dtype: jnp.dtype) -> Float[Array, " K"]:
    """Return probabilities while the surrogate is learned."""
    rest = (1 - safe) / (NUM_MOVES - 1)
    return jnp.full((NUM_MOVES,), rest, dtype).at[WALK].set(safe)


def single(probabilities: Float[Array, " K"], walks: Array) -> Float[Array, " K"]:
    """Return probabilities without corrected transitions, with the given one of random walks."""
    kept = jnp.where(jnp.asarray(table()[2]), 0, probabilities).at[WALK].set(0)
    # With random walks only there is nothing to share.
    kept = kept / jnp.maximum(jnp.sum(kept), jnp.finfo(kept.dtype).tiny)
    return (kept * (1 - walks)).at[WALK].set(walks)


def decide(adaptation: Adaptation, safe: float) -> Float[Array, " K"]:
    """Return the probabilities with which moves are made after warm-up.

    The best trajectory gets most of what the random walk leaves; the others share the rest, so that
    no state is left to one kind of move. If the random walk jumps farther than all of them, it gets
    four moves in five.
    """
    jumps = adaptation.jumps / jnp.maximum(adaptation.trials, 1)[:, None]
    score = 1 / jnp.mean(1 / (jumps + 1e-6), axis=1)
    best = 1 + jnp.argmax(score[1:])
    walk_wins = score[0] > score[best]
    walk = jnp.where(walk_wins, jnp.maximum(0.8, safe), safe)
    others = (1 - BEST_SHARE) / (NUM_MOVES - 2)
    probabilities = jnp.full(score.shape, others, score.dtype).at[best].set(BEST_SHARE)
    probabilities = probabilities.at[WIDE].max(WIDE_SHARE).at[WALK].set(0)
    return (probabilities * (1 - walk) / jnp.sum(probabilities)).at[WALK].set(walk)


def temperatures(dimension: int) -> np.ndarray:
    """Return the temperature of each kind of move.

    A wide transition moves under V / T: where the surrogate is too high, which is far out, its
    density is not so much too low, and a chain does not stay there for long. V has a standard
    deviation of (D/2)^(1/2) under the target, so the correction's is WIDTH.
    """
    inverse = max(1 - WIDTH / (dimension / 2) ** 0.5, 0.25)
    return np.where(np.arange(NUM_MOVES) == WIDE, 1 / inverse, 1.0)


def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lengths, numbers of trajectories, and whether they are corrected, of all kinds."""
    columns = zip(*((k.time, k.num_trajectories, k.is_corrected) for k in MOVES), strict=True)
    times, numbers, corrected = map(np.array, columns)
    return times, numbers, corrected
