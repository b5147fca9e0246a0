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
    gaussian_precisions,
    held_out,
    metric_coordinates,
)
from implicitppl.score._metric import Coordinates
from implicitppl.score._moments import Moments, moments
from implicitppl.score._reference import GaussianReference
from implicitppl.score._simplex import minimise_on_simplex
from implicitppl.score._stack import SelectionInfo, Stack
from implicitppl.score._support import nearest_neighbour_support

# With fewer samples there is nothing to hold out, and the Gaussian is returned.
MIN_SAMPLES = 20
# Larger training sets are expanded on landmarks.
_FULL, _LANDMARKS = 500, 300
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
    `num_errors` standard errors of its paired difference to the Gaussian plug-in.

    Args:
        samples: (M, D), finite, each row a draw from q.
        key: decides the folds, and the landmarks of large samples; the result is a function of
            samples and key.
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
        ValueError: for samples or weights as in `SSGE.fit`, `num_folds` < 2, or negative
            `num_errors`.

    Runs under `jit` and `vmap`. Cost O(100 M^3) for M <= 500; beyond, 300 landmarks, O(M), and
    candidates compared on at most 4000 samples. For scores on the samples themselves, as in
    `ImplicitELBO`, use `SSGE`: the held-out choice is shrunk there (slope .78 on its own samples
    at M = 100, D = 10). Score matching cannot see the weights of separated modes: they do not
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
    if samples.shape[0] < max(MIN_SAMPLES, 2 * num_folds):
        return Gaussian().fit(samples, weights=weights)
    samples, weights = jax.lax.stop_gradient((samples, weights))
    # An array, so that another value compiles nothing.
    charge = jnp.asarray(num_errors, samples.dtype)

    # One problem after the other under `vmap`: batched, the held-out predictions of all problems
    # would be in memory at once, and a batched eigh inside a loop can hang on the CPU.
    @jax.custom_batching.sequential_vmap
    def solve(samples: Array, weights: Array | None, key: Array) -> FittedScore:
        return _select(samples, weights, key, charge, num_folds, autocorrelated)

    return solve(samples, weights, key)


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
    problem = _standardise(samples, weights)
    order = jax.random.permutation(key, size)
    folds = _folds(min(size, _JUDGED), num_folds, autocorrelated)
    rows = _judged_rows(order, min(size, _JUDGED), autocorrelated)
    w = None if weights is None else weights[rows] / jnp.sum(weights[rows])
    grid, filters = kernel_grid(folds.train.shape[1], dimension), filter_grid()
    room = int(_PREDICTIONS / (len(grid.kernel) * folds.judge.size * dimension))
    num_best = max(1, min(_BEST, room))
    found = held_out(problem.y[rows], problem.unit, w, folds, grid, filters, num_errors, num_best)
    judge = folds.judge.reshape(-1)
    at = jnp.full((judge.size,), 1 / judge.size, samples.dtype)
    if w is not None:
        at = w[judge] / jnp.sum(w[judge])
    choice = _stack(found, at, num_errors)
    config, which = choice.picked // num_best, found.best.reshape(-1)[choice.picked]
    kernel, metric = jnp.asarray(grid.kernel)[config], jnp.asarray(grid.metric)[config]
    factor = jnp.asarray(grid.factor, samples.dtype)[config]
    level = jnp.asarray(filters.level, samples.dtype)[which]
    power = jnp.asarray(filters.power, samples.dtype)[which]
    reference = jnp.asarray(filters.reference)[which]
    landmarks = None if folds.landmarks is None else order[: min(_LANDMARKS, size)]
    members, mean, precisions, lengthscale = _refit(
        problem, landmarks, grid.metrics, kernel, metric, factor, level, power, reference
    )
    shares = choice.gaussian_shares.at[0].add(
        jnp.sum(choice.shares * reference.astype(samples.dtype))
    )
    gaussian = GaussianReference(mean, jnp.einsum("a,aij->ij", shares, precisions))
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
    support = nearest_neighbour_support(samples, problem.moments, order)
    return FittedScore(info, Stack(members, choice.shares), gaussian, dimension, support)


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
    if train.shape[1] > _FULL:
        spaced = np.linspace(0, train.shape[1] - 1, _LANDMARKS).round().astype(int)
        landmarks = jnp.asarray(train[:, spaced])
    num_groups = min(_BATCHES, judge.size) if autocorrelated else judge.size
    groups = np.arange(judge.size) * num_groups // judge.size
    return Folds(jnp.asarray(train), jnp.asarray(judge), landmarks, jnp.asarray(groups), num_groups)


def _judged_rows(order: Array, num: int, autocorrelated: bool) -> Int[Array, " n"]:
    """Return the samples on which candidates are compared: random, or in order and spaced."""
    if not autocorrelated:
        return order[:num]
    return jnp.asarray(np.linspace(0, order.shape[0] - 1, num).round().astype(int))


class _Choice(NamedTuple):
    """Members of the stack, as rows of the predictions, with their shares."""

    picked: Int[Array, " R"]
    shares: Float[Array, " R"]
    gaussian_shares: Float[Array, " A"]
    gain: Float[Array, ""]


def _stack(found: HeldOut, weights: Float[Array, " n"], num_errors: Float[Array, ""]) -> _Choice:
    """Solve the quadratic programme for all candidates, then for the largest few."""
    total, num_atoms = found.linear.shape[0], found.scores.shape[0] - found.best.size
    num_kernels = total - num_atoms
    rows = (found.scores * jnp.sqrt(weights)[None, :, None]).reshape(total, -1)
    usable = jnp.all(jnp.isfinite(rows), axis=1) & jnp.isfinite(found.linear + found.penalty)
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
    medians = jnp.stack([median_lengthscale(place.to_metric(y)) for place in places])
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
        lengthscale = chosen.lengthscale * jnp.where(isotropic, data_unit, 1)
        return Expansion(chosen, place, basis.centres, coefficients), lengthscale

    members, lengthscale = jax.lax.map(member, jnp.arange(kernel.shape[0]))
    mean = frame.shift + frame.scale * m.mean
    return (
        members,
        mean,
        precisions / (frame.scale[:, None] * frame.scale[None, :])[None],
        lengthscale,
    )
