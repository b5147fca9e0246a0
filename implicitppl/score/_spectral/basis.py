"""Eigenfunctions of a kernel under the samples, psi_j(x) = k(x, Y) T_j: on samples or landmarks.

Both bases are orthonormal on the samples, sum_i w_i psi_j(x_i) psi_k(x_i) = delta_jk, and have the
eigenvalues t_j of the operator f -> sum_i w_i k(., x_i) f(x_i):

    full       Y = X:  S K S = U diag(l) U^T, S = diag(sqrt(M w)), t = l/M, T = S U sqrt(M)/l
    landmarks  K_YY = E diag(e) E^T, R = E e^{-1/2} above a relative floor,
               R^T K_YX diag(w) K_XY R = V diag(t) V^T,  T = R V t^{-1/2}

and Stein's identity gives the coefficients of the score, beta_j = -E[grad psi_j + psi_j s0] =
T_j^T B, with B = -sum_i w_i [grad_{x_i} k(Y, x_i) + k(Y, x_i) s0(x_i)]. With Y = X the landmark
form is the full one. Memory O(m^2 + m block): nothing of size M x M with landmarks.

Shi, Sun, Zhu, ICML 2018, section 3; Williams, Seeger, NIPS 2000, for the Nystrom form.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl.kernels import Kernel
from implicitppl.linalg._eigen import top_eigenpairs
from implicitppl.score._sample import Sample

# K_YY is inverted above this many eps of its largest eigenvalue: 1e-6 in float32. Its eigenvalues
# carry an error of 1.5 to 5 eps (see `linalg`); the textbook floor m eps throws away signal.
LANDMARK_EPSILONS = 8
# Samples are visited in blocks of at most this many kernel values (16 MiB in float32).
_BLOCK = 2**22


class Basis(NamedTuple):
    """Eigenfunctions psi = k(., centres) transform, in descending order of their eigenvalues.

    Attributes:
        centres: Y (m, D).
        transform: T (m, J); columns that are not kept are zero.
        values: l_j = M t_j >= 0.
        kept: whether l_j is above the rounding floor.
        trace: sum of all eigenvalues l_j, found or not.
    """

    centres: Float[Array, "m D"]
    transform: Float[Array, "m J"]
    values: Float[Array, " J"]
    kept: Bool[Array, " J"]
    trace: Float[Array, ""]


def full_basis(kernel: Kernel, sample: Sample, num: int | None = None) -> Basis:
    """Return the eigenfunctions on all samples; `num` of them, or all. O(M^3), or O(M^2 num)."""
    gram = kernel.gram(sample.rows)
    root = jnp.sqrt(sample.size * sample.weights)[:, None]
    if sample.is_weighted:
        gram = root * gram * root.T
    pairs = top_eigenpairs(gram, num)
    scale = jnp.sqrt(sample.size) / jnp.where(pairs.kept, pairs.values, 1)
    transform = pairs.vectors * jnp.where(pairs.kept, scale, 0)[None, :]
    if sample.is_weighted:
        transform = root * transform
    return Basis(sample.rows, transform, pairs.values, pairs.kept, pairs.trace)


def landmark_basis(kernel: Kernel, sample: Sample, landmarks: Float[Array, "m D"]) -> Basis:
    """Return the eigenfunctions in the span of k(., landmarks). O(M m^2 + m^3)."""
    whitener = _inverse_root(kernel.gram(landmarks))

    def add(total: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
        x, w = block
        features = jnp.matmul(kernel.gram(x, landmarks), whitener, precision="highest")
        weighted = w[:, None] * features
        return total + jnp.matmul(features.T, weighted, precision="highest"), None

    count = landmarks.shape[0]
    start = jnp.zeros((count, count), sample.dtype)
    moment = _over_blocks(add, start, (sample.rows, sample.weights), count)
    pairs = top_eigenpairs(0.5 * (moment + moment.T))
    inverse = jnp.where(pairs.kept, 1 / jnp.sqrt(jnp.where(pairs.kept, pairs.values, 1)), 0)
    transform = jnp.matmul(whitener, pairs.vectors, precision="highest")
    transform = transform * inverse[None, :]
    trace = sample.size * (sample.weights @ kernel.diag(sample.rows))
    return Basis(landmarks, transform, sample.size * pairs.values, pairs.kept, trace)


def stein_targets(
    kernel: Kernel,
    sample: Sample,
    centres: Float[Array, "m D"],
    reference_scores: Float[Array, "M D"] | None,
) -> Float[Array, "m D"]:
    """Return B, so that the coefficients of the score are T^T B. O(M m D)."""

    def add(total: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
        x, w, *scores = block
        total = total - kernel.mean_gradient(centres, x, w)
        if scores:
            weighted = w[:, None] * scores[0]
            total = total - jnp.matmul(kernel.gram(centres, x), weighted, precision="highest")
        return total, None

    arrays: tuple[Array, ...] = (sample.rows, sample.weights)
    if reference_scores is not None:
        arrays = (*arrays, reference_scores)
    return _over_blocks(add, jnp.zeros_like(centres), arrays, centres.shape[0])


def _inverse_root(gram: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return R with R^T gram R = I on the kept directions, zero columns elsewhere."""
    values, vectors = jnp.linalg.eigh(gram)
    kept = values > values[-1] * (LANDMARK_EPSILONS * float(jnp.finfo(gram.dtype).eps))
    return vectors * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)[None, :]


def _over_blocks(
    add: Callable[[Array, tuple[Array, ...]], tuple[Array, None]],
    start: Array,
    arrays: tuple[Array, ...],
    count: int,
) -> Array:
    """Return the fold of `add` over blocks of (rows, weights, ...); the last is padded by weight 0.

    A block has at most `_BLOCK` kernel values, with `count` centres.
    """
    size = arrays[0].shape[0]
    block = max(1, min(size, _BLOCK // max(count, 1)))
    if block == size:
        return add(start, arrays)[0]
    num = -(-size // block)
    # The pad repeats the first sample: a point of the data, so that nothing overflows.
    pad = num * block - size
    padded = [
        jnp.concatenate([a, jnp.zeros((pad,), a.dtype) if a.ndim == 1 else a[:1].repeat(pad, 0)])
        for a in arrays
    ]
    blocks = tuple(a.reshape(num, block, *a.shape[1:]) for a in padded)
    return jax.lax.scan(add, start, blocks)[0]
