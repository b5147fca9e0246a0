"""Conjugate gradients for several right sides at once, and what they know of the determinant.

Preconditioned conjugate gradients on C x = b are the Lanczos process of P^-1/2 C P^-1/2 started at
P^-1/2 b: their step lengths a_k and b_k are the tridiagonal matrix

    T_kk = 1 / a_k + b_(k-1) / a_(k-1),      T_k,k+1 = sqrt(b_k) / a_k,

so that for z ~ N(0, P)    log|C| - log|P| = E (z' P^-1 z) e_1' log(T) e_1    at no further product.

Gardner, Pleiss, Bindel, Weinberger, Wilson, GPyTorch, NeurIPS 2018, section 4; Saad, Iterative
Methods for Sparse Linear Systems, section 6.7.3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Product = Callable[[Array], Array]


class Solution(NamedTuple):
    """What `conjugate_gradients` returns.

    Attributes:
        x: (N, S) solutions.
        relative_residuals: (S,) |C x - b| / |b|, as the recursion has them.
        num_iterations: how many products with C were made.
        diagonals, off_diagonals: (S, K) of the tridiagonal matrices, 1 and 0 beyond convergence.
    """

    x: Float[Array, "N S"]
    relative_residuals: Float[Array, " S"]
    num_iterations: Int[Array, ""]
    diagonals: Float[Array, "S K"]
    off_diagonals: Float[Array, "S K"]


class _State(NamedTuple):
    num_done: Array
    x: Array
    residual: Array
    direction: Array
    product: Array  # r' P^-1 r
    last_ratio: Array  # b_(k-1) / a_(k-1)
    active: Array
    diagonals: Array
    off_diagonals: Array


def conjugate_gradients(
    product: Product,
    right: Float[Array, "N S"],
    *,
    precondition: Product = lambda r: r,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> Solution:
    """Return the solutions of C x = b for every column b, C symmetric positive definite.

    Args:
        product: V (N, S) -> C V.
        right: the right sides, one in each column.
        precondition: V -> P^-1 V, P symmetric positive definite and near C.
        tolerance: relative residual at which a column is done; all must be.
        max_iterations: products at most. What is reached then is returned, with its residual.

    No derivatives: call it on `stop_gradient` values.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.linalg._cg import conjugate_gradients
        >>> found = conjugate_gradients(lambda v: 2.0 * v, jnp.ones((3, 1)))
        >>> found.x[:, 0].tolist(), int(found.num_iterations)
        ([0.5, 0.5, 0.5], 1)
    """
    size = jnp.linalg.norm(right, axis=0)
    limit = jnp.square(tolerance * jnp.maximum(size, jnp.finfo(right.dtype).tiny))
    first = precondition(right)
    columns = right.shape[1]
    ones = jnp.ones((max_iterations, columns), right.dtype)
    start = _State(
        jnp.zeros((), jnp.int32),
        jnp.zeros_like(right),
        right,
        first,
        jnp.sum(right * first, axis=0),
        jnp.zeros((columns,), right.dtype),
        jnp.sum(right * right, axis=0) > limit,
        ones,
        jnp.zeros_like(ones),
    )

    def go_on(state: _State) -> Array:
        return (state.num_done < max_iterations) & jnp.any(state.active)

    def step(state: _State) -> _State:
        moved = product(state.direction)
        curvature = jnp.sum(state.direction * moved, axis=0)
        # A column that is done, or where rounding left no curvature, stays as it is.
        usable = state.active & (curvature > 0)
        length = jnp.where(usable, state.product / jnp.where(usable, curvature, 1), 0)
        x = state.x + length[None, :] * state.direction
        residual = state.residual - length[None, :] * moved
        conditioned = precondition(residual)
        following = jnp.sum(residual * conditioned, axis=0)
        ratio = jnp.where(usable, following / jnp.where(usable, state.product, 1), 0)
        inverse = 1 / jnp.where(usable, length, 1)
        active = usable & (jnp.sum(residual * residual, axis=0) > limit)
        diagonal = jnp.where(usable, inverse + state.last_ratio, 1)
        off_diagonal = jnp.where(active, jnp.sqrt(jnp.maximum(ratio, 0)) * inverse, 0)
        return _State(
            state.num_done + 1,
            x,
            residual,
            conditioned + ratio[None, :] * state.direction,
            following,
            ratio * inverse,
            active,
            state.diagonals.at[state.num_done].set(diagonal),
            state.off_diagonals.at[state.num_done].set(off_diagonal),
        )

    end = jax.lax.while_loop(go_on, step, start)
    left = jnp.linalg.norm(end.residual, axis=0) / jnp.maximum(size, jnp.finfo(right.dtype).tiny)
    return Solution(end.x, left, end.num_done, end.diagonals.T, end.off_diagonals.T)


def log_of_tridiagonal(
    diagonals: Float[Array, "S K"], off_diagonals: Float[Array, "S K"]
) -> Float[Array, " S"]:
    """Return e_1' log(T) e_1 for symmetric tridiagonal matrices, positive definite to rounding.

    Args:
        diagonals: of T.
        off_diagonals: T_k,k+1; the last column is not read.

    Cost O(S K^3).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.linalg._cg import log_of_tridiagonal
        >>> float(log_of_tridiagonal(jnp.ones((1, 2)), jnp.zeros((1, 2)))[0])
        0.0
    """

    def one(diagonal: Array, off: Array) -> Array:
        upper = jnp.diag(off[:-1], 1)
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + upper + upper.T)
        smallest = jnp.finfo(values.dtype).eps * jnp.max(values)
        return jnp.sum(jnp.square(vectors[0]) * jnp.log(jnp.maximum(values, smallest)))

    return jax.vmap(one)(diagonals, off_diagonals)
