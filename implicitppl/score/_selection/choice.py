"""Which candidates enter the stack, and with which shares: the quadratic programme, twice.

Once for all candidates, then for the few with the largest shares, the Gaussians, and what the user
brought.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicitppl.linalg._simplex import minimise_on_simplex
from implicitppl.score._selection.held_out import HeldOut
from implicitppl.score._selection.info import MIN_SAMPLES

# Kernel estimates in a stack: each costs O(M D) for every query.
_MEMBERS = 4
# A smaller share of the stack is dropped.
_SMALLEST_SHARE = 1e-2
# A candidate whose mean squared score is this many times the Gaussian's is not worth a programme
# that its size would slow down.
_LARGEST_SCORE = 1e3


class Choice(NamedTuple):
    """Members of the stack, as rows of the predictions, with their shares."""

    picked: Int[Array, " R"]
    shares: Float[Array, " R"]
    gaussian_shares: Float[Array, " A"]
    outside_shares: Float[Array, " E"]
    gain: Float[Array, ""]


def choose_stack(
    found: HeldOut,
    num_errors: Float[Array, ""],
    effective_size: Float[Array, ""],
) -> Choice:
    """Solve the quadratic programme for all candidates, then for the largest few."""
    total, num_kernels = found.linear.shape[0], found.best.size
    num_outside = found.outside_gain.shape[0]
    rows = (found.scores * jnp.sqrt(found.weights)[None, :, None]).reshape(total, -1)
    usable = jnp.all(jnp.isfinite(rows), axis=1) & jnp.isfinite(found.linear + found.penalty)
    square = jnp.sum(rows * rows, axis=1)
    usable = usable & (square <= _LARGEST_SCORE * square[num_kernels])
    rows = jnp.where(usable[:, None], rows, 0)
    linear = jnp.where(usable, found.linear, 0)
    charged = jnp.where(usable, linear + num_errors * found.penalty, jnp.inf)
    quadratic = jnp.matmul(rows, rows.T, precision="highest")
    # An unusable candidate costs more than anything that is better than no estimate at all.
    charged = jnp.where(usable, charged, 1 + jnp.sum(jnp.abs(linear[num_kernels:])))

    def solve(index: Array) -> Array:
        shares = minimise_on_simplex(quadratic[index[:, None], index[None, :]], charged[index])
        shares = jnp.where(shares < _SMALLEST_SHARE, 0, shares)
        return shares / jnp.sum(shares)

    everything = solve(jnp.arange(total))
    _, picked = jax.lax.top_k(everything[:num_kernels], _MEMBERS)
    index = jnp.concatenate([picked, jnp.arange(num_kernels, total, dtype=picked.dtype)])
    shares = solve(index)
    # Too few to judge, or a fold without a Gaussian: the Gaussian of all samples.
    judged = jnp.isfinite(found.gaussian_loss) & (effective_size >= MIN_SAMPLES)
    alone = (index == num_kernels).astype(shares.dtype)
    shares = jnp.where(judged, shares, alone)
    chosen = jnp.zeros((total,), rows.dtype).at[index].set(shares)
    loss = 0.5 * chosen @ (quadratic @ chosen) + linear @ chosen
    kernels, gaussians, outside = jnp.split(shares, (_MEMBERS, shares.shape[0] - num_outside))
    return Choice(picked, kernels, gaussians, outside, loss - found.gaussian_loss)
