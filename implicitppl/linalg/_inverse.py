"""Inverse and log determinant of many small matrices at once, by elimination in plain XLA.

Gauss-Jordan elimination in place, with partial pivoting by rows. Step k picks among the unused
rows the one with the largest |W_pk|, divides it by that pivot, and clears column k in all others;
column k then holds a column of the inverse:

    w = W_p / W_pk,  f = column k with f_p = 0;
    W <- W - f w^T,  W_p <- w,  column k <- -f / W_pk,  W_pk <- 1 / W_pk.

det A = sign(order of the pivot rows) * product of the pivots.

Why not LAPACK: the batched LAPACK kernels of jaxlib wait inside the thread pool that they run on.
With two cores, two of them that run at the same time wait for ever (jaxlib 0.10.2: a batch of 32
factorisations of 22 x 22 beside a batch of triangular solves). A loop of training must not hang.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


class Inverse(NamedTuple):
    """A^-1 with log |det A| and the sign of det A (1, -1, or 0 where A is singular)."""

    inverse: Float[Array, "N N"]
    log_abs_det: Float[Array, ""]
    sign: Float[Array, ""]


def small_inverse(matrix: Float[Array, "N M"]) -> Inverse:
    """Return the inverse and the log determinant of a small matrix; made for `vmap`.

    Args:
        matrix: square (N, N), up to about 64 x 64: beyond it LAPACK is faster.

    Returns:
        `Inverse(inverse, log_abs_det, sign)`. A singular matrix has `log_abs_det` -inf, `sign`
        0 and an inverse of NaN.

    Raises:
        ValueError: if `matrix` is not square.

    Cost 2 N^3, in N steps. Derivatives of any order: d log|det A| = tr(A^-1 dA) and
    d A^-1 = -A^-1 dA A^-1 (Petersen and Pedersen 2012, eqs 43 and 59).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.linalg._inverse import small_inverse
        >>> result = small_inverse(jnp.array([[0.0, 2.0], [1.0, 0.0]]))
        >>> result.inverse.tolist(), float(result.sign)
        ([[0.0, 1.0], [0.5, 0.0]], -1.0)
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must be square; got shape {matrix.shape}.")
    return Inverse(*_inverse(matrix))


@jax.custom_jvp
def _inverse(matrix: Array) -> tuple[Array, Array, Array]:
    size = matrix.shape[0]
    rows = jnp.arange(size)

    def step(k: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        w, order, pivots, parity = state
        column = jax.lax.dynamic_index_in_dim(w, k, axis=1, keepdims=False)
        unused = jnp.all(order[None, :] != rows[:, None], axis=1)
        pivot_row = jnp.argmax(jnp.where(unused, jnp.abs(column), -1.0))
        at_pivot = rows == pivot_row
        pivot = column[pivot_row]
        divisor = jnp.where(pivot == 0, 1.0, pivot)  # a singular matrix goes on, to be flagged
        row = w[pivot_row] / divisor
        factor = jnp.where(at_pivot, 0.0, column)
        cleared = jnp.where(at_pivot[:, None], row[None, :], w - factor[:, None] * row[None, :])
        new_column = jnp.where(at_pivot, 1.0, -factor) / divisor
        w = jnp.where((rows == k)[None, :], new_column[:, None], cleared)
        skipped = jnp.sum(unused & (rows < pivot_row))  # inversions of `order` that end here
        order, pivots = order.at[k].set(pivot_row), pivots.at[k].set(pivot)
        return w, order, pivots, parity + skipped

    zero = jnp.zeros((), rows.dtype)
    start = (matrix, jnp.full((size,), -1, rows.dtype), jnp.zeros((size,), matrix.dtype), zero)
    w, order, pivots, inversions = jax.lax.fori_loop(0, size, step, start)
    sign = (1 - 2 * (inversions % 2)).astype(matrix.dtype) * jnp.prod(jnp.sign(pivots))
    place = jnp.argmax(order[None, :] == rows[:, None], axis=1)  # where each row was the pivot
    inverse = jnp.where(sign == 0, jnp.nan, w[order][:, place])
    return inverse, jnp.sum(jnp.log(jnp.abs(pivots))), sign


@_inverse.defjvp
def _inverse_jvp(
    primals: tuple[Array], tangents: tuple[ArrayLike]
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    (matrix,), (tangent,) = primals, tangents
    inverse, log_abs_det, sign = _inverse(matrix)
    product = inverse @ jnp.asarray(tangent)
    return (inverse, log_abs_det, sign), (
        -product @ inverse,
        jnp.trace(product),
        jnp.zeros_like(sign),
    )
