"""One configuration fitted in every fold: its eigenfunctions at the points that are held out.

With psi_j = k(., Y) T_j in the coordinates z of a metric and gamma_j = T^T T beta_j there,

    s_y = sum_j f_j psi_j beta_j,      div_y s_y = sum_j f_j grad psi_j . gamma_j,

so that the prediction of every filter is a product of small matrices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.frames import Frame
from implicitppl.score._reference import GaussianReference
from implicitppl.score._sample import Sample
from implicitppl.score._selection.folds import Folds
from implicitppl.score._selection.grid import Configurations, Filters, RadialChoice
from implicitppl.score._selection.judge import Predictions
from implicitppl.score._selection.prepared import Prepared, basis_of
from implicitppl.score._spectral.basis import Basis, stein_targets
from implicitppl.score._spectral.filters import RelativeRidge


class FoldFits(NamedTuple):
    """Fits of one configuration, with a leading axis K where they are of all folds.

    Attributes:
        psi: eigenfunctions at the held-out points.
        beta: their coefficients in y, without and with the Gaussian as the reference.
        slopes: grad psi_j . beta_j at the held-out points, for both.
        values: eigenvalues.
    """

    psi: Float[Array, "*K V J"]
    beta: Float[Array, "*K 2 J R"]
    slopes: Float[Array, "*K 2 V J"]
    values: Float[Array, "*K J"]

    def predict(self, filters: Filters, gaussian: Predictions) -> Predictions:
        """Return the held-out predictions of one filter, in all folds."""
        spectral_filter = RelativeRidge(filters.level, filters.power)
        multiply = jax.vmap(lambda v: spectral_filter(v, jnp.sum(v), v.shape[0]))
        multipliers = multiply(self.values)
        kept = multipliers[:, :, None] * self.beta[:, filters.reference]
        scores = jnp.matmul(self.psi, kept, precision="highest").reshape(gaussian.scores.shape)
        along = jnp.einsum("kvj,kj->kv", self.slopes[:, filters.reference], multipliers)
        flag = filters.reference.astype(scores.dtype)
        return Predictions(
            scores + flag * gaussian.scores, along.reshape(-1) + flag * gaussian.divergences
        )


def fit_folds(
    sample: Sample, folds: Folds, prepared: Prepared, configuration: Configurations
) -> FoldFits:
    """Return the fits of one configuration in all folds, one after the other."""

    def fold(k: Array) -> FoldFits:
        fold_prepared: Prepared = jax.tree.map(lambda leaf: leaf[k], prepared)
        frame = jax.tree.map(lambda leaf: leaf[configuration.metric], fold_prepared.frames)
        median = fold_prepared.medians[configuration.metric]
        kernel = RadialChoice(median * configuration.factor, configuration.kernel)
        landmarks = None
        if folds.landmarks is not None:
            landmarks = frame.to(sample.rows[folds.landmarks[k]])
        train, points = sample.take(folds.train[k]), frame.to(sample.rows[folds.judge[k]])
        return _fit_fold(train, points, landmarks, kernel, frame, fold_prepared.gaussian)

    return jax.lax.map(fold, jnp.arange(folds.train.shape[0]))


def _fit_fold(
    train: Sample,
    points: Float[Array, "V R"],
    landmarks: Float[Array, "m R"] | None,
    kernel: RadialChoice,
    frame: Frame,
    gaussian: GaussianReference,
) -> FoldFits:
    """Return the fit on a training set in y; points and landmarks are in the metric's frame."""
    z = train.seen_in(frame)
    basis = basis_of(kernel, z, landmarks)
    base = frame.score_to(gaussian.score(train.rows))
    beta = _coefficients(kernel, z, basis, base)
    psi = jnp.matmul(kernel.gram(points, basis.centres), basis.transform, precision="highest")
    along = [
        _slopes(kernel, points, basis, gamma)
        for gamma in frame.trace_weight(beta).reshape(2, -1, beta.shape[1])
    ]
    beta = frame.score_back(beta).reshape(2, -1, beta.shape[1])
    return FoldFits(psi, beta, jnp.stack(along), basis.values)


def _coefficients(
    kernel: RadialChoice, sample: Sample, basis: Basis, base: Float[Array, "T R"]
) -> Float[Array, "rows R"]:
    """Return beta without a reference, then with one whose scores are given; rows."""
    plain = stein_targets(kernel, sample, basis.centres, None)
    weighted = sample.weights[:, None] * base
    cross = kernel.gram(basis.centres, sample.rows)
    residual = plain - jnp.matmul(cross, weighted, precision="highest")
    targets = jnp.concatenate([plain, residual], axis=1)
    both = jnp.matmul(basis.transform.T, targets, precision="highest")
    num = base.shape[1]
    return jnp.moveaxis(both.reshape(-1, 2, num), 1, 0).reshape(-1, num)


def _slopes(
    kernel: RadialChoice, points: Float[Array, "V R"], basis: Basis, gamma: Float[Array, "J R"]
) -> Float[Array, "V J"]:
    """Return grad psi_j(x_v) . gamma_j."""
    radial_slope = kernel._pull(points, basis.centres)
    moved = jnp.matmul(radial_slope, basis.transform, precision="highest")
    along = jnp.matmul(points, gamma.T, precision="highest") * moved
    centred = basis.transform * jnp.matmul(basis.centres, gamma.T, precision="highest")
    towards = jnp.matmul(radial_slope, centred, precision="highest")
    return (towards - along) / jnp.square(kernel.lengthscale)
