"""The score away from the samples: candidates judged by held-out loss, then stacked.

    min_w  E_V[|s_w|^2 / 2 + div s_w] + c sum_i w_i e_i,   s_w = sum_i w_i s_i,   w in the simplex,

with e_i the standard error of candidate i's paired difference to the Gaussian plug-in: a kernel
estimate gets weight only as far as the held-out samples prove that it is better. The score-matching
loss is quadratic in s, so this is a quadratic programme with a few dozen unknowns.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from implicitppl.kernels import median_lengthscale
from implicitppl.linalg import RelativeRidge, check_non_negative
from implicitppl.score._basis import stein_targets
from implicitppl.score._checks import check_samples, check_weights
from implicitppl.score._expansion import Expansion
from implicitppl.score._fitted import FittedScore
from implicitppl.score._gaussian import Gaussian
from implicitppl.score._grid import RadialChoice, filter_grid, kernel_grid
from implicitppl.score._held_out import (
    Folds,
    HeldOut,
    basis_of,
    equally_weighted,
    gaussian_precisions,
    held_out,
    metric_coordinates,
)
from implicitppl.score._metric import Coordinates
from implicitppl.score._moments import Moments, moments
from implicitppl.score._reference import GaussianReference
from implicitppl.score._simplex import minimise_on_simplex
from implicitppl.score._stack import MIN_SAMPLES, SelectionInfo, Stack
from implicitppl.score._support import nearest_neighbour_support

# Samples whose span is searched: in the folds, where only the choice depends on it, and in the fit.
_FOLD_FULL, _FOLD_LANDMARKS = 250, 200
_FULL, _LANDMARKS = 625, 300
# Samples on which candidates are compared; all samples enter the final fit.
_JUDGED = 4000
# Kernel estimates in a stack: each costs O(M D) for every query.
_MEMBERS = 4
# A smaller share of the stack is dropped.
_SMALLEST_SHARE = 1e-2
# Predictions kept for the quadratic programme, as numbers (200 MB in float32), and candidates of
# each configuration that keep theirs.
_PREDICTIONS, _BEST = 5e7, 3
# Batches of an autocorrelated sample between which dependence is neglected.
_BATCHES = 20
_LARGEST_CHARGE = 1e6
# How far beyond its largest value on the samples the residual may go: heavy tails need some room.
_ROOM = 1.5
# A candidate whose mean squared score is this many times the Gaussian's is not worth a programme
# that its size would slow down.
_LARGEST_SCORE = 1e3


def select(
    samples: ArrayLike,
    *,
    key: Array,
    weights: ArrayLike | None = None,
    num_folds: int = 5,
    num_errors: float | int = 2.5,
    autocorrelated: bool = False,
) -> FittedScore:
    """Return the score for queries anywhere, tuned by held-out score matching.

    Candidates are kernel {RBF, inverse multiquadric} x metric {isotropic, diagonal, whitened} x
    width x filter {Tikhonov, SSGE ridge} x 13 levels x reference {none, Gaussian}, and Gaussians
    from full to isotropic covariance. The best of each configuration enter a quadratic programme
    on the simplex, which stacks up to four of them with the Gaussians; each is charged
    `num_errors` standard errors of its paired difference to the Gaussian plug-in. What the stack
    adds to the Gaussian is bounded by its largest value on the samples, so that a query off their
    support, which `off_support` flags, cannot blow up.

    Args:
        samples: (M, D), finite, each row a draw from q.
        key: decides the folds (unless `autocorrelated`), and the landmarks of large samples; the
            result is a function of samples and key.
        weights: (M,) non-negative importance weights; None for equal ones.
        num_folds: K; metric, width, Gaussian and eigenfunctions are fitted inside each fold.
        num_errors: 0 stacks by the plain held-out loss, which overfits small samples; large
            values return the Gaussian.
        autocorrelated: True for draws of a Markov chain in their order: folds are contiguous and
            standard errors come from batch means.

    Returns:
        A `FittedScore` whose `info` is a `SelectionInfo`; `print(fitted.info.explain())` says what
        was chosen and why. With fewer than 20 samples, the Gaussian.

    Raises:
        ValueError: for samples or weights as in `SSGE.fit`, `num_folds` < 2 or more than
            M / 2, or negative `num_errors`.

    Runs under `jit` and `vmap` (one problem after the other). Cost O(100 M^3) for M <= 250, beyond
    O(M) with 200 landmarks in the folds, candidates compared on at most 4000 samples; the fit uses
    all samples, and 300 landmarks for M > 625. For scores on the samples themselves, as in
    `ImplicitELBO`, use `SSGE`: the held-out choice is shrunk there (slope .78 on its own samples
    at M = 100, D = 10). Losses are compared in standard deviations of each coordinate: with
    correlations above .99 the narrow direction decides, so decorrelate such samples first. Score
    matching cannot see the weights of separated modes: they do not
    change the score where there are samples.

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
    samples = check_samples(samples)
    if isinstance(num_folds, bool) or num_folds < 2:
        raise ValueError(f"`num_folds` must be at least 2; got {num_folds}.")
    check_non_negative("num_errors", num_errors)
    if weights is not None:
        weights = check_weights(weights, samples)
    if samples.shape[0] < MIN_SAMPLES:
        return _gaussian_only(samples, weights)
    if 2 * num_folds > samples.shape[0]:
        raise ValueError(
            f"`num_folds` must leave at least 2 samples in each fold; got {num_folds} folds of "
            f"{samples.shape[0]} samples."
        )
    samples, weights = jax.lax.stop_gradient((samples, weights))
    # An array, so that another value compiles nothing; bounded, because inf times 0 is NaN.
    charge = jnp.minimum(jnp.asarray(num_errors, samples.dtype), _LARGEST_CHARGE)

    # One problem after the other under `vmap`: batched, the held-out predictions of all problems
    # would be in memory at once, and a batched eigh inside a loop can hang on the CPU.
    @jax.custom_batching.sequential_vmap
    def solve(samples: Array, weights: Array | None, key: Array, charge: Array) -> FittedScore:
        return _select(samples, weights, key, charge, num_folds, autocorrelated)

    return solve(samples, weights, key, charge)


class _Problem(NamedTuple):
    """Standardised samples: y = (x - shift) / scale, weights sum to one."""

    y: Float[Array, "M D"]
    frame: Coordinates
    unit: Float[Array, " D"]
    weights: Float[Array, " M"] | None
    moments: Moments


@eqx.filter_jit
def _select(
    samples: Array,
    weights: Array | None,
    key: Array,
    num_errors: Float[Array, ""],
    num_folds: int,
    autocorrelated: bool,
) -> FittedScore:
    size, dimension = samples.shape
    uniform = jnp.full((size,), 1 / size, samples.dtype) if weights is None else weights
    problem = _standardise(samples, weights)
    order = _order(key, size, weights)
    folds = _folds(min(size, _JUDGED), num_folds, autocorrelated)
    rows = _judged_rows(key, order, weights, min(size, _JUDGED), autocorrelated)
    w = None if weights is None else weights[rows] / jnp.sum(weights[rows])
    grid, filters = kernel_grid(folds.train.shape[1], dimension), filter_grid()
    room = int(_PREDICTIONS / (len(grid.kernel) * folds.judge.size * dimension))
    num_best = max(1, min(_BEST, room))
    found = held_out(problem.y[rows], problem.unit, w, folds, grid, filters, num_errors, num_best)
    judge = folds.judge.reshape(-1)
    at = jnp.full((judge.size,), 1 / judge.size, samples.dtype)
    if w is not None:
        at = w[judge] / jnp.sum(w[judge])
    choice = _stack(found, at, num_errors, problem.moments.size)
    config, which = choice.picked // num_best, found.best.reshape(-1)[choice.picked]
    kernel, metric = jnp.asarray(grid.kernel)[config], jnp.asarray(grid.metric)[config]
    factor = jnp.asarray(grid.factor, samples.dtype)[config]
    level = jnp.asarray(filters.level, samples.dtype)[which]
    power = jnp.asarray(filters.power, samples.dtype)[which]
    reference = jnp.asarray(filters.reference)[which]
    landmarks = None if size <= _FULL else order[:_LANDMARKS]
    members, mean, precisions, lengthscale = _refit(
        problem, landmarks, grid.metrics, kernel, metric, factor, level, power, reference
    )
    shares = choice.gaussian_shares.at[0].add(
        jnp.sum(choice.shares * reference.astype(samples.dtype))
    )
    gaussian, stack = _bounded(members, choice.shares, mean, precisions, shares, problem)
    stack = _with_bound(stack, samples[rows])
    gain, error = found.gain[config, which], found.error[config, which]
    finite = [jnp.all(jnp.isfinite(a)) for a in (samples, members.coefficients, choice.shares)]
    info = SelectionInfo(
        estimator="select",
        num_samples=size,
        num_judged=judge.size,
        metrics=grid.metrics,
        weights=choice.shares,
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
        explained=jnp.asarray(jnp.nan, samples.dtype),
        effective_size=problem.moments.size,
        finite=finite[0] & finite[1] & finite[2],
    )
    support = nearest_neighbour_support(samples, uniform, problem.moments, order)
    return FittedScore(info, stack, gaussian, dimension, support)


def _bounded(
    members: Expansion,
    kernel_shares: Float[Array, " R"],
    mean: Float[Array, " D"],
    precisions: Float[Array, "A D D"],
    shares: Float[Array, " A"],
    problem: _Problem,
) -> tuple[GaussianReference, Stack]:
    """Return s_G, its shares scaled to one, and what the stack adds to it, not bounded yet."""
    total = jnp.sum(shares)
    full = jnp.zeros_like(shares).at[0].set(1)
    scaled = jnp.where(total > 0.01, shares / jnp.where(total > 0, total, 1), full)
    gaussian = jnp.einsum("a,aij->ij", scaled, precisions)
    rest = jnp.einsum("a,aij->ij", shares - scaled, precisions)
    unit = jnp.broadcast_to(problem.frame.scale, mean.shape)
    infinite = jnp.asarray(jnp.inf, mean.dtype)
    stack = Stack(members, kernel_shares, GaussianReference(mean, rest), unit, infinite)
    return GaussianReference(mean, gaussian), stack


def _with_bound(stack: Stack, samples: Float[Array, "n D"]) -> Stack:
    """Return the stack with its bound, a multiple of the largest residual of the samples."""
    norms = jnp.sum(jnp.square(stack.residual(samples) * stack.unit[None, :]), axis=1)
    return eqx.tree_at(lambda s: s.bound, stack, _ROOM * jnp.sqrt(jnp.max(norms)))


def _gaussian_only(samples: Array, weights: Array | None) -> FittedScore:
    """Return the Gaussian in the form of a selection, where there is nothing to hold out."""
    fitted = Gaussian().fit(samples, weights=weights)
    size, dtype = samples.shape[0], samples.dtype
    uniform = jnp.full((size,), 1 / size, dtype) if weights is None else weights
    none, nan = jnp.zeros((0,), dtype), jnp.asarray(jnp.nan, dtype)
    info = SelectionInfo(
        estimator="select",
        num_samples=size,
        num_judged=0,
        metrics=(),
        weights=none,
        gaussian_weights=jnp.asarray([1.0, 0.0, 0.0, 0.0], dtype),
        kernel=none.astype(int),
        metric=none.astype(int),
        lengthscale=none,
        level=none,
        power=none,
        reference=none.astype(int),
        gain=none,
        error=none,
        stacked_gain=jnp.zeros((), dtype),
        gaussian_loss=nan,
        all_gains=jnp.zeros((0, 0), dtype),
        all_errors=jnp.zeros((0, 0), dtype),
        grid=jnp.zeros((0, 3), dtype),
        filters=jnp.zeros((0, 3), dtype),
        num_errors=nan,
        explained=nan,
        effective_size=fitted.info.effective_size,
        finite=fitted.info.finite,
    )
    support = nearest_neighbour_support(
        samples, uniform, moments(samples, uniform), jnp.arange(size)
    )
    return FittedScore(info, None, fitted.reference, samples.shape[1], support)


def _table(dtype: jnp.dtype, *columns: np.ndarray) -> Float[Array, "rows columns"]:
    return jnp.asarray(np.stack(columns, axis=1), dtype)


def _standardise(samples: Array, weights: Array | None) -> _Problem:
    size = samples.shape[0]
    w = jnp.full((size,), 1 / size, samples.dtype) if weights is None else weights
    m = moments(samples, w)
    spread = jnp.sqrt(jnp.where(m.varies, jnp.diagonal(m.covariance), 0))
    largest = jnp.max(spread)
    spread = jnp.where(m.varies, spread, jnp.where(largest > 0, largest, 1))
    frame = Coordinates(m.mean, spread)
    return _Problem(frame.to_metric(samples), frame, spread / jnp.max(spread), weights, m)


def _folds(size: int, num_folds: int, autocorrelated: bool) -> Folds:
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


def _order(key: Array, size: int, weights: Array | None) -> Int[Array, " M"]:
    """Return a random order of the samples, likely ones first if they are weighted."""
    if weights is None:
        return jax.random.permutation(key, size)
    # Gumbel top-k: draws without replacement, with probability proportional to the weights.
    return jnp.argsort(-jnp.log(weights) - jax.random.gumbel(key, (size,), weights.dtype))


def _judged_rows(
    key: Array, order: Array, weights: Array | None, num: int, autocorrelated: bool
) -> Int[Array, " n"]:
    """Return the samples on which candidates are compared: in random order, or in their own."""
    if autocorrelated:
        return jnp.asarray(np.linspace(0, order.shape[0] - 1, num).round().astype(int))
    # Weighted samples come likely ones first, which would make the folds unequal.
    return order[:num] if weights is None else jax.random.permutation(key, order[:num])


class _Choice(NamedTuple):
    """Members of the stack, as rows of the predictions, with their shares."""

    picked: Int[Array, " R"]
    shares: Float[Array, " R"]
    gaussian_shares: Float[Array, " A"]
    gain: Float[Array, ""]


def _stack(
    found: HeldOut,
    weights: Float[Array, " n"],
    num_errors: Float[Array, ""],
    effective_size: Float[Array, ""],
) -> _Choice:
    """Solve the quadratic programme for all candidates, then for the largest few."""
    total, num_atoms = found.linear.shape[0], found.scores.shape[0] - found.best.size
    num_kernels = total - num_atoms
    rows = (found.scores * jnp.sqrt(weights)[None, :, None]).reshape(total, -1)
    usable = jnp.all(jnp.isfinite(rows), axis=1) & jnp.isfinite(found.linear + found.penalty)
    square = jnp.sum(rows * rows, axis=1)
    usable = usable & (square <= _LARGEST_SCORE * square[num_kernels])
    rows = jnp.where(usable[:, None], rows, 0)
    linear = jnp.where(usable, found.linear, 0)
    charged = jnp.where(usable, linear + num_errors * found.penalty, jnp.inf)
    quadratic = jnp.matmul(rows, rows.T, precision="highest")
    # An unusable candidate costs more than anything that is better than no estimate at all.
    charged = jnp.where(usable, charged, 1 + jnp.sum(jnp.abs(linear[num_kernels:])))

    def solve(index: Array) -> Array:
        shares = minimise_on_simplex(quadratic[index[:, None], index[None, :]], charged[index])
        shares = jnp.where(shares < _SMALLEST_SHARE, 0, shares)
        return shares / jnp.sum(shares)

    everything = solve(jnp.arange(total))
    _, picked = jax.lax.top_k(everything[:num_kernels], _MEMBERS)
    index = jnp.concatenate([picked, jnp.arange(num_kernels, total, dtype=picked.dtype)])
    shares = solve(index)
    # Too few to judge, or a fold without a Gaussian: the Gaussian of all samples.
    judged = jnp.isfinite(found.gaussian_loss) & (effective_size >= MIN_SAMPLES)
    alone = (index == num_kernels).astype(shares.dtype)
    shares = jnp.where(judged, shares, alone)
    chosen = jnp.zeros((total,), rows.dtype).at[index].set(shares)
    loss = 0.5 * chosen @ (quadratic @ chosen) + linear @ chosen
    return _Choice(picked, shares[:_MEMBERS], shares[_MEMBERS:], loss - found.gaussian_loss)


def _refit(
    problem: _Problem,
    landmarks: Array | None,
    metrics: tuple[str, ...],
    kernel: Int[Array, " R"],
    metric: Int[Array, " R"],
    factor: Float[Array, " R"],
    level: Float[Array, " R"],
    power: Float[Array, " R"],
    reference: Int[Array, " R"],
) -> tuple[Expansion, Float[Array, " D"], Float[Array, "A D D"], Float[Array, " R"]]:
    """Fit on all samples: members, Gaussian mean and precisions, lengthscales, in data units."""
    y, frame = problem.y, problem.frame
    size = y.shape[0]
    w = jnp.full((size,), 1 / size, y.dtype) if problem.weights is None else problem.weights
    m = moments(y, w)
    places = [metric_coordinates(n, m, problem.unit, "whitened" in metrics) for n in metrics]
    typical = y if problem.weights is None else equally_weighted(y, w)
    medians = jnp.stack([median_lengthscale(place.to_metric(typical)) for place in places])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *places)
    precisions = gaussian_precisions(m, problem.unit)
    base = GaussianReference(m.mean, precisions[0]).score(y)

    def member(r: Array) -> tuple[Expansion, Array]:
        where = jax.tree.map(lambda leaf: leaf[metric[r]], stacked)
        z = where.to_metric(y)
        chosen = RadialChoice(medians[metric[r]] * factor[r], kernel[r])
        centres = None if landmarks is None else z[landmarks]
        basis = basis_of(chosen, z, problem.weights, centres)
        known = where.score_to_metric(base) * reference[r].astype(y.dtype)
        target = stein_targets(chosen, z, w, basis.centres, known)
        multipliers = RelativeRidge(level[r], power[r])(basis.values, basis.trace, size)
        beta = jnp.matmul(basis.transform.T, target, precision="highest")
        coefficients = jnp.matmul(basis.transform, multipliers[:, None] * beta, precision="highest")
        scale = frame.scale[:, None] * where.scale if where.scale.ndim == 2 else None
        place = Coordinates(
            frame.shift + frame.scale * where.shift,
            frame.scale * where.scale if scale is None else scale,
        )
        data_unit = place.scale[0, 0] if place.scale.ndim == 2 else place.scale[0]
        isotropic = jnp.asarray([name == "isotropic" for name in metrics])[metric[r]]
        lengthscale = medians[metric[r]] * factor[r] * jnp.where(isotropic, data_unit, 1)
        return Expansion(chosen, place, basis.centres, coefficients), lengthscale

    members, lengthscale = jax.lax.map(member, jnp.arange(kernel.shape[0]))
    mean = frame.shift + frame.scale * m.mean
    return (
        members,
        mean,
        precisions / (frame.scale[:, None] * frame.scale[None, :])[None],
        lengthscale,
    )
