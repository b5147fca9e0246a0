"""The kinds of moves, and which of them is used: by jumps for each evaluation, not by acceptance.

Leapfrog steps are free and evaluations are not, so the best move is that with the largest expected
squared jump for each evaluation, acceptance included. A coordinate that does not move would be
hidden in a sum over coordinates, so their harmonic mean is compared.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

WALK_TARGET = 0.3
# length of a trajectory, number of trajectories, whether they are a corrected transition
MOVES = (
    (0.0, 0, False),
    (0.4, 1, False),
    (0.8, 1, False),
    (1.5, 1, False),
    (1.5, 3, True),
    (1.5, 8, True),
    (1.5, 3, True),
)
NAMES = (
    "random walk",
    "short",
    "medium",
    "long",
    "transition of 3",
    "transition of 8",
    "wide transition",
)
WIDE = len(MOVES) - 1
NUM_MOVES, MAX_TRAJECTORIES = len(MOVES), 8
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
        jnp.zeros(NUM_MOVES, dtype).at[0].set(1.0),
        jnp.zeros((NUM_MOVES, dimension), dtype),
        jnp.zeros(NUM_MOVES, jnp.int32),
        jnp.zeros((NUM_DESIGN, dimension), dtype),
    )


def exploring(safe: float, dtype: jnp.dtype) -> Float[Array, " K"]:
    """Return probabilities while the surrogate is learned."""
    rest = (1 - safe) / (NUM_MOVES - 1)
    return jnp.full((NUM_MOVES,), rest, dtype).at[0].set(safe)


def single(probabilities: Float[Array, " K"], walks: Array) -> Float[Array, " K"]:
    """Return probabilities without corrected transitions, with the given one of random walks."""
    kept = jnp.where(jnp.asarray(table()[2]), 0, probabilities).at[0].set(0)
    # With random walks only there is nothing to share.
    kept = kept / jnp.maximum(jnp.sum(kept), jnp.finfo(kept.dtype).tiny)
    return (kept * (1 - walks)).at[0].set(walks)


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
    probabilities = probabilities.at[WIDE].max(WIDE_SHARE).at[0].set(0)
    return (probabilities * (1 - walk) / jnp.sum(probabilities)).at[0].set(walk)


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
    lengths, numbers, corrected = zip(*MOVES, strict=True)
    return np.array(lengths), np.array(numbers), np.array(corrected)
