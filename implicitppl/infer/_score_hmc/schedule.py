"""When what is adapted: a schedule that is known before the first iteration.

fits    after about D evaluations and then whenever their number has grown by a seventh, until 4/5
        of the warm-up; the last fit is there
trials  from then on every kind of move is tried equally often, under that fit
frozen  after the warm-up nothing changes any more
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from implicitppl.infer._score_hmc.noise import num_measured

GROWTH = 1.15
FITTING_SHARE = 0.8
MIN_GAP = 4


class WarmupSchedule(NamedTuple):
    """A schedule of `num_warmup` iterations.

    Attributes:
        num_warmup: iterations of warm-up.
        fits: iterations before which the surrogate is fitted.
        measuring: iteration from which the noise of a random target is measured.
        small_fits: those before which it is fitted on the way down, to `small` evaluations.
        trials: iteration from which moves are compared.
    """

    num_warmup: int
    fits: tuple[int, ...]
    trials: int
    small_fits: tuple[int, ...]
    small: int
    measuring: int


class Phase(NamedTuple):
    """Where in its warm-up a run is, before an iteration.

    Attributes:
        i: the iteration.
        descending: whether the bulk is not reached.
        early: whether that is so, or the first half of the warm-up is not over.
    """

    i: Int[Array, ""]
    descending: Bool[Array, ""]
    early: Bool[Array, ""]


def make_schedule(
    num_warmup: int, num_chains: int, dimension: int, num_known: int
) -> WarmupSchedule:
    """Return the schedule for chains that share `num_known` earlier evaluations."""
    last = int(FITTING_SHARE * num_warmup)
    needed = max(10, dimension + 2)
    fits: list[int] = []
    if num_warmup > 0 and num_known >= needed:
        fits.append(0)
    for i in range(1, last + 1):
        count = num_known + num_chains * (i + 1)
        if count >= needed and (not fits or i - fits[-1] >= MIN_GAP):
            fits.append(i)
            needed = int(np.ceil(GROWTH * count))
    if fits and fits[-1] != last:
        if last - fits[-1] < MIN_GAP or fits[-1] > 0.85 * last:
            fits.pop()
        fits.append(last)
    if fits and num_warmup - 1 - fits[-1] >= MIN_GAP:
        fits.append(num_warmup - 1)
    small = max(64, 4 * (dimension + 1))
    gap = max(1, -(-(dimension + 2) // (2 * num_chains)))
    small_fits = tuple(range(fits[0], last, gap)) if fits else ()
    measuring = num_warmup - num_measured(num_warmup)
    return WarmupSchedule(num_warmup, tuple(fits), last, small_fits, small, measuring)
