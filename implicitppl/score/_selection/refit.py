"""The chosen candidates fitted on all samples, in the user's coordinates, with their bound."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.frames import Frame
from implicitppl.score._fitted import FittedScore
from implicitppl.score._reference import GaussianReference
from implicitppl.score._sample import Sample
from implicitppl.score._selection.choice import Choice
from implicitppl.score._selection.folds import Problem
from implicitppl.score._selection.grid import Configurations, Filters, RadialChoice
from implicitppl.score._selection.prepared import Prepared, basis_of, prepare
from implicitppl.score._selection.stack import Stack
from implicitppl.score._spectral.basis import stein_targets
from implicitppl.score._spectral.expansion import Expansion
from implicitppl.score._spectral.filters import RelativeRidge

# Samples whose span the fit searches, and those from which the median distance is taken.
_FULL, _LANDMARKS, _MEDIAN_SAMPLES = 625, 300, 1000
# How far beyond its largest value on the samples the residual may go: heavy tails need some room.
_ROOM = 1.5
# With a smaller share of the stack the Gaussians are not scaled to one.
_SMALLEST_GAUSSIAN = 0.01


class Members(NamedTuple):
    """R kernel estimates on all samples, in data units, with the Gaussians beside them.

    Attributes:
        expansions: leaves have a leading axis R.
        lengthscales: (R,) in data units for the isotropic metric, else in standard deviations.
        mean: of the samples.
        precisions: (A, R, R) of the Gaussians.
    """

    expansions: Expansion
    lengthscales: Float[Array, " R"]
    mean: Float[Array, " D"]
    precisions: Float[Array, "A D D"]


def refit(
    problem: Problem, metrics: tuple[str, ...], configurations: Configurations, filters: Filters
) -> Members:
    """Return the chosen candidates, columns of length R, fitted on all samples."""
    frame, sample = problem.frame, problem.standard
    prepared = prepare(sample, problem.scale, metrics, _MEDIAN_SAMPLES)
    base = prepared.gaussian.score(sample.rows)
    is_isotropic = jnp.asarray([name == "isotropic" for name in metrics])

    def member(index: Array) -> tuple[Expansion, Array]:
        kernel, metric, factor = (column[index] for column in configurations)
        reference, power, level = (column[index] for column in filters)
        inner = jax.tree.map(lambda leaf: leaf[metric], prepared.frames)
        lengthscale = prepared.medians[metric] * factor
        scores = inner.score_to(base) * reference.astype(sample.dtype)
        chosen = RadialChoice(lengthscale, kernel)
        centres, coefficients = _fit_member(
            sample.seen_in(inner), chosen, RelativeRidge(level, power), scores, problem
        )
        outer = _composed(frame, inner)
        data_unit = outer.scale[-1, -1] if outer.scale.ndim == 2 else outer.scale[-1]
        reported = lengthscale * jnp.where(is_isotropic[metric], data_unit, 1)
        return Expansion(chosen, outer, centres, coefficients), reported

    expansions, lengthscales = jax.lax.map(member, jnp.arange(filters.level.shape[0]))
    mean, precisions = _in_data_units(frame, prepared)
    return Members(expansions, lengthscales, mean, precisions)


def landmark_rows(problem: Problem) -> Array | None:
    """Return the samples whose span the fit searches; None for all of them."""
    return None if problem.sample.size <= _FULL else problem.order[:_LANDMARKS]


def _fit_member(
    sample: Sample,
    kernel: RadialChoice,
    spectral_filter: RelativeRidge,
    reference_scores: Float[Array, "M D"],
    problem: Problem,
) -> tuple[Float[Array, "m D"], Float[Array, "m D"]]:
    """Return centres and coefficients of one member, in the coordinates of its metric."""
    landmarks = landmark_rows(problem)
    basis = basis_of(kernel, sample, None if landmarks is None else sample.rows[landmarks])
    target = stein_targets(kernel, sample, basis.centres, reference_scores)
    multipliers = spectral_filter(basis.values, basis.trace, sample.size)
    beta = jnp.matmul(basis.transform.T, target, precision="highest")
    scaled = multipliers[:, None] * beta
    return basis.centres, jnp.matmul(basis.transform, scaled, precision="highest")


def _composed(frame: Frame, inner: Frame) -> Frame:
    """Return the frame of the user's coordinates that leads to those of `inner`, a frame of y."""
    scale = frame.scale[:, None] if inner.scale.ndim == 2 else frame.scale
    shift = frame.shift + frame.scale * inner.shift
    return Frame(shift, scale * inner.scale, num_covariates=inner.num_covariates)


def _in_data_units(frame: Frame, prepared: Prepared) -> tuple[Array, Array]:
    """Return mean and precisions of the Gaussians in the user's coordinates."""
    squared = frame.scale[:, None] * frame.scale[None, :]
    return frame.shift + frame.scale * prepared.mean, prepared.precisions / squared[None]


def stack_of(
    members: Members,
    choice: Choice,
    shares: Float[Array, " A"],
    brought: tuple[FittedScore, ...],
    problem: Problem,
) -> tuple[GaussianReference, Stack]:
    """Return s_G, its shares scaled to one, and what the stack adds to it, bounded.

    `shares` are those of the Gaussians, the references of the members among them.
    """
    total = jnp.sum(shares)
    full = jnp.zeros_like(shares).at[0].set(1)
    is_large = total > _SMALLEST_GAUSSIAN
    scaled = jnp.where(is_large, shares / jnp.where(total > 0, total, 1), full)
    gaussian = jnp.einsum("a,aij->ij", scaled, members.precisions)
    rest = jnp.einsum("a,aij->ij", shares - scaled, members.precisions)
    stack = Stack(
        members.expansions,
        choice.shares,
        brought,
        choice.brought_shares,
        GaussianReference(members.mean, rest),
        jnp.broadcast_to(problem.frame.scale, members.mean.shape),
        jnp.asarray(jnp.inf, members.mean.dtype),
    )
    return GaussianReference(members.mean, gaussian), _bounded(stack, problem)


def _bounded(stack: Stack, problem: Problem) -> Stack:
    """Return the stack with its bound, a multiple of the largest residual of samples that count.

    The samples are those that were judged.
    """
    rows, counts = problem.sample.rows[problem.judged], problem.sample.counts[problem.judged]
    norms = jnp.sum(jnp.square(stack.residual(rows) * stack.scale[None, :]), axis=1)
    bound = _ROOM * jnp.sqrt(jnp.max(jnp.where(counts, norms, 0)))
    return eqx.tree_at(lambda s: s.bound, stack, bound)
