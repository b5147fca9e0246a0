"""Weighted mean and covariance, exact for constant coordinates, and their shrinkage.

Samples are shifted by one of them before anything is averaged: a constant coordinate is then
exactly 0 whatever its offset, and large offsets do not eat the digits of the variance.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl._core.cholesky import safe_cholesky


class Moments(NamedTuple):
    """First two moments of (weighted) samples.

    Attributes:
        mean: (D,).
        covariance: unbiased (D, D); rows of constant coordinates are zero.
        varies: which coordinates are not constant.
        size: effective number of samples 1 / sum w^2; M without weights.
    """

    mean: Float[Array, " D"]
    covariance: Float[Array, "D D"]
    varies: Bool[Array, " D"]
    size: Float[Array, ""]


def moments(samples: Float[Array, "M D"], weights: Float[Array, " M"]) -> Moments:
    """Return mean, unbiased covariance, non-constant coordinates and effective size."""
    # A row that counts: coordinates may vary where the weights are zero.
    first = samples[jnp.argmax(weights)]
    shifted = samples - first[None, :]
    offset = weights @ shifted
    centred = shifted - offset[None, :]
    size = 1 / jnp.sum(weights * weights)
    covariance = jnp.matmul(centred.T, weights[:, None] * centred, precision="highest")
    varies = jnp.any((shifted != 0) & (weights > 0)[:, None], axis=0)
    both = varies[:, None] & varies[None, :]
    covariance = jnp.where(both, covariance * size / jnp.maximum(size - 1, 1e-6), 0)
    return Moments(first + offset, covariance, varies, size)


def shrinkage_amount(m: Moments) -> Float[Array, ""]:
    """Return the default a in [0, 1]: 1 at M = D + 1, fading linearly in 1/M to 0 at M = 5 (D + 1).

    Shrinking towards the diagonal halves the score of strongly correlated samples (slope 0.47 for
    correlation 0.9, D = 10, M = 100 at the usual a = (D + 1)/M) and is not rotated with them. It
    is needed only where the covariance is close to singular; beyond, every affine map of the
    samples maps the estimate exactly.
    """
    dimension = m.mean.shape[0]
    if dimension == 1:
        return jnp.zeros_like(m.size)
    return jnp.clip((5 * (dimension + 1) / m.size - 1) / 4, 0, 1)


def shrunk_covariance(m: Moments, amount: Float[Array, ""]) -> Float[Array, "D D"]:
    """Return (1 - a) cov + a diag(cov), with variance 1 in constant coordinates."""
    variances = jnp.where(m.varies, jnp.diagonal(m.covariance), 1)
    off_diagonal = 1 - jnp.eye(m.mean.shape[0], dtype=variances.dtype)
    return (1 - amount) * m.covariance * off_diagonal + jnp.diag(variances)


def scaled_cholesky(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Return a lower Cholesky factor, computed on the correlation matrix.

    diag(s) R diag(s) = (diag(s) L)(diag(s) L)^T: coordinates of very different scale then cost no
    digits, and the jitter, where one is needed, is relative to each variance.
    """
    variances = jnp.diagonal(covariance)
    scale = jnp.sqrt(jnp.where(variances > 0, variances, 1))
    factor = safe_cholesky(covariance / (scale[:, None] * scale[None, :])).factor
    return scale[:, None] * factor
