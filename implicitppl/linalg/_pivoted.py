"""A few columns of a Cholesky factor, those of the largest remaining variances.

    K ~ F F',  F (N, R),     p = argmax d,  d = diag(K - F F'),
    the next column of F:    (k_p - F F_p') / sqrt(d_p)

Only R columns of K are ever computed. Where the spectrum of K decays fast, F F' + s^2 I is nearly
K + s^2 I, which makes it a preconditioner.

Harbrecht, Peters, Schneider, On the low-rank approximation by the pivoted Cholesky decomposition,
Applied Numerical Mathematics 62 (2012).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pivoted_cholesky(
    column: Callable[[Array], Array], diagonal: Float[Array, " N"], rank: int
) -> Float[Array, "N R"]:
    """Return F with F F' ~ K, from the diagonal of K and `rank` of its columns.

    Args:
        column: index -> that column of K, (N,).
        diagonal: of K.
        rank: how many columns; those beyond the rank of K are 0.

    Cost O(N rank^2) beside the columns.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.linalg import pivoted_cholesky
        >>> K = jnp.diag(jnp.array([1.0, 4.0, 9.0]))
        >>> pivoted_cholesky(lambda i: K[:, i], jnp.diagonal(K), 2).tolist()
        [[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]]
    """
    rank = min(rank, diagonal.shape[0])
    floor = 10 * jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)

    def add(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = state
        pivot = jnp.argmax(left)
        value = left[pivot]
        rest = column(pivot) - jnp.matmul(factor, factor[pivot], precision="highest")
        new = jnp.where(value > floor, rest / jnp.sqrt(jnp.where(value > floor, value, 1)), 0)
        # The pivot's variance is exactly used up; elsewhere rounding may leave less than nothing.
        left = jnp.maximum(left - new * new, 0).at[pivot].set(0)
        return factor.at[:, j].set(new), left

    empty = jnp.zeros((diagonal.shape[0], rank), diagonal.dtype)
    return jax.lax.fori_loop(0, rank, add, (empty, diagonal))[0]
