"""Cholesky factor of a matrix that is positive definite up to rounding.

Find the smallest jitter e in {0, e_0, 10 e_0, 100 e_0, ...} * mean(diag A) for which
A + e I = L L^T has a finite factor. The jitter is relative, so a matrix and its multiple by 1e-6
are treated alike.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class SafeCholesky(NamedTuple):
    """A Cholesky factor and what it cost to get it.

    Attributes:
        factor: lower triangular L with L L^T = A + jitter I.
        jitter: what was added to the diagonal, in the units of A; 0 where none was needed.
        success: False where even the largest jitter failed; `factor` is then NaN.
    """

    factor: Float[Array, "N N"]
    jitter: Float[Array, ""]
    success: Bool[Array, ""]


def safe_cholesky(
    matrix: Float[Array, "N N"],
    *,
    jitter: float | None = None,
    num_tries: int = 6,
    unit: Float[Array, ""] | None = None,
) -> SafeCholesky:
    """Return the Cholesky factor of a symmetric matrix, adding the least jitter that works.

    Tries A itself, then A + e mean(diag A) I for e = jitter, 10 jitter, 100 jitter, ... The
    search does not enter derivatives; the factor does, at the jitter found.

    Args:
        matrix: symmetric (N, N); only its symmetric part is used.
        jitter: first relative jitter. Default 10 machine epsilons of the dtype: rounding level.
        unit: what the jitter is relative to. Default mean(diag A); where A is a difference of
            larger matrices, its rounding errors are relative to those.
        num_tries: how many jitters are tried after 0. The default reaches 1e6 epsilons, about
            0.1 relative in float32: beyond it the matrix is not a covariance with rounding error.

    Returns:
        `SafeCholesky(factor, jitter, success)`.

    Raises:
        ValueError: if `matrix` is not square or `num_tries` is negative.

    Cost O(N^3) for each try: one factorisation where no jitter is needed. Fails (`success` False,
    NaN factor) for matrices that are indefinite beyond rounding, or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl._core.cholesky import safe_cholesky
        >>> safe_cholesky(4.0 * jnp.eye(2)).factor.tolist()
        [[2.0, 0.0], [0.0, 2.0]]
        >>> bool(safe_cholesky(jnp.ones((3, 3))).jitter > 0)  # rank one
        True
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must be square; got shape {matrix.shape}.")
    if num_tries < 0:
        raise ValueError(f"`num_tries` must be non-negative; got {num_tries}.")
    first = 10 * float(jnp.finfo(matrix.dtype).eps) if jitter is None else jitter
    scale = jnp.mean(jnp.abs(jnp.diagonal(matrix))) if unit is None else unit
    frozen, size = jax.lax.stop_gradient((matrix, scale))

    def factor_with(relative: Float[Array, ""]) -> Array:
        return jnp.linalg.cholesky(frozen + relative * size * identity)

    def keep_going(state: tuple[Array, Array, Array]) -> Array:
        index, _, factor = state
        return ~jnp.all(jnp.isfinite(factor)) & (index < num_tries)

    def escalate(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, relative, _ = state
        relative = jnp.where(index == 0, jnp.asarray(first, matrix.dtype), 10 * relative)
        return index + 1, relative, factor_with(relative)

    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    zero = jnp.zeros((), matrix.dtype)
    start = (jnp.zeros((), jnp.int32), zero, factor_with(zero))
    _, relative, frozen_factor = jax.lax.while_loop(keep_going, escalate, start)
    factor = _factor_of(matrix + relative * scale * identity, frozen_factor)
    return SafeCholesky(factor, relative * size, jnp.all(jnp.isfinite(frozen_factor)))


@jax.custom_jvp
def _factor_of(matrix: Float[Array, "N N"], factor: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """Return a factor that is known already, as a differentiable function of its matrix.

    dL = L Phi(L^-1 dA L^-T), where Phi takes the lower triangle and halves the diagonal.
    """
    return factor


@_factor_of.defjvp
def _factor_of_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    matrix, known = primals
    factor = _factor_of(matrix, known)
    change = 0.5 * (tangents[0] + tangents[0].T)
    half = jax.scipy.linalg.solve_triangular(factor, change, lower=True)
    inner = jax.scipy.linalg.solve_triangular(factor, half.T, lower=True)
    lower = jnp.tril(inner)
    lower = lower - 0.5 * jnp.diag(jnp.diagonal(inner))
    return factor, jnp.matmul(factor, lower, precision="highest")
