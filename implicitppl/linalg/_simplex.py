"""The small quadratic programme of stacking: min_w w^T H w / 2 + g^T w over the simplex.

w >= 0, sum w = 1. Accelerated projected gradient (Beck, Teboulle, SIAM J. Imaging Sci. 2 (2009)),
with the exact projection of Duchi et al., ICML 2008, figure 1; a fixed number of steps, so that it
runs under `jit` and `vmap` and gives the same answer every time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_STEPS = 1000


def minimise_on_simplex(
    quadratic: Float[Array, "n n"], linear: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Return the minimiser of w^T H w / 2 + g^T w over the simplex; H positive semi-definite."""
    size = linear.shape[0]
    # The row sums bound the largest eigenvalue, and cost no decomposition.
    bound = jnp.max(jnp.sum(jnp.abs(quadratic), axis=1))
    step = 1 / jnp.where(bound > 0, bound, 1)
    start = jnp.full((size,), 1 / size, linear.dtype)

    def advance(
        state: tuple[Array, Array, Array], _: None
    ) -> tuple[tuple[Array, Array, Array], None]:
        w, ahead, t = state
        gradient = jnp.matmul(quadratic, ahead, precision="highest") + linear
        following = project_on_simplex(ahead - step * gradient)
        t_next = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        # Restarting the momentum where it points uphill keeps the descent monotone enough.
        uphill = jnp.sum(gradient * (following - w)) > 0
        momentum = jnp.where(uphill, 0, (t - 1) / t_next)
        t_next = jnp.where(uphill, 1, t_next)
        return (following, following + momentum * (following - w), t_next), None

    one = jnp.ones((), linear.dtype)
    (w, _, _), _ = jax.lax.scan(advance, (start, start, one), None, length=_STEPS)
    return w


def project_on_simplex(v: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the nearest point with non-negative entries that sum to one."""
    ordered = jnp.sort(v)[::-1]
    excess = jnp.cumsum(ordered) - 1
    counts = jnp.arange(1, v.shape[0] + 1, dtype=v.dtype)
    number = jnp.sum(ordered * counts > excess)
    return jnp.maximum(v - excess[number - 1] / number.astype(v.dtype), 0)
