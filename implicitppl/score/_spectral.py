"""The generic spectral fit: samples, a kernel and a filter give the coefficients C.

With the Gram matrix K = U diag(l) U^T of the samples x^m and k radial or not,

    psi_j(x) = (sqrt(M)/l_j) sum_m u_jm k(x, x^m)                     eigenfunctions (Nystrom)
    beta_j   = -(1/M) sum_m [grad psi_j(x^m) + psi_j(x^m) s0(x^m)]    Stein's identity
             = (sqrt(M)/l_j) u_j^T B,    B = -zeta - K s0 / M,
    zeta(x)  = (1/M) sum_m grad_{x^m} k(x, x^m)
    s(x)     = s0(x) + sum_j f_j beta_j psi_j(x) = s0(x) + k(x, X) C,
    C        = U diag(M f_j / l_j^2) U^T B.

Weights w_m replace 1/M: with S = diag(sqrt(M w)) the eigenpairs are those of S K S, and C gets S
on both sides. Shi, Sun, Zhu, ICML 2018, equations (8)-(11); Zhou, Shi, Zhu, ICML 2020.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicitppl.kernels import Kernel
from implicitppl.linalg import SpectralFilter, top_eigenpairs

# Above this many samples the full eigendecomposition (M^3) gives way to subspace iteration.
FULL_DECOMPOSITION = 1000
# How many eigenpairs that iteration looks for when nobody says.
DEFAULT_PAIRS = 200


class SpectralFit(NamedTuple):
    """Coefficients of k(x, X) C and what the filter kept."""

    coefficients: Float[Array, "M D"]
    num_eigenfunctions: Int[Array, ""]
    explained: Float[Array, ""]


def spectral_fit(
    kernel: Kernel,
    spectral_filter: SpectralFilter,
    samples: Float[Array, "M D"],
    weights: Float[Array, " M"] | None,
    reference_scores: Float[Array, "M D"] | None,
    max_eigenfunctions: int | None,
) -> SpectralFit:
    """Return the coefficients C of the filtered kernel expansion.

    Args:
        kernel: covariance function on the coordinates of `samples`.
        spectral_filter: multiplier f_j of each eigenpair.
        samples: (M, D).
        weights: sum to one; None for equal weights.
        reference_scores: s0 at the samples, or None; only the rest is expanded.
        max_eigenfunctions: most eigenpairs to compute; None for the rule of `num_pairs`.

    Returns:
        `SpectralFit(coefficients, num_eigenfunctions, explained)`.

    Cost O(M^2 D + M^3), or O(M^2 (D + J)) with J eigenpairs for large M; memory a few M x M.
    """
    size = samples.shape[0]
    uniform = jnp.full((size,), 1 / size, samples.dtype) if weights is None else weights
    gram = kernel.gram(samples)
    target = -kernel.mean_gradient(samples, samples, uniform)
    if reference_scores is not None:
        weighted = uniform[:, None] * reference_scores
        target = target - jnp.matmul(gram, weighted, precision="highest")
    root = None if weights is None else jnp.sqrt(size * weights)[:, None]
    if root is not None:
        gram, target = root * gram * root.T, root * target
    pairs = top_eigenpairs(gram, num_pairs(size, spectral_filter, max_eigenfunctions))
    multipliers = spectral_filter(pairs.values, pairs.trace, size)
    multipliers = jnp.where(pairs.kept, multipliers, 0)
    inverse = jnp.where(pairs.kept, jnp.sqrt(size) / jnp.where(pairs.kept, pairs.values, 1), 0)
    projected = jnp.matmul(pairs.vectors.T, target, precision="highest")
    scaled = (multipliers * inverse * inverse)[:, None] * projected
    coefficients = jnp.matmul(pairs.vectors, scaled, precision="highest")
    if root is not None:
        coefficients = root * coefficients
    used = multipliers > 0
    explained = jnp.sum(jnp.where(used, pairs.values, 0)) / pairs.trace
    return SpectralFit(coefficients, jnp.sum(used), explained)


def num_pairs(size: int, spectral_filter: SpectralFilter, maximum: int | None) -> int | None:
    """Return how many eigenpairs to compute; None for all of them."""
    if maximum is None:
        maximum = size if size <= FULL_DECOMPOSITION else DEFAULT_PAIRS
        usable = spectral_filter.num_eigenfunctions
        if size > FULL_DECOMPOSITION and usable is not None:
            maximum = usable
    return None if maximum >= size else maximum
