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
    """Members of the stack, as rows of the kernel predictions, and all shares.

    Attributes:
        picked: (R,) indices among the N q kernel predictions.
        shares: (R,) of the members.
        gaussian_shares: (A,) of the Gaussians.
        brought_shares: (E,) of what the user brought.
        gain: held-out loss of the stack minus that of the Gaussian.
    """

    picked: Int[Array, " R"]
    shares: Float[Array, " R"]
    gaussian_shares: Float[Array, " A"]
    brought_shares: Float[Array, " E"]
    gain: Float[Array, ""]


class _Programme(NamedTuple):
    """The loss w^T H w / 2 + g^T w of shares w, and g with the charge for errors."""

    quadratic: Float[Array, "S S"]
    linear: Float[Array, " S"]
    charged: Float[Array, " S"]

    def solve(self, index: Int[Array, " s"]) -> Float[Array, " s"]:
        """Return the best shares of some candidates; tiny ones are dropped."""
        quadratic = self.quadratic[index[:, None], index[None, :]]
        shares = minimise_on_simplex(quadratic, self.charged[index])
        shares = jnp.where(shares < _SMALLEST_SHARE, 0, shares)
        return shares / jnp.sum(shares)

    def loss(self, shares: Float[Array, " S"]) -> Float[Array, ""]:
        """Return the held-out loss of shares, without the charge."""
        return 0.5 * shares @ (self.quadratic @ shares) + self.linear @ shares


def choose_stack(
    evidence: HeldOut, num_errors: Float[Array, ""], effective_size: Float[Array, ""]
) -> Choice:
    """Solve the quadratic programme for all candidates, then for the largest few."""
    total, num_kernels = evidence.linear.shape[0], evidence.best.size
    programme = _programme(evidence, num_errors)
    everything = programme.solve(jnp.arange(total))
    _, picked = jax.lax.top_k(everything[:num_kernels], _MEMBERS)
    index = jnp.concatenate([picked, jnp.arange(num_kernels, total, dtype=picked.dtype)])
    shares = programme.solve(index)
    # Too few to judge, or a fold without a Gaussian: the Gaussian of all samples.
    judged = jnp.isfinite(evidence.gaussian_loss) & (effective_size >= MIN_SAMPLES)
    alone = (index == num_kernels).astype(shares.dtype)
    shares = jnp.where(judged, shares, alone)
    loss = programme.loss(jnp.zeros((total,), shares.dtype).at[index].set(shares))
    num_brought = evidence.brought_gain.shape[0]
    kernels, gaussians, brought = jnp.split(shares, (_MEMBERS, shares.shape[0] - num_brought))
    return Choice(picked, kernels, gaussians, brought, loss - evidence.gaussian_loss)


def _programme(evidence: HeldOut, num_errors: Float[Array, ""]) -> _Programme:
    """Return the programme; candidates that cannot be used are charged out of it."""
    total, num_kernels = evidence.linear.shape[0], evidence.best.size
    rows = (evidence.scores * jnp.sqrt(evidence.weights)[None, :, None]).reshape(total, -1)
    usable = jnp.all(jnp.isfinite(rows), axis=1) & jnp.isfinite(evidence.linear + evidence.penalty)
    square = jnp.sum(rows * rows, axis=1)
    usable = usable & (square <= _LARGEST_SCORE * square[num_kernels])
    rows = jnp.where(usable[:, None], rows, 0)
    linear = jnp.where(usable, evidence.linear, 0)
    # An unusable candidate costs more than anything that is better than no estimate at all.
    prohibitive = 1 + jnp.sum(jnp.abs(linear[num_kernels:]))
    charged = jnp.where(usable, linear + num_errors * evidence.penalty, prohibitive)
    return _Programme(jnp.matmul(rows, rows.T, precision="highest"), linear, charged)
