"""The generic spectral fit: samples, a kernel and a filter give the coefficients C.

With the eigenfunctions psi_j = k(., Y) T_j of `basis` and Stein's identity for beta_j = T_j^T B,

    s(x) = s0(x) + sum_j f_j beta_j psi_j(x) = s0(x) + k(x, Y) C,    C = T diag(f) T^T B,

where Y are the samples, or landmarks. On all samples this is C = U diag(M f_j / l_j^2) U^T B with
K = U diag(l) U^T. Shi, Sun, Zhu, ICML 2018, equations (8)-(11); Zhou, Shi, Zhu, ICML 2020.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicitppl.kernels import Kernel
from implicitppl.linalg._eigen import is_full
from implicitppl.score._sample import Sample
from implicitppl.score._spectral.basis import full_basis, landmark_basis, stein_targets
from implicitppl.score._spectral.filters import SpectralFilter

# Above this many samples the full eigendecomposition (M^3) gives way to subspace iteration.
FULL_DECOMPOSITION = 1000
# How many eigenpairs that iteration looks for when nobody says.
DEFAULT_PAIRS = 200


class SpectralFit(NamedTuple):
    """Coefficients of k(x, Y) C, Y the samples or the landmarks, and what the filter kept."""

    centres: Float[Array, "m D"]
    coefficients: Float[Array, "m D"]
    num_eigenfunctions: Int[Array, ""]
    explained: Float[Array, ""]
    largest: Float[Array, ""]


def spectral_fit(
    kernel: Kernel,
    spectral_filter: SpectralFilter,
    sample: Sample,
    reference_scores: Float[Array, "M D"] | None,
    max_eigenfunctions: int | None,
    landmarks: Float[Array, "m D"] | None = None,
) -> SpectralFit:
    """Return the coefficients C of the filtered kernel expansion.

    Args:
        kernel: covariance function on the coordinates of `sample`.
        spectral_filter: multiplier f_j of each eigenpair.
        sample: in those coordinates.
        reference_scores: s0 at the samples, or None; only the rest is expanded.
        max_eigenfunctions: most eigenpairs to compute; None for the rule of `num_pairs`.
        landmarks: (m, D) points whose kernel sections span the eigenfunctions; None for all
            samples.

    Returns:
        `SpectralFit(centres, coefficients, num_eigenfunctions, explained, largest)`.

    Cost O(M^2 D + M^3), or O(M^2 (D + J)) with J eigenpairs for large M, with memory a few M x M;
    with landmarks O(M m (m + D) + m^3) and memory a few m x m.
    """
    if landmarks is None:
        count = num_pairs(sample.size, spectral_filter, max_eigenfunctions)
        basis = full_basis(kernel, sample, count)
    else:
        basis = landmark_basis(kernel, sample, landmarks)
    target = stein_targets(kernel, sample, basis.centres, reference_scores)
    multipliers = spectral_filter(basis.values, basis.trace, sample.size)
    multipliers = jnp.where(basis.kept, multipliers, 0)
    beta = jnp.matmul(basis.transform.T, target, precision="highest")
    scaled = multipliers[:, None] * beta
    coefficients = jnp.matmul(basis.transform, scaled, precision="highest")
    used = multipliers > 0
    explained = jnp.sum(jnp.where(used, basis.values, 0)) / basis.trace
    return SpectralFit(basis.centres, coefficients, jnp.sum(used), explained, basis.values[0])


def num_pairs(size: int, spectral_filter: SpectralFilter, maximum: int | None) -> int | None:
    """Return how many eigenpairs to compute; None for all of them."""
    if maximum is None:
        maximum = size if size <= FULL_DECOMPOSITION else DEFAULT_PAIRS
        usable = spectral_filter.num_eigenfunctions
        if size > FULL_DECOMPOSITION and usable is not None:
            maximum = usable
    return None if maximum >= size else maximum


def solver_name(
    size: int, landmarks: Array | None, spectral_filter: SpectralFilter, maximum: int | None
) -> str:
    """Return what `ScoreInfo.solver` says."""
    if landmarks is not None:
        return "landmarks"
    count = num_pairs(size, spectral_filter, maximum)
    return "full" if is_full(size, count) else "subspace"
