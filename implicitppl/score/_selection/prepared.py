"""What one training set gives to every candidate of `select`: Gaussians, metrics, eigenfunctions.

All of it in standardised coordinates y, and all of it fitted on the training set alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl._core.frames import Frame
from implicitppl._core.moments import scaled_cholesky, shrinkage_amount, shrunk_covariance
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._reference import GaussianReference, gaussian_reference
from implicitppl.score._sample import Sample
from implicitppl.score._selection.grid import RadialChoice
from implicitppl.score._spectral.basis import Basis, full_basis, landmark_basis

# Most eigenfunctions of a candidate.
MAX_PAIRS = 200
ATOMS = ("full", "half shrunk", "diagonal", "isotropic")


class Prepared(NamedTuple):
    """What one training set gives to every configuration.

    Attributes:
        mean: of the training set.
        precisions: of the A Gaussians of `ATOMS`.
        frames: of the metrics, stacked.
        medians: the median distance in each of them.
    """

    mean: Float[Array, " R"]
    precisions: Float[Array, "A R R"]
    frames: Frame
    medians: Float[Array, " metrics"]

    @property
    def gaussian(self) -> GaussianReference:
        """The Gaussian of the full covariance."""
        return GaussianReference(self.mean, self.precisions[0])


def prepare(
    sample: Sample, scale: Float[Array, " R"], metrics: tuple[str, ...], max_median_samples: int
) -> Prepared:
    """Return what a training set in y gives; `scale` is that of the problem."""
    typical = equally_weighted(sample) if sample.is_weighted else sample.rows
    frames = [metric_coordinates(name, sample, scale, "whitened" in metrics) for name in metrics]
    medians = [
        median_lengthscale(frame.to(typical), max_samples=max_median_samples) for frame in frames
    ]
    return Prepared(
        sample.moments.mean,
        gaussian_precisions(sample, scale),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *frames),
        jnp.stack(medians),
    )


def equally_weighted(sample: Sample) -> Float[Array, "M R"]:
    """Return as many rows, each as often as its weight says (systematic resampling)."""
    shares = (jnp.arange(sample.size, dtype=sample.dtype) + 0.5) / sample.size
    index = jnp.searchsorted(jnp.cumsum(sample.weights), shares)
    return sample.rows[jnp.clip(index, 0, sample.size - 1)]


def metric_coordinates(
    name: str, sample: Sample, scale: Float[Array, " R"], matrices: bool
) -> Frame:
    """Return the coordinates of a metric in standardised units, as matrices or as vectors."""
    m = sample.moments
    if name == "whitened":
        factor = scaled_cholesky(shrunk_covariance(m, shrinkage_amount(m)))
        return Frame(m.mean, factor, num_covariates=sample.num_covariates)
    spread = jnp.sqrt(jnp.where(m.varies, jnp.diagonal(m.covariance), 1))
    if name == "isotropic":
        largest = jnp.max(jnp.where(_has_score(sample), spread * scale, 0))
        common = jnp.where(largest > 0, largest, 1) / scale
        # Covariates have units of their own.
        spread = jnp.where(sample.is_scored, common, spread)
    widths = jnp.diag(spread) if matrices else spread
    return Frame(m.mean, widths, num_covariates=sample.num_covariates)


def gaussian_precisions(sample: Sample, scale: Float[Array, " R"]) -> Float[Array, "A R R"]:
    """Return the precisions of `ATOMS`: from the full covariance to an isotropic one.

    With covariates, from the linear regression on them to Gaussians that do not see them.
    """
    m, scored = sample.moments, _has_score(sample)
    amounts = (None, 0.5 * (1 + shrinkage_amount(m)), 1.0)
    shrunk = [gaussian_reference(sample, amount).precision for amount in amounts]
    count = jnp.maximum(jnp.sum(scored.astype(scale.dtype)), 1)
    variance = jnp.sum(jnp.where(scored, jnp.diagonal(m.covariance) * scale**2, 0)) / count
    isotropic = jnp.where(scored, scale**2 / jnp.where(variance > 0, variance, 1), 0)
    return jnp.stack([*shrunk, jnp.diag(isotropic)])


def _has_score(sample: Sample) -> Bool[Array, " R"]:
    """Return the coordinates in which there is a score: they vary, and are not covariates."""
    return sample.moments.varies & sample.is_scored


def basis_of(kernel: RadialChoice, sample: Sample, landmarks: Float[Array, "m R"] | None) -> Basis:
    """Return the leading eigenfunctions on the samples, or in the span of landmarks."""
    num = min(MAX_PAIRS, sample.size)
    if landmarks is None:
        return full_basis(kernel, sample, num)
    basis = landmark_basis(kernel, sample, landmarks)
    return basis._replace(
        transform=basis.transform[:, :num], values=basis.values[:num], kept=basis.kept[:num]
    )
