"""Candidates that the user brings to `select`: any estimator with a `fit`, outside the grid.

Each is fitted once for every fold, on all samples but those of the fold, and once on all; its
held-out scores enter the quadratic programme beside those of the kernel grid, in the same units:

    y = (x - shift) / scale,   s_y = scale s_x,   div_y s_y by D directional derivatives.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.frames import Frame
from implicitppl.score._contract import Estimator
from implicitppl.score._fitted import FittedScore
from implicitppl.score._sample import Sample
from implicitppl.score._selection.folds import Problem
from implicitppl.score._selection.judge import Predictions

# Points whose Jacobians are in memory at once.
_BLOCK = 128


def check_candidates(candidates: Sequence[Any]) -> tuple[Any, ...]:
    """Return the candidates as a tuple, or raise for one that is not an estimator."""
    if not isinstance(candidates, list | tuple):
        raise ValueError(
            f"`candidates` must be a sequence of estimators; got {type(candidates).__name__}."
        )
    for candidate in candidates:
        if isinstance(candidate, type) or not callable(getattr(candidate, "fit", None)):
            raise ValueError(
                "`candidates` must be estimators with a `fit` method, such as KEF(); got "
                f"{candidate!r}."
            )
    return tuple(candidates)


def fit_candidate(candidate: Any, sample: Sample, key: Array) -> FittedScore:
    """Fit a candidate, or raise for one that cannot be used."""
    name = type(candidate).__name__
    conditions = {} if sample.covariates is None else {"covariates": sample.covariates}
    if conditions and not _takes_covariates(candidate):
        raise ValueError(
            f"`candidates` must take covariates where there are some; {name} does not."
        )
    weights = sample.weights if sample.is_weighted else None
    fitted = candidate.fit(sample.x, weights=weights, key=key, **conditions)
    if not isinstance(fitted, FittedScore):
        raise ValueError(
            f"`candidates` must have a `fit` that returns a FittedScore; that of {name} returned "
            f"{type(fitted).__name__}."
        )
    return fitted


def _takes_covariates(candidate: Any) -> bool:
    if isinstance(candidate, Estimator):
        return candidate.takes_covariates
    return "covariates" in inspect.signature(candidate.fit).parameters


def candidate_predictions(candidates: Sequence[Any], problem: Problem, key: Array) -> Predictions:
    """Return held-out scores (E, n, R) and divergences (E, n) of every candidate, in y."""
    folds, sample = problem.folds, problem.sample
    num_points, num_coordinates = folds.judge.size, sample.rows.shape[1]

    def one(candidate: Any, candidate_key: Array) -> Predictions:
        def fold(k: Array) -> Predictions:
            train = jnp.concatenate([problem.judged[folds.train[k]], problem.others])
            fold_key = jax.random.fold_in(candidate_key, k)
            fitted = fit_candidate(candidate, sample.take(train), fold_key)
            points = problem.standard.rows[problem.judged[folds.judge[k]]]
            return _standardised(fitted, points, problem.frame)

        scores, divergences = jax.lax.map(fold, jnp.arange(folds.train.shape[0]))
        return Predictions(scores.reshape(-1, num_coordinates), divergences.reshape(-1))

    if not candidates:
        empty = jnp.zeros((0, num_points), sample.dtype)
        return Predictions(jnp.zeros((0, num_points, num_coordinates), sample.dtype), empty)
    keys = jax.random.split(key, len(candidates))
    each = [one(c, k) for c, k in zip(candidates, keys, strict=True)]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)


def _standardised(fitted: FittedScore, y: Float[Array, "V R"], frame: Frame) -> Predictions:
    """Return s_y and div_y s_y at rows y."""
    num = fitted.num_covariates

    def score(point: Float[Array, " R"]) -> Float[Array, " R"]:
        row = frame.back(point[None, :])[0]
        value = fitted(row[num:], row[:num]) if num else fitted(row)
        return frame.score_to(jnp.pad(value, (num, 0))[None, :])[0]

    def both(point: Array) -> Predictions:
        return Predictions(score(point), jnp.trace(jax.jacfwd(score)(point)))

    return jax.lax.map(both, y, batch_size=_BLOCK)
