"""Held-out score matching of every kernel candidate, in one compiled program.

For each fold V and each candidate fitted on the other folds, with s = s0 + sum_j f_j psi_j beta_j,

    loss(x) = |s(x)|^2 / 2 + div s(x),    div s(x) = div s0 + sum_j f_j grad psi_j(x) . beta_j,

in standardised coordinates y, the same for all candidates: losses in different coordinates do not
compare. Everything that is fitted (metric, width, Gaussian, eigenfunctions) is fitted inside the
fold; a whitening fitted on all samples would leak. One eigendecomposition serves all filters.

A candidate is judged by the paired difference of its loss to that of the Gaussian,

    criterion = mean difference + c (its standard error),

because the smallest of a thousand noisy means is mostly noise: at M = 100 the candidate with the
smallest mean has twenty times the error of the Gaussian on normal samples.

Where the samples are clearly not Gaussian (`_normality`), the Gaussian deserves no such protection,
and on heavy tails, where its loss is dominated by a few samples, no other estimate would ever be
believed. The standard error is then of the difference to the rival: the best by its mean of the
Gaussian and of two defaults that were not searched for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitppl._core.frames import Frame
from implicitppl.score._checks import or_equal
from implicitppl.score._reference import GaussianReference
from implicitppl.score._selection.grid import (
    Filters,
    Grid,
    RadialChoice,
    default_configuration,
    default_filters,
)
from implicitppl.score._selection.prepared import atom_scores, basis_of, prepare
from implicitppl.score._spectral.basis import stein_targets
from implicitppl.score._spectral.filters import RelativeRidge


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


class HeldOut(NamedTuple):
    """What the folds say about every candidate, and the predictions of the best of each kind.

    Attributes:
        gain: mean difference of the loss to the Gaussian's, negative is better; (N, F).
        error: standard error of its difference to the Gaussian, the rival, or in between; (N, F).
        best: index of the filter, for the q best of each configuration; (N, q).
        scores: held-out scores of those, then of the A Gaussian atoms, then of the E candidates
            from outside the grid; (N q + A + E, n, D).
        linear: mean divergence of those.
        penalty: standard error of those.
        outside_gain: as `gain`, of the candidates from outside; (E,).
        outside_error: its standard error; (E,).
        gaussian_loss: of the Gaussian reference.
        weights: of the held-out points, sum to one.
    """

    gain: Float[Array, "N F"]
    error: Float[Array, "N F"]
    best: Int[Array, "N q"]
    scores: Float[Array, "S n D"]
    linear: Float[Array, " S"]
    penalty: Float[Array, " S"]
    outside_gain: Float[Array, " E"]
    outside_error: Float[Array, " E"]
    gaussian_loss: Float[Array, ""]
    weights: Float[Array, " n"]


def held_out(
    y: Float[Array, "M D"],
    unit: Float[Array, " D"],
    weights: Float[Array, " M"] | None,
    folds: Folds,
    grid: Grid,
    filters: Filters,
    num_errors: Float[Array, ""],
    num_best: int,
    num_covariates: int,
    outside: tuple[Float[Array, "E n D"], Float[Array, "E n"]],
    doubt: Float[Array, ""],
) -> HeldOut:
    """Return the held-out losses of all candidates.

    Args:
        y: standardised samples.
        unit: what a unit of y is in the user's coordinates, up to a common factor: the isotropic
            metric is isotropic there.
        weights: of the samples, sum to one; None for equal ones.
        folds: which samples train and which judge.
        grid: configurations of the kernel.
        filters: candidates within a configuration.
        num_errors: c.
        num_best: q, how many candidates of each configuration keep their predictions.
        num_covariates: leading coordinates of y, which condition and are not judged.
        outside: held-out scores and divergences of the candidates that are not in the grid.
        doubt: from 0, errors are of the difference to the Gaussian, to 1, to the rival.

    Cost O(N K (T^3 + V T J)) with N configurations, T replaced by the number of landmarks in T^3.
    """
    w = or_equal(weights, y)
    judge = folds.judge.reshape(-1)
    judge_weights = w[judge] / jnp.sum(w[judge])
    weighted = weights is not None
    prepared = jax.lax.map(
        lambda train: prepare(y, unit, w, train, grid.metrics, weighted, num_covariates),
        folds.train,
    )
    atoms, divergences = jax.vmap(atom_scores)(prepared.mean, prepared.precisions, y[folds.judge])
    # (K, A, V, D) -> (A, n, D)
    atoms = jnp.swapaxes(atoms, 0, 1).reshape(atoms.shape[1], *y[judge].shape)
    divergences = jnp.repeat(divergences.T, folds.judge.shape[1], axis=1)
    base = 0.5 * jnp.sum(atoms[0] ** 2, axis=1) + divergences[0]

    def difference(scores: Array, divergence: Array) -> Array:
        """Return the loss minus that of the Gaussian, at every held-out point."""
        return 0.5 * jnp.sum(scores**2, axis=1) + divergence - base

    def judged(scores: Array, divergence: Array, rival: Array) -> tuple[Array, Array]:
        """Return the mean difference to the Gaussian, and the error that it is charged with."""
        to_gaussian = difference(scores, divergence)
        mean, error = _mean_and_error(to_gaussian, judge_weights, folds)
        _, to_rival = _mean_and_error(to_gaussian - rival, judge_weights, folds)
        return mean, (1 - doubt) * error + doubt * to_rival

    def configuration(rival: Array, index: Array) -> tuple[Array, tuple[Array, ...]]:
        kind, metric, factor = (
            jnp.asarray(grid.kernel)[index],
            jnp.asarray(grid.metric)[index],
            jnp.asarray(grid.factor, y.dtype)[index],
        )

        def fold(k: Array) -> tuple[Array, ...]:
            chosen = jax.tree.map(lambda leaf: leaf[k], prepared)
            where = jax.tree.map(lambda leaf: leaf[metric], chosen.coordinates)
            kernel = RadialChoice(chosen.medians[metric] * factor, kind)
            landmarks = None if folds.landmarks is None else folds.landmarks[k]
            first = GaussianReference(chosen.mean, chosen.precisions[0])
            return _fold(
                y, weights, folds.train[k], folds.judge[k], landmarks, kernel, where, first
            )

        psi, beta, slope, values = jax.lax.map(fold, jnp.arange(folds.train.shape[0]))

        def candidate(f: Array) -> tuple[Array, Array]:
            level = jnp.asarray(filters.level, y.dtype)[f]
            power = jnp.asarray(filters.power, y.dtype)[f]
            reference = jnp.asarray(filters.reference)[f]
            multiply = jax.vmap(lambda v: RelativeRidge(level, power)(v, jnp.sum(v), v.shape[0]))
            multipliers = multiply(values)
            kept = multipliers[:, :, None] * beta[:, reference]
            flag = reference.astype(y.dtype)
            scores = jnp.matmul(psi, kept, precision="highest").reshape(-1, y.shape[1])
            along = jnp.einsum("kvj,kj->kv", slope[:, reference], multipliers)
            return scores + flag * atoms[0], along.reshape(-1) + flag * divergences[0]

        places = default_filters(filters)
        rival = jax.lax.cond(
            index == first,
            lambda: _best_of(
                [difference(*candidate(jnp.asarray(f))) for f in places], judge_weights
            ),
            lambda: rival,
        )
        mean, error = jax.lax.map(
            lambda f: judged(*candidate(f), rival), jnp.arange(len(filters.level))
        )
        criterion = jnp.where(jnp.isfinite(mean + error), mean + num_errors * error, jnp.inf)
        _, best = jax.lax.top_k(-criterion, num_best)
        scores, divergence = jax.lax.map(candidate, best)
        return rival, (mean, error, best, scores, divergence @ judge_weights)

    # The configuration of the defaults comes first: all others are compared with it.
    first = default_configuration(grid)
    order = np.argsort(np.arange(len(grid.kernel)) != first, kind="stable")
    rival, found = jax.lax.scan(configuration, jnp.zeros_like(base), jnp.asarray(order))
    mean, error, best, scores, linear = (a[np.argsort(order)] for a in found)
    _, atom_errors = jax.vmap(lambda s, d: judged(s, d, rival))(atoms, divergences)
    outside_gain, outside_error = jax.vmap(lambda s, d: judged(s, d, rival))(*outside)
    picked = jnp.take_along_axis(error, best, axis=1).reshape(-1)
    others = [divergences @ judge_weights, outside[1] @ judge_weights]
    return HeldOut(
        mean,
        error,
        best,
        jnp.concatenate([scores.reshape(-1, *scores.shape[2:]), atoms, outside[0]]),
        jnp.concatenate([linear.reshape(-1), *others]),
        jnp.concatenate([picked, atom_errors, outside_error]),
        outside_gain,
        outside_error,
        jnp.sum(judge_weights * base),
        judge_weights,
    )


def _fold(
    y: Array,
    weights: Array | None,
    train: Array,
    judge: Array,
    landmarks: Array | None,
    kernel: RadialChoice,
    where: Frame,
    gaussian: GaussianReference,
) -> tuple[Array, Array, Array, Array]:
    """Return psi (V, J), beta (2, J, D) in y, grad psi . beta (2, V, J) and the values (J)."""
    dimension = y.shape[1]
    z, points = where.to(y[train]), where.to(y[judge])
    w = None if weights is None else weights[train] / jnp.sum(weights[train])
    uniform = or_equal(w, z)
    centres = None if landmarks is None else where.to(y[landmarks])
    basis = basis_of(kernel, z, w, centres)
    plain = stein_targets(kernel, z, uniform, basis.centres, None)
    base = where.score_to(gaussian.score(y[train]))
    cross = kernel.gram(basis.centres, z)
    residual = plain - jnp.matmul(cross, uniform[:, None] * base, precision="highest")
    targets = jnp.concatenate([plain, residual], axis=1)
    beta = jnp.matmul(basis.transform.T, targets, precision="highest")
    beta = jnp.moveaxis(beta.reshape(-1, 2, dimension), 1, 0).reshape(-1, dimension)
    gram = kernel.gram(points, basis.centres)
    pull = kernel._pull(points, basis.centres)
    psi = jnp.matmul(gram, basis.transform, precision="highest")
    pulled = jnp.matmul(pull, basis.transform, precision="highest")

    def slopes(gamma: Array) -> Array:
        """Return grad psi_j(x_v) . beta_j, with gamma_j = T^T T beta_j in the metric."""
        along = jnp.matmul(points, gamma.T, precision="highest") * pulled
        centred = basis.transform * jnp.matmul(basis.centres, gamma.T, precision="highest")
        towards = jnp.matmul(pull, centred, precision="highest")
        return (towards - along) / jnp.square(kernel.lengthscale)

    gamma = where.trace_weight(beta).reshape(2, -1, dimension)
    slope = jnp.stack([slopes(gamma[0]), slopes(gamma[1])])
    return psi, where.score_back(beta).reshape(2, -1, dimension), slope, basis.values


def _best_of(differences: list[Array], weights: Array) -> Array:
    """Return the differences with the smallest mean, or zeros (the Gaussian) if none is below."""
    rows = jnp.stack([*differences, jnp.zeros_like(differences[0])])
    means = rows @ weights
    return rows[jnp.argmin(jnp.where(jnp.isfinite(means), means, jnp.inf))]


def _mean_and_error(
    values: Float[Array, " n"], weights: Float[Array, " n"], folds: Folds
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the weighted mean and its standard error, from sums over independent groups."""
    mean = jnp.sum(weights * values)
    sums = jax.ops.segment_sum(weights * (values - mean), folds.groups, folds.num_groups)
    count = folds.num_groups
    return mean, jnp.sqrt(jnp.sum(sums**2) * (count / (count - 1)))
