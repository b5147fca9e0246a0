"""The score away from the samples: candidates judged by held-out loss, then stacked.

    min_w  E_V[|s_w|^2 / 2 + div s_w] + c sum_i w_i e_i,   s_w = sum_i w_i s_i,   w in the simplex,

with e_i the standard error of candidate i's paired difference to the Gaussian plug-in (or, where
the samples are clearly not Gaussian, to a better default): a kernel estimate gets weight only where
its held-out gain, alone or by averaging, is worth the charge. The loss is quadratic in s, so this
is a quadratic programme with a few dozen unknowns.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_key, check_non_negative
from implicitppl._core.mesh import on_one_device
from implicitppl._core.moments import moments
from implicitppl.score._checks import check_weighted, join_covariates, or_equal
from implicitppl.score._fitted import FittedScore
from implicitppl.score._gaussian import Gaussian
from implicitppl.score._selection.brought import (
    candidate_predictions,
    check_candidates,
    fit_candidate,
)
from implicitppl.score._selection.choice import choose_stack
from implicitppl.score._selection.folds import judged_rows, make_folds, random_order, standardise
from implicitppl.score._selection.grid import filter_grid, kernel_grid
from implicitppl.score._selection.held_out import held_out
from implicitppl.score._selection.info import MIN_SAMPLES, SelectionInfo, no_selection
from implicitppl.score._selection.normality import not_gaussian
from implicitppl.score._selection.refit import bounded_parts, refit, with_bound
from implicitppl.score._support import nearest_neighbour_support

# Samples whose span the final fit searches.
_FULL, _LANDMARKS = 625, 300
# Samples on which candidates are compared; all samples enter the final fit.
_JUDGED = 4000
# Predictions kept for the quadratic programme, as numbers (200 MB in float32), and candidates of
# each configuration that keep theirs.
_PREDICTIONS, _BEST = 5e7, 3
_LARGEST_CHARGE = 1e6


def select(
    samples: ArrayLike,
    *,
    key: Array,
    covariates: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    candidates: Sequence[Any] = (),
    num_folds: int = 5,
    num_errors: float | int = 2.5,
    autocorrelated: bool = False,
) -> FittedScore:
    """Return the score for queries anywhere, tuned by held-out score matching.

    Candidates are kernel {RBF, inverse multiquadric} x metric {isotropic, diagonal, whitened} x
    width x filter {Tikhonov, SSGE ridge} x 13 levels x reference {none, Gaussian}, and Gaussians
    from full to isotropic covariance. The best of each configuration enter a quadratic programme
    on the simplex, which stacks up to four of them with the Gaussians; each is charged
    `num_errors` standard errors of its paired difference to the Gaussian plug-in, or, where
    skewness and kurtosis say that the samples are not Gaussian, to the best of it and two default
    estimates (not with weights, covariates or `autocorrelated`, where moments say less). What the
    stack adds to the Gaussian is bounded by 1.5 times its largest value on the samples, so that a
    query off their support, which `off_support` flags, cannot blow up.

    Args:
        samples: (M, D), finite, each row a draw from q.
        key: decides the folds (unless `autocorrelated`), and the landmarks of large samples; the
            result is a function of samples and key.
        covariates: (M, C), for the conditional score grad_x log q(x | c), called as
            `fitted(x, covariates)`; see `SSGE.fit`. Only the score in x is judged.
        weights: (M,) non-negative importance weights; None for equal ones.
        candidates: estimators of your own that are judged and stacked with the grid, such as
            `KEF()` or `SlicedScoreMatching()`; each is fitted `num_folds` + 1 times, on all
            samples.
        num_folds: K; metric, width, Gaussian and eigenfunctions are fitted inside each fold.
        num_errors: 0 stacks by the plain held-out loss, which overfits small samples; large
            values return the Gaussian, or a default estimate where the samples are not Gaussian
            and it has the smaller loss.
        autocorrelated: True for draws of a Markov chain in their order: folds are contiguous and
            standard errors come from batch means.

    Returns:
        A `FittedScore` whose `info` is a `SelectionInfo`; `print(fitted.info.explain())` says what
        was chosen and why. With fewer than 20 samples, the Gaussian.

    Raises:
        ValueError: for samples or weights as in `SSGE.fit`, `num_folds` < 2 or more than
            M / 2, negative `num_errors`, a `key` that is not one key, or a candidate that has no
            `fit`, does not return a `FittedScore`, or takes no covariates where there are some.

    Runs under `jit` and `vmap` (one problem after the other); samples spread over a mesh are
    gathered on one device, and the result is copied to all. Cost O(100 M^3) for M <= 312,
    beyond O(M) with 200 landmarks in the folds, candidates compared on at most 4000 samples; the
    fit uses all samples, and 300 landmarks for M > 625. For scores on the samples themselves, as
    in `ImplicitELBO`, use `SSGE`, whose Stein identity holds on its own particles. Losses are
    compared in standard deviations of each coordinate: with correlations above .999 the narrow
    direction decides, so decorrelate such samples first. Score matching cannot see the weights of
    separated modes: they do not change the score where there are samples.

    Reference: Hyvarinen, JMLR 6 (2005), theorem 1; Breiman, "Stacked regressions", Machine
    Learning 24 (1996).

    Example:
        >>> import jax
        >>> from implicitppl.score import select
        >>> samples = jax.random.normal(jax.random.key(0), (60, 1))
        >>> fitted = select(samples, key=jax.random.key(1))
        >>> fitted.info.estimator, float(fitted(samples[:1])[0, 0] * samples[0, 0]) < 0
        ('select', True)
    """
    samples, weights = check_weighted(samples, weights)
    check_key(key)
    candidates = check_candidates(candidates)
    if isinstance(num_folds, bool) or num_folds < 2:
        raise ValueError(f"`num_folds` must be at least 2; got {num_folds}.")
    check_non_negative("num_errors", num_errors)
    if samples.shape[0] < MIN_SAMPLES:
        return _gaussian_only(samples, covariates, weights)
    if 2 * num_folds > samples.shape[0]:
        raise ValueError(
            f"`num_folds` must leave at least 2 samples in each fold; got {num_folds} folds of "
            f"{samples.shape[0]} samples."
        )
    joint, num_covariates = join_covariates(samples, covariates)
    joint, weights = jax.lax.stop_gradient((joint, weights))
    # An array, so that another value compiles nothing; bounded, because inf times 0 is NaN.
    charge = jnp.minimum(jnp.asarray(num_errors, samples.dtype), _LARGEST_CHARGE)

    # As an argument, so that a hyperparameter of a candidate may be traced.
    arrays, static = eqx.partition(candidates, eqx.is_array)

    # One problem after the other under `vmap`: batched, the held-out predictions of all problems
    # would be in memory at once, and a batched eigh inside a loop can hang on the CPU.
    @jax.custom_batching.sequential_vmap
    def solve(
        samples: Array, weights: Array | None, key: Array, charge: Array, arrays: Any
    ) -> FittedScore:
        given = eqx.combine(arrays, static)
        return _select(
            samples, weights, key, charge, given, num_folds, autocorrelated, num_covariates
        )

    return on_one_device(solve, joint, weights, key, charge, arrays)


@eqx.filter_jit
def _select(
    samples: Array,
    weights: Array | None,
    key: Array,
    num_errors: Float[Array, ""],
    candidates: tuple[Any, ...],
    num_folds: int,
    autocorrelated: bool,
    num_covariates: int,
) -> FittedScore:
    size, dimension = samples.shape
    uniform = or_equal(weights, samples)
    problem = standardise(samples, weights, num_covariates)
    order = random_order(key, size, weights)
    folds = make_folds(min(size, _JUDGED), num_folds, autocorrelated)
    rows = judged_rows(key, order, weights, min(size, _JUDGED), autocorrelated)
    w = None if weights is None else weights[rows] / jnp.sum(weights[rows])
    grid, filters = kernel_grid(folds.train.shape[1], dimension, num_covariates), filter_grid()
    room = int(_PREDICTIONS / (len(grid.kernel) * folds.judge.size * dimension))
    num_best = max(1, min(_BEST, room))
    # The moments of correlated or weighted draws of a Gaussian have other variances, and those of
    # a regression are not those of its residuals.
    doubt = jnp.zeros((), samples.dtype)
    if weights is None and not autocorrelated and num_covariates == 0:
        doubt = not_gaussian(problem.y)
    outside_key = jax.random.fold_in(key, 1)
    outside = (
        jnp.zeros((0, folds.judge.size, dimension), samples.dtype),
        jnp.zeros((0, folds.judge.size), samples.dtype),
    )
    if candidates:
        # What is not judged trains, except between the draws of a chain, which depend on them.
        rest = order[:0] if autocorrelated else order[rows.shape[0] :]
        outside = candidate_predictions(
            candidates,
            samples,
            weights,
            rows,
            rest,
            folds,
            problem.frame,
            outside_key,
            num_covariates,
        )
    found = held_out(
        problem.y[rows],
        problem.unit,
        w,
        folds,
        grid,
        filters,
        num_errors,
        num_best,
        num_covariates,
        outside,
        doubt,
    )
    choice = choose_stack(found, num_errors, problem.moments.size)
    config, which = choice.picked // num_best, found.best.reshape(-1)[choice.picked]
    kernel, metric = jnp.asarray(grid.kernel)[config], jnp.asarray(grid.metric)[config]
    factor = jnp.asarray(grid.factor, samples.dtype)[config]
    level = jnp.asarray(filters.level, samples.dtype)[which]
    power = jnp.asarray(filters.power, samples.dtype)[which]
    reference = jnp.asarray(filters.reference)[which]
    landmarks = None if size <= _FULL else order[:_LANDMARKS]
    members, mean, precisions, lengthscale = refit(
        problem, landmarks, grid.metrics, kernel, metric, factor, level, power, reference
    )
    shares = choice.gaussian_shares.at[0].add(
        jnp.sum(choice.shares * reference.astype(samples.dtype))
    )
    others = tuple(
        fit_candidate(candidate, samples, weights, candidate_key, num_covariates)
        for candidate, candidate_key in zip(
            candidates, jax.random.split(outside_key, len(candidates)), strict=True
        )
    )
    gaussian, stack = bounded_parts(
        members, choice.shares, mean, precisions, shares, others, choice.outside_shares, problem
    )
    stack = with_bound(stack, samples[rows], uniform[rows] > 0)
    gain, error = found.gain[config, which], found.error[config, which]
    finite = [jnp.all(jnp.isfinite(a)) for a in (samples, members.coefficients, choice.shares)]
    info = SelectionInfo(
        estimator="select",
        solver="full" if landmarks is None else "landmarks",
        num_samples=size,
        num_judged=folds.judge.size,
        metrics=grid.metrics,
        candidates=tuple(type(candidate).__name__ for candidate in candidates),
        weights=choice.shares,
        candidate_weights=choice.outside_shares,
        candidate_gain=found.outside_gain,
        candidate_error=found.outside_error,
        gaussian_weights=choice.gaussian_shares,
        kernel=kernel,
        metric=metric,
        lengthscale=lengthscale,
        level=level,
        power=power,
        reference=reference,
        gain=gain,
        error=error,
        stacked_gain=choice.gain,
        gaussian_loss=found.gaussian_loss,
        all_gains=found.gain,
        all_errors=found.error,
        grid=_table(samples.dtype, grid.kernel, grid.metric, grid.factor),
        filters=_table(samples.dtype, filters.reference, filters.power, filters.level),
        num_errors=num_errors,
        not_gaussian=doubt,
        explained=jnp.asarray(jnp.nan, samples.dtype),
        effective_size=problem.moments.size,
        finite=finite[0] & finite[1] & finite[2],
    )
    support = nearest_neighbour_support(samples, uniform, problem.moments, order)
    return FittedScore(
        info, stack, gaussian, dimension - num_covariates, support, num_covariates=num_covariates
    )


def _gaussian_only(
    samples: Array, covariates: ArrayLike | None, weights: Array | None
) -> FittedScore:
    """Return the Gaussian in the form of a selection, where there is nothing to hold out."""
    fitted = Gaussian().fit(samples, covariates=covariates, weights=weights)
    dimension = samples.shape[1]
    samples, num_covariates = join_covariates(samples, covariates)
    size, dtype = samples.shape[0], samples.dtype
    uniform = or_equal(weights, samples)
    info = no_selection(size, dtype, fitted.info.effective_size, fitted.info.finite)
    support = nearest_neighbour_support(
        samples, uniform, moments(samples, uniform), jnp.arange(size)
    )
    return FittedScore(
        info, None, fitted.reference, dimension, support, num_covariates=num_covariates
    )


def _table(dtype: jnp.dtype, *columns: np.ndarray) -> Float[Array, "rows columns"]:
    return jnp.asarray(np.stack(columns, axis=1), dtype)
