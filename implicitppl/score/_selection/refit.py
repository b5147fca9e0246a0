"""The chosen candidates fitted on all samples, in the user's coordinates, with their bound."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.frames import Frame
from implicitppl._core.moments import moments
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._checks import or_equal
from implicitppl.score._fitted import FittedScore
from implicitppl.score._reference import GaussianReference
from implicitppl.score._selection.folds import Problem
from implicitppl.score._selection.grid import RadialChoice
from implicitppl.score._selection.prepared import (
    basis_of,
    equally_weighted,
    gaussian_precisions,
    metric_coordinates,
)
from implicitppl.score._selection.stack import Stack
from implicitppl.score._spectral.basis import stein_targets
from implicitppl.score._spectral.expansion import Expansion
from implicitppl.score._spectral.filters import RelativeRidge

# How far beyond its largest value on the samples the residual may go: heavy tails need some room.
_ROOM = 1.5


def refit(
    problem: Problem,
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
    w = or_equal(problem.weights, y)
    m = moments(y, w)
    num, matrices = problem.num_covariates, "whitened" in metrics
    places = [metric_coordinates(n, m, problem.unit, matrices, num) for n in metrics]
    typical = y if problem.weights is None else equally_weighted(y, w)
    medians = jnp.stack([median_lengthscale(place.to(typical)) for place in places])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *places)
    precisions = gaussian_precisions(m, problem.unit, num)
    base = GaussianReference(m.mean, precisions[0]).score(y)

    def member(r: Array) -> tuple[Expansion, Array]:
        where = jax.tree.map(lambda leaf: leaf[metric[r]], stacked)
        z = where.to(y)
        chosen = RadialChoice(medians[metric[r]] * factor[r], kernel[r])
        centres = None if landmarks is None else z[landmarks]
        basis = basis_of(chosen, z, problem.weights, centres)
        known = where.score_to(base) * reference[r].astype(y.dtype)
        target = stein_targets(chosen, z, w, basis.centres, known)
        multipliers = RelativeRidge(level[r], power[r])(basis.values, basis.trace, size)
        beta = jnp.matmul(basis.transform.T, target, precision="highest")
        coefficients = jnp.matmul(basis.transform, multipliers[:, None] * beta, precision="highest")
        scale = frame.scale[:, None] * where.scale if where.scale.ndim == 2 else None
        place = Frame(
            frame.shift + frame.scale * where.shift,
            frame.scale * where.scale if scale is None else scale,
            num_covariates=num,
        )
        data_unit = place.scale[-1, -1] if place.scale.ndim == 2 else place.scale[-1]
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


def bounded_parts(
    members: Expansion,
    kernel_shares: Float[Array, " R"],
    mean: Float[Array, " D"],
    precisions: Float[Array, "A D D"],
    shares: Float[Array, " A"],
    others: tuple[FittedScore, ...],
    other_shares: Float[Array, " E"],
    problem: Problem,
) -> tuple[GaussianReference, Stack]:
    """Return s_G, its shares scaled to one, and what the stack adds to it, not bounded yet."""
    total = jnp.sum(shares)
    full = jnp.zeros_like(shares).at[0].set(1)
    scaled = jnp.where(total > 0.01, shares / jnp.where(total > 0, total, 1), full)
    gaussian = jnp.einsum("a,aij->ij", scaled, precisions)
    rest = GaussianReference(mean, jnp.einsum("a,aij->ij", shares - scaled, precisions))
    unit = jnp.broadcast_to(problem.frame.scale, mean.shape)
    infinite = jnp.asarray(jnp.inf, mean.dtype)
    stack = Stack(members, kernel_shares, others, other_shares, rest, unit, infinite)
    return GaussianReference(mean, gaussian), stack


def with_bound(stack: Stack, samples: Float[Array, "n D"], counts: Bool[Array, " n"]) -> Stack:
    """Return the stack with its bound, a multiple of the largest residual of samples that count."""
    norms = jnp.sum(jnp.square(stack.residual(samples) * stack.unit[None, :]), axis=1)
    return eqx.tree_at(
        lambda s: s.bound, stack, _ROOM * jnp.sqrt(jnp.max(jnp.where(counts, norms, 0)))
    )
