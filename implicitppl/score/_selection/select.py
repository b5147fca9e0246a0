"""The score away from the samples: candidates judged by held-out loss, then stacked.

    min_w  E_V[|s_w|^2 / 2 + div s_w] + c sum_i w_i e_i,   s_w = sum_i w_i s_i,   w in the simplex,

with e_i the standard error of candidate i's paired difference to the Gaussian plug-in (or, where
the samples are clearly not Gaussian, to a better default): a kernel estimate gets weight only where
its held-out gain, alone or by averaging, is worth the charge. The loss is quadratic in s, so this
is a quadratic programme with a few dozen unknowns.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_non_negative
from implicitppl.score._contract import Estimator
from implicitppl.score._fitted import FittedScore, make_fitted
from implicitppl.score._reference import gaussian_reference
from implicitppl.score._sample import Sample
from implicitppl.score._selection.brought import (
    candidate_predictions,
    check_candidates,
    fit_candidate,
)
from implicitppl.score._selection.choice import Choice, choose_stack
from implicitppl.score._selection.folds import Problem, pose
from implicitppl.score._selection.grid import (
    Configurations,
    Filters,
    Grid,
    as_rows,
    entries,
    kernel_grid,
)
from implicitppl.score._selection.held_out import HeldOut, held_out
from implicitppl.score._selection.info import MIN_SAMPLES, SelectionInfo, selection_info
from implicitppl.score._selection.refit import Members, landmark_rows, refit, stack_of
from implicitppl.score._support import nearest_neighbour_support

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
    selection = Selection(
        candidates=candidates,
        num_folds=num_folds,
        num_errors=num_errors,
        autocorrelated=autocorrelated,
    )
    return selection.fit(samples, covariates=covariates, weights=weights, key=key)


class Selection(Estimator):
    """`select` as an estimator: its options now, samples and key when it is fitted.

    Args:
        candidates: estimators of your own that are judged and stacked with the grid.
        num_folds: K.
        num_errors: standard errors that each candidate is charged.
        autocorrelated: True for draws of a Markov chain in their order.

    Raises:
        ValueError: for options as in `select`; in `fit` without a `key`, which decides the folds.

    Costs, limits and the reference are those of `select`.

    Example:
        >>> import jax
        >>> from implicitppl.score import Selection
        >>> samples = jax.random.normal(jax.random.key(0), (60, 1))
        >>> Selection(num_folds=3).fit(samples, key=jax.random.key(1)).info.num_judged
        60
    """

    gathers: ClassVar[bool] = True
    candidates: tuple[Any, ...]
    num_folds: int = eqx.field(static=True)
    num_errors: Any
    autocorrelated: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        candidates: Sequence[Any] = (),
        num_folds: int = 5,
        num_errors: float | int = 2.5,
        autocorrelated: bool = False,
    ):
        self.candidates = check_candidates(candidates)
        if isinstance(num_folds, bool) or num_folds < 2:
            raise ValueError(f"`num_folds` must be at least 2; got {num_folds}.")
        check_non_negative("num_errors", num_errors)
        self.num_folds = num_folds
        # An array, so that another value compiles nothing.
        traced = isinstance(num_errors, jax.Array)
        self.num_errors = num_errors if traced else np.asarray(num_errors, float)
        self.autocorrelated = autocorrelated

    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        if key is None:
            raise ValueError("`key` must be one random key, such as jax.random.key(0); got None.")
        if sample.size < MIN_SAMPLES:
            return _gaussian_alone(sample)
        if 2 * self.num_folds > sample.size:
            raise ValueError(
                f"`num_folds` must leave at least 2 samples in each fold; got {self.num_folds} "
                f"folds of {sample.size} samples."
            )
        # As an argument, so that a hyperparameter of a candidate may be traced.
        arrays, static = eqx.partition((self, sample), eqx.is_array)

        # One problem after the other under `vmap`: batched, the held-out predictions of all
        # problems would be in memory at once, and a batched eigh inside a loop can hang on the CPU.
        @jax.custom_batching.sequential_vmap
        def solve(arrays: Any, key: Array) -> FittedScore:
            selection, sample = eqx.combine(arrays, static)
            return _solve(selection, sample, key)

        return solve(arrays, key)


def _solve(selection: Selection, sample: Sample, key: Array) -> FittedScore:
    """Judge all candidates in folds, choose the stack, and fit it on all samples."""
    # Bounded, because inf times 0 is NaN.
    charge = jnp.minimum(jnp.asarray(selection.num_errors, sample.dtype), _LARGEST_CHARGE)
    candidates, candidate_key = selection.candidates, jax.random.fold_in(key, 1)
    sample = sample.gathered()
    problem = pose(sample, key, selection.num_folds, selection.autocorrelated)
    grid = kernel_grid(problem.folds.train.shape[1], sample)
    brought = candidate_predictions(candidates, problem, candidate_key)
    evidence = held_out(problem, grid, brought, charge)
    choice = choose_stack(evidence, charge, sample.effective_size)
    configurations, filters = _members_of(choice, evidence, grid, sample.dtype)
    members = refit(problem, grid.metrics, configurations, filters)
    keys = jax.random.split(candidate_key, len(candidates))
    fitted = tuple(fit_candidate(c, sample, k) for c, k in zip(candidates, keys, strict=True))
    references = jnp.sum(choice.shares * filters.reference.astype(sample.dtype))
    shares = choice.gaussian_shares.at[0].add(references)
    gaussian, stack = stack_of(members, choice, shares, fitted, problem)
    info = _info(selection, problem, grid, evidence, choice, members, charge)
    support = nearest_neighbour_support(sample, problem.order)
    return make_fitted(sample, info, gaussian, stack, support=support)


def _members_of(
    choice: Choice, evidence: HeldOut, grid: Grid, dtype: jnp.dtype
) -> tuple[Configurations, Filters]:
    """Return the members of the stack as entries of the grid, columns of length R."""
    configuration, index = _indices(choice, evidence)
    return entries(grid.configurations, configuration, dtype), entries(grid.filters, index, dtype)


def _indices(choice: Choice, evidence: HeldOut) -> tuple[Array, Array]:
    """Return the configuration and the filter of every member, as integers."""
    return choice.picked // evidence.best.shape[1], evidence.best.reshape(-1)[choice.picked]


def _info(
    selection: Selection,
    problem: Problem,
    grid: Grid,
    evidence: HeldOut,
    choice: Choice,
    members: Members,
    num_errors: Float[Array, ""],
) -> SelectionInfo:
    """Return what was chosen, with the evidence."""
    sample, dtype = problem.sample, problem.sample.dtype
    configurations, filters = _members_of(choice, evidence, grid, dtype)
    indices = _indices(choice, evidence)
    return selection_info(
        sample,
        members.expansions.coefficients,
        choice.shares,
        solver="full" if landmark_rows(problem) is None else "landmarks",
        num_judged=problem.folds.judge.size,
        metrics=grid.metrics,
        candidates=tuple(type(candidate).__name__ for candidate in selection.candidates),
        weights=choice.shares,
        candidate_weights=choice.brought_shares,
        candidate_gain=evidence.brought_gain,
        candidate_error=evidence.brought_error,
        gaussian_weights=choice.gaussian_shares,
        kernel=configurations.kernel,
        metric=configurations.metric,
        lengthscale=members.lengthscales,
        level=filters.level,
        power=filters.power,
        reference=filters.reference,
        gain=evidence.gain[indices],
        error=evidence.error[indices],
        stacked_gain=choice.gain,
        gaussian_loss=evidence.gaussian_loss,
        all_gains=evidence.gain,
        all_errors=evidence.error,
        grid=as_rows(grid.configurations, dtype),
        filters=as_rows(grid.filters, dtype),
        num_errors=num_errors,
        not_gaussian=problem.doubt,
    )


def _gaussian_alone(sample: Sample) -> FittedScore:
    """Return the Gaussian in the form of a selection, where there is nothing to hold out."""
    gaussian = gaussian_reference(sample)
    support = nearest_neighbour_support(sample, jnp.arange(sample.size))
    info = selection_info(sample, gaussian.precision)
    return make_fitted(sample, info, gaussian, support=support)
