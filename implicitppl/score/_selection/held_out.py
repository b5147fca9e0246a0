"""Held-out score matching of every kernel candidate, in one compiled program.

For each fold V and each candidate fitted on the other folds, with s = s0 + sum_j f_j psi_j beta_j,

    loss(x) = |s(x)|^2 / 2 + div s(x),    div s(x) = div s0 + sum_j f_j grad psi_j(x) . beta_j,

in standardised coordinates y, the same for all candidates: losses in different coordinates do not
compare. Everything that is fitted (metric, width, Gaussian, eigenfunctions) is fitted inside the
fold; a whitening fitted on all samples would leak. One eigendecomposition serves all filters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitppl.score._reference import GaussianReference
from implicitppl.score._sample import Sample
from implicitppl.score._selection.fold_fits import fit_folds
from implicitppl.score._selection.folds import Folds, Problem
from implicitppl.score._selection.grid import Grid, entries
from implicitppl.score._selection.judge import Judge, Predictions, make_judge
from implicitppl.score._selection.prepared import Prepared, prepare

# Samples from which the median distance is taken, many times over.
_MEDIAN_SAMPLES = 500
# Predictions kept for the quadratic programme, as numbers (200 MB in float32), and candidates of
# each configuration that keep theirs.
_PREDICTIONS, _BEST = 5e7, 3


class HeldOut(NamedTuple):
    """What the folds say about every candidate, and the predictions of the best of each kind.

    Attributes:
        gain: mean difference of the loss to the Gaussian's, negative is better; (N, F).
        error: standard error of its difference to the Gaussian, the rival, or in between; (N, F).
        best: index of the filter, for the q best of each configuration; (N, q).
        scores: held-out scores of those, then of the A Gaussian atoms, then of the E candidates
            that the user brought; (N q + A + E, n, R).
        linear: mean divergence of those.
        penalty: standard error of those.
        brought_gain: as `gain`, of what the user brought; (E,).
        brought_error: its standard error; (E,).
        gaussian_loss: of the Gaussian reference.
        weights: of the held-out points, sum to one.
    """

    gain: Float[Array, "N F"]
    error: Float[Array, "N F"]
    best: Int[Array, "N q"]
    scores: Float[Array, "S n R"]
    linear: Float[Array, " S"]
    penalty: Float[Array, " S"]
    brought_gain: Float[Array, " E"]
    brought_error: Float[Array, " E"]
    gaussian_loss: Float[Array, ""]
    weights: Float[Array, " n"]


def held_out(
    problem: Problem, grid: Grid, brought: Predictions, num_errors: Float[Array, ""]
) -> HeldOut:
    """Return the held-out losses of all candidates.

    Args:
        problem: the samples, and which of them train and judge.
        grid: the kernel candidates.
        brought: held-out predictions of those that the user brought.
        num_errors: c, of the criterion.

    Cost O(N K (T^3 + V T J)) with N configurations, T replaced by the number of landmarks in T^3.
    """
    sample, folds = problem.standard.take(problem.judged), problem.folds
    prepared = jax.lax.map(
        lambda train: prepare(
            _training_set(sample, train), problem.scale, grid.metrics, _MEDIAN_SAMPLES
        ),
        folds.train,
    )
    atoms = _atom_predictions(prepared, sample, folds)
    judge = make_judge(Predictions(atoms.scores[0], atoms.divergences[0]), sample, problem)
    judge, kernels = _judge_grid(sample, prepared, grid, judge, num_errors)
    _, atom_errors = judge.gains_and_errors(atoms)
    brought_gain, brought_error = judge.gains_and_errors(brought)
    best_errors = jnp.take_along_axis(kernels.error, kernels.best, axis=1).reshape(-1)
    best_scores = kernels.scores.reshape(-1, *atoms.scores.shape[1:])
    linear = [atoms.divergences @ judge.weights, brought.divergences @ judge.weights]
    return HeldOut(
        kernels.gain,
        kernels.error,
        kernels.best,
        jnp.concatenate([best_scores, atoms.scores, brought.scores]),
        jnp.concatenate([kernels.linear.reshape(-1), *linear]),
        jnp.concatenate([best_errors, atom_errors, brought_error]),
        brought_gain,
        brought_error,
        jnp.sum(judge.weights * judge.loss),
        judge.weights,
    )


def _training_set(sample: Sample, index: Int[Array, " T"]) -> Sample:
    """Return some of the rows, with weights scaled to sum to one even where they are equal.

    `take` would make them anew, which rounds otherwise: candidates of small levels amplify that,
    and published choices would change in their last digits.
    """
    weights = sample.weights[index]
    scaled = weights / jnp.sum(weights)
    return Sample(sample.rows[index], scaled, sample.num_covariates, sample.is_weighted)


def _atom_predictions(prepared: Prepared, sample: Sample, folds: Folds) -> Predictions:
    """Return the held-out predictions of the Gaussians."""

    def fold(mean: Array, precisions: Array, points: Array) -> Array:
        return jax.vmap(lambda p: GaussianReference(mean, p).score(points))(precisions)

    precisions = prepared.precisions
    scores = jax.vmap(fold)(prepared.mean, precisions, sample.rows[folds.judge])
    # (K, A, V, R) -> (A, n, R)
    scores = jnp.swapaxes(scores, 0, 1).reshape(scores.shape[1], -1, scores.shape[-1])
    divergences = -jnp.trace(precisions, axis1=2, axis2=3)
    return Predictions(scores, jnp.repeat(divergences.T, folds.judge.shape[1], axis=1))


class _Judged(NamedTuple):
    """What is found of a configuration: gain and error of F filters, and the q best; or of all."""

    gain: Float[Array, "*N F"]
    error: Float[Array, "*N F"]
    best: Int[Array, "*N q"]
    scores: Float[Array, "*N q n R"]
    linear: Float[Array, "*N q"]


def _judge_grid(
    sample: Sample, prepared: Prepared, grid: Grid, judge: Judge, num_errors: Float[Array, ""]
) -> tuple[Judge, _Judged]:
    """Return the judge with the rival that the defaults set, and what is found of the grid.

    The configuration of the defaults comes first: all others are compared with it.
    """
    num_best = _num_best(grid, judge.gaussian)
    default = grid.default_configuration
    order = np.argsort(np.arange(grid.num_configurations) != default, kind="stable")

    def configuration(rival: Array, index: Array) -> tuple[Array, _Judged]:
        entry = entries(grid.configurations, index, sample.dtype)
        fits = fit_folds(sample, judge.folds, prepared, entry)

        def predict(f: Array) -> Predictions:
            return fits.predict(entries(grid.filters, f, sample.dtype), judge.gaussian)

        rival = jax.lax.cond(
            index == default,
            lambda: judge.best_rival([predict(jnp.asarray(f)) for f in grid.default_filters]),
            lambda: rival,
        )
        compared = judge._replace(rival=rival)
        gain, error = jax.lax.map(
            lambda f: compared.gain_and_error(predict(f)), jnp.arange(grid.num_filters)
        )
        criterion = jnp.where(jnp.isfinite(gain + error), gain + num_errors * error, jnp.inf)
        _, best = jax.lax.top_k(-criterion, num_best)
        scores, divergences = jax.lax.map(predict, best)
        return rival, _Judged(gain, error, best, scores, divergences @ judge.weights)

    rival, judged = jax.lax.scan(configuration, judge.rival, jnp.asarray(order))
    judged = jax.tree.map(lambda column: column[np.argsort(order)], judged)
    return judge._replace(rival=rival), judged


def _num_best(grid: Grid, like: Predictions) -> int:
    """Return how many candidates of each configuration keep their predictions."""
    room = int(_PREDICTIONS / (grid.num_configurations * like.scores.size))
    return max(1, min(_BEST, room))
