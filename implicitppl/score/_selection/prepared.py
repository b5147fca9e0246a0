"""What one training set gives to every candidate of `select`: Gaussians, metrics, eigenfunctions.

All of it in standardised coordinates y, and all of it fitted on the training set alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl._core.frames import Frame
from implicitppl._core.moments import (
    Moments,
    moments,
    scaled_cholesky,
    shrinkage_amount,
    shrunk_covariance,
)
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._checks import or_equal
from implicitppl.score._reference import GaussianReference, gaussian_reference
from implicitppl.score._selection.grid import RadialChoice
from implicitppl.score._spectral.basis import Basis, full_basis, landmark_basis

# Most eigenfunctions of a candidate.
MAX_PAIRS = 200
# Samples from which the median distance is taken, many times over.
_MEDIAN_SAMPLES = 500
ATOMS = ("full", "half shrunk", "diagonal", "isotropic")


class Prepared(NamedTuple):
    """What one training set gives to every configuration: A Gaussians, one place per metric."""

    mean: Float[Array, " D"]
    precisions: Float[Array, "A D D"]
    coordinates: Frame
    medians: Float[Array, " metrics"]


def prepare(
    y: Array,
    unit: Array,
    weights: Array,
    train: Array,
    metrics: tuple[str, ...],
    weighted: bool,
    num_covariates: int,
) -> Prepared:
    samples, w = y[train], weights[train] / jnp.sum(weights[train])
    typical = equally_weighted(samples, w) if weighted else samples
    m = moments(samples, w)
    matrices = "whitened" in metrics
    places = [metric_coordinates(n, m, unit, matrices, num_covariates) for n in metrics]
    medians = [
        median_lengthscale(place.to(typical), max_samples=_MEDIAN_SAMPLES) for place in places
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *places)
    precisions = gaussian_precisions(m, unit, num_covariates)
    return Prepared(m.mean, precisions, stacked, jnp.stack(medians))


def equally_weighted(samples: Float[Array, "M D"], weights: Float[Array, " M"]) -> Array:
    """Return as many rows, each as often as its weight says (systematic resampling)."""
    size = samples.shape[0]
    places = (jnp.arange(size, dtype=samples.dtype) + 0.5) / size
    return samples[jnp.clip(jnp.searchsorted(jnp.cumsum(weights), places), 0, size - 1)]


def metric_coordinates(
    name: str, m: Moments, unit: Array, matrices: bool, num_covariates: int
) -> Frame:
    """Return the coordinates of a metric in standardised units, as matrices or as vectors."""
    spread = jnp.sqrt(jnp.where(m.varies, jnp.diagonal(m.covariance), 1))
    if name == "whitened":
        factor = scaled_cholesky(shrunk_covariance(m, shrinkage_amount(m)))
        return Frame(m.mean, factor, num_covariates=num_covariates)
    if name == "isotropic":
        scored = _scored(m, num_covariates)
        largest = jnp.max(jnp.where(scored, spread * unit, 0))
        common = jnp.where(largest > 0, largest, 1) / unit
        # Covariates have units of their own.
        spread = jnp.where(jnp.arange(unit.shape[0]) < num_covariates, spread, common)
    scale = jnp.diag(spread) if matrices else spread
    return Frame(m.mean, scale, num_covariates=num_covariates)


def gaussian_precisions(
    m: Moments, unit: Float[Array, " D"], num_covariates: int
) -> Float[Array, "A D D"]:
    """Return the precisions of `ATOMS`: from the full covariance to an isotropic one.

    With covariates, from the linear regression on them to Gaussians that do not see them.
    """
    amount = 0.5 * (1 + shrinkage_amount(m))
    full = gaussian_reference(m, None, num_covariates)
    half = gaussian_reference(m, amount, num_covariates)
    diagonal = gaussian_reference(m, 1.0, num_covariates)
    scored = _scored(m, num_covariates)
    count = jnp.maximum(jnp.sum(scored.astype(unit.dtype)), 1)
    variance = jnp.sum(jnp.where(scored, jnp.diagonal(m.covariance) * unit**2, 0)) / count
    isotropic = jnp.where(scored, unit**2 / jnp.where(variance > 0, variance, 1), 0)
    return jnp.stack([full.precision, half.precision, diagonal.precision, jnp.diag(isotropic)])


def _scored(m: Moments, num_covariates: int) -> Bool[Array, " D"]:
    """Return the coordinates in which there is a score: they vary, and are not covariates."""
    return m.varies & (jnp.arange(m.varies.shape[0]) >= num_covariates)


def atom_scores(
    mean: Float[Array, " D"], precisions: Float[Array, "A D D"], points: Float[Array, "V D"]
) -> tuple[Float[Array, "A V D"], Float[Array, " A"]]:
    scores = jax.vmap(lambda p: GaussianReference(mean, p).score(points))(precisions)
    return scores, -jnp.trace(precisions, axis1=1, axis2=2)


def basis_of(
    kernel: RadialChoice, z: Array, weights: Array | None, landmarks: Array | None
) -> Basis:
    """Return the leading eigenfunctions on the samples, or in the span of landmarks."""
    num = min(MAX_PAIRS, z.shape[0])
    if landmarks is None:
        return full_basis(kernel, z, weights, num)
    uniform = or_equal(weights, z)
    basis = landmark_basis(kernel, z, uniform, landmarks)
    return basis._replace(
        transform=basis.transform[:, :num], values=basis.values[:num], kept=basis.kept[:num]
    )
