"""Samples made ready for judging: standardised, ordered, and split into folds of equal sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitppl._core.frames import Frame
from implicitppl._core.moments import Moments, moments
from implicitppl.score._checks import or_equal
from implicitppl.score._selection.held_out import Folds

# Samples whose span is searched in a fold, where only the choice depends on it.
_FOLD_FULL, _FOLD_LANDMARKS = 250, 200
# Batches of an autocorrelated sample between which dependence is neglected.
_BATCHES = 20


class Problem(NamedTuple):
    """Standardised samples: y = (x - shift) / scale, weights sum to one.

    With covariates a row is (c, x), and `num_covariates` is how many of its entries are c.
    """

    y: Float[Array, "M D"]
    frame: Frame
    unit: Float[Array, " D"]
    weights: Float[Array, " M"] | None
    moments: Moments
    num_covariates: int


def standardise(samples: Array, weights: Array | None, num_covariates: int) -> Problem:
    """Return the samples in standard deviations; constant coordinates become 0."""
    m = moments(samples, or_equal(weights, samples))
    spread = jnp.sqrt(jnp.where(m.varies, jnp.diagonal(m.covariance), 0))
    largest = jnp.max(spread)
    spread = jnp.where(m.varies, spread, jnp.where(largest > 0, largest, 1))
    frame = Frame(m.mean, spread)
    unit = spread / jnp.max(spread[num_covariates:])
    return Problem(frame.to(samples), frame, unit, weights, m, num_covariates)


def make_folds(size: int, num_folds: int, autocorrelated: bool) -> Folds:
    """Return folds of equal sizes over positions 0 .. size - 1; a remainder always trains."""
    count = size // num_folds
    judge = np.arange(num_folds * count).reshape(num_folds, count)
    train = np.stack([np.setdiff1d(np.arange(size), fold) for fold in judge])
    landmarks = None
    if train.shape[1] > _FOLD_FULL:
        spaced = np.linspace(0, train.shape[1] - 1, _FOLD_LANDMARKS).round().astype(int)
        landmarks = jnp.asarray(train[:, spaced])
    num_groups = min(_BATCHES, judge.size) if autocorrelated else judge.size
    groups = np.arange(judge.size) * num_groups // judge.size
    return Folds(jnp.asarray(train), jnp.asarray(judge), landmarks, jnp.asarray(groups), num_groups)


def random_order(key: Array, size: int, weights: Array | None) -> Int[Array, " M"]:
    """Return a random order of the samples, likely ones first if they are weighted."""
    if weights is None:
        return jax.random.permutation(key, size)
    # Gumbel top-k: draws without replacement, with probability proportional to the weights.
    return jnp.argsort(-jnp.log(weights) - jax.random.gumbel(key, (size,), weights.dtype))


def judged_rows(
    key: Array, order: Array, weights: Array | None, num: int, autocorrelated: bool
) -> Int[Array, " n"]:
    """Return the samples on which candidates are compared: in random order, or in their own."""
    if autocorrelated:
        return jnp.asarray(np.linspace(0, order.shape[0] - 1, num).round().astype(int))
    # Weighted samples come likely ones first, which would make the folds unequal.
    return order[:num] if weights is None else jax.random.permutation(key, order[:num])
