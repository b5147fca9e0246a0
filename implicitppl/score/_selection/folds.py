"""Samples made ready for judging: standardised, ordered, and split into folds of equal sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitppl._core.frames import Frame
from implicitppl.score._sample import Sample
from implicitppl.score._selection.normality import not_gaussian

# Samples on which candidates are compared; all samples enter the final fit.
_JUDGED = 4000
# Samples whose span is searched in a fold, where only the choice depends on it.
_FOLD_FULL, _FOLD_LANDMARKS = 250, 200
# Batches of an autocorrelated sample between which dependence is neglected.
_BATCHES = 20


class Folds(NamedTuple):
    """Which samples train and which judge; all folds have equal sizes.

    Attributes:
        train: (K, T) rows.
        judge: (K, V) rows, disjoint from `train` in each fold.
        landmarks: (K, m) rows of `train`, or None for all of them.
        groups: (K V,) samples of one group are dependent; the standard error sums over groups.
        num_groups: how many groups there are.
    """

    train: Int[Array, "K T"]
    judge: Int[Array, "K V"]
    landmarks: Int[Array, "K m"] | None
    groups: Int[Array, " n"]
    num_groups: int


class Problem(NamedTuple):
    """Samples in standard deviations, y = (x - shift) / scale, and which of them train and judge.

    Attributes:
        sample: in the user's units.
        standard: the same in y.
        frame: that of y.
        scale: (R,) a unit of y in the user's coordinates, up to a common factor: the isotropic
            metric is isotropic there.
        order: (M,) a random order of the samples, likely ones first if they are weighted.
        judged: (n,) the samples on which candidates are compared.
        others: those that are not, which train wherever a candidate sees all samples.
        folds: positions in `judged`.
        doubt: from 0 to 1, how clearly the samples are not Gaussian.
    """

    sample: Sample
    standard: Sample
    frame: Frame
    scale: Float[Array, " R"]
    order: Int[Array, " M"]
    judged: Int[Array, " n"]
    others: Int[Array, " o"]
    folds: Folds
    doubt: Float[Array, ""]


def pose(sample: Sample, key: Array, num_folds: int, autocorrelated: bool) -> Problem:
    """Return the problem that a sample poses: the key decides its order and its folds."""
    frame, scale = standard_frame(sample)
    standard = sample.seen_in(frame)
    order = random_order(key, sample)
    num = min(sample.size, _JUDGED)
    # What is not judged trains, except between the draws of a chain, which depend on them.
    others = order[:0] if autocorrelated else order[num:]
    # The moments of correlated or weighted draws of a Gaussian have other variances, and those of
    # a regression are not those of its residuals.
    doubt = jnp.zeros((), sample.dtype)
    if not (sample.is_weighted or autocorrelated or sample.num_covariates):
        doubt = not_gaussian(standard.rows)
    return Problem(
        sample,
        standard,
        frame,
        scale,
        order,
        judged_rows(key, order, sample, num, autocorrelated),
        others,
        make_folds(num, num_folds, autocorrelated),
        doubt,
    )


def standard_frame(sample: Sample) -> tuple[Frame, Float[Array, " R"]]:
    """Return the frame of standard deviations, in which constant coordinates are 0, and its unit.

    The unit is that of every coordinate as a share of the largest among those of x.
    """
    m = sample.moments
    spread = jnp.sqrt(jnp.where(m.varies, jnp.diagonal(m.covariance), 0))
    largest = jnp.max(spread)
    spread = jnp.where(m.varies, spread, jnp.where(largest > 0, largest, 1))
    return Frame(m.mean, spread), spread / jnp.max(spread[sample.num_covariates :])


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


def random_order(key: Array, sample: Sample) -> Int[Array, " M"]:
    """Return a random order of the samples, likely ones first if they are weighted."""
    if not sample.is_weighted:
        return jax.random.permutation(key, sample.size)
    # Gumbel top-k: draws without replacement, with probability proportional to the weights.
    noise = jax.random.gumbel(key, (sample.size,), sample.dtype)
    return jnp.argsort(-jnp.log(sample.weights) - noise)


def judged_rows(
    key: Array, order: Array, sample: Sample, num: int, autocorrelated: bool
) -> Int[Array, " n"]:
    """Return the samples on which candidates are compared: in random order, or in their own."""
    if autocorrelated:
        return jnp.asarray(np.linspace(0, sample.size - 1, num).round().astype(int))
    # Weighted samples come likely ones first, which would make the folds unequal.
    return jax.random.permutation(key, order[:num]) if sample.is_weighted else order[:num]
