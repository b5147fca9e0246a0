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
from implicitppl.score._fitted import FittedScore
from implicitppl.score._selection.held_out import Folds

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


def fit_candidate(
    candidate: Any, rows: Array, weights: Array | None, key: Array, num_covariates: int
) -> FittedScore:
    """Fit a candidate on rows (c, x), or raise for one that cannot be used."""
    name = type(candidate).__name__
    given = {"covariates": rows[:, :num_covariates]} if num_covariates else {}
    if given and "covariates" not in inspect.signature(candidate.fit).parameters:
        raise ValueError(
            f"`candidates` must take covariates where there are some; {name} does not."
        )
    fitted = candidate.fit(rows[:, num_covariates:], weights=weights, key=key, **given)
    if not isinstance(fitted, FittedScore):
        raise ValueError(
            f"`candidates` must have a `fit` that returns a FittedScore; that of {name} returned "
            f"{type(fitted).__name__}."
        )
    return fitted


def candidate_predictions(
    candidates: Sequence[Any],
    samples: Float[Array, "M D"],
    weights: Float[Array, " M"] | None,
    rows: Array,
    rest: Array,
    folds: Folds,
    frame: Frame,
    key: Array,
    num_covariates: int,
) -> tuple[Float[Array, "E n D"], Float[Array, "E n"]]:
    """Return held-out scores and divergences of every candidate, in standardised units.

    Args:
        candidates: E estimators.
        samples: all of them, in the user's units, rows (c, x).
        weights: of all, or None.
        rows: those that `folds` is about.
        rest: those that are not judged, which train in every fold.
        folds: positions in `rows`.
        frame: of y.
        key: for those estimators that need one.
        num_covariates: C.
    """

    def one(candidate: Any, candidate_key: Array) -> tuple[Array, Array]:
        def fold(k: Array) -> tuple[Array, Array]:
            train = jnp.concatenate([rows[folds.train[k]], rest])
            w = None if weights is None else weights[train] / jnp.sum(weights[train])
            fold_key = jax.random.fold_in(candidate_key, k)
            fitted = fit_candidate(candidate, samples[train], w, fold_key, num_covariates)
            judge = frame.to(samples[rows[folds.judge[k]]])
            return _standardised(fitted, judge, frame, num_covariates)

        scores, divergences = jax.lax.map(fold, jnp.arange(folds.train.shape[0]))
        return scores.reshape(-1, samples.shape[1]), divergences.reshape(-1)

    keys = jax.random.split(key, len(candidates))
    found = [one(c, k) for c, k in zip(candidates, keys, strict=True)]
    return jnp.stack([scores for scores, _ in found]), jnp.stack([div for _, div in found])


def _standardised(
    fitted: FittedScore, y: Float[Array, "V D"], frame: Frame, num_covariates: int
) -> tuple[Float[Array, "V D"], Float[Array, " V"]]:
    """Return s_y and div_y s_y at rows y."""

    def score(point: Float[Array, " D"]) -> Float[Array, " D"]:
        x = frame.back(point[None, :])[0]
        given = (x[:num_covariates],) if num_covariates else ()
        value = jnp.pad(fitted(x[num_covariates:], *given), (num_covariates, 0))
        return frame.score_to(value[None, :])[0]

    def both(point: Array) -> tuple[Array, Array]:
        return score(point), jnp.trace(jax.jacfwd(score)(point))

    return jax.lax.map(both, y, batch_size=_BLOCK)
