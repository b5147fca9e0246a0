"""When a run stops exploring, and how fast it moves: the rules of `implicitppl.infer.fit`.

Explore at a constant rate, after a short warm-up, until progress stops or half of the budget is
spent; then anneal along a cosine to one hundredth of the rate, for as many steps as exploring took.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

FINAL_RATE = 0.01
WARMUP_STEPS = 100


class FitSchedule(NamedTuple):
    """The numbers that fix a schedule."""

    num_steps: int
    learning_rate: float | None
    check_every: int
    tolerance: float
    drift_tolerance: float


def rate_factor(step: Array, anneal_start: Array, end: Array) -> Array:
    """Return the share of the learning rate at a step; `anneal_start` is -1 while exploring."""
    warm = jnp.minimum((step + 1.0) / WARMUP_STEPS, 1.0)
    length = jnp.maximum(end - anneal_start, 1)
    fraction = jnp.clip((step - anneal_start) / length, 0.0, 1.0)
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
    return warm * jnp.where(anneal_start < 0, 1.0, cosine)


def falls(losses: np.ndarray, tolerance: float) -> bool:
    """Tell whether the second half of the losses is lower than the first, beyond noise."""
    before, after = np.array_split(losses, 2)
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if min(len(before), len(after)) < 2:
        return True
    error = np.sqrt(before.var() / len(before) + after.var() / len(after))
    return bool(before.mean() - after.mean() > max(2 * error, tolerance))


def drift(before: np.ndarray, after: np.ndarray) -> float:
    """Return the root mean square change of means and log sds, in units of the sd."""
    scale = after.std(axis=0) + 1e-12
    shift = (after.mean(axis=0) - before.mean(axis=0)) / scale
    stretch = np.log(scale / (before.std(axis=0) + 1e-12))
    return float(np.sqrt(np.mean(shift**2 + stretch**2)))
