"""A purely implicit sampler: noise wider than the draw, pushed through a network.

    z = loc + scale o (A e + V tanh(W e + w)),   e ~ N(0, I_E), E >= D.

Nothing but draws is known of it: scores come from samples.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl.distributions._residual import Vector, as_vector, zero_last_layer


class NoiseGenerator(eqx.Module):
    """A purely implicit sampler: z = loc + scale o (A e + V tanh(W e + w)), e ~ N(0, I).

    The noise may be wider than the draw, so there is no density and no conditional layer: scores
    come from samples only.

    Args:
        size: D, of the draw.
        key: for the starting weights.
        noise_size: of e. Default 2 D.
        width: hidden tanh units.
        loc: starting mean, (D,).
        scale: starting standard deviation.

    Raises:
        ValueError: if `noise_size` is below `size` (the draws would fill a subspace only).

    Example:
        >>> import jax
        >>> from implicitppl.distributions import NoiseGenerator
        >>> NoiseGenerator(3, key=jax.random.key(0))(jax.random.key(1)).shape
        (3,)
    """

    loc: Vector
    log_scale: Vector
    linear: Float[Array, "D E"]
    network: eqx.nn.MLP
    size: int = eqx.field(static=True)
    noise_size: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        key: PRNGKeyArray,
        noise_size: int | None = None,
        width: int = 40,
        loc: Vector | None = None,
        scale: float = 1.0,
    ) -> None:
        noise_size = 2 * size if noise_size is None else noise_size
        if noise_size < size:
            raise ValueError(f"`noise_size` must be at least size = {size}; got {noise_size}.")
        self.size, self.noise_size = size, noise_size
        self.loc = as_vector(size, loc)
        self.log_scale = jnp.full_like(self.loc, math.log(scale))
        self.linear = jnp.eye(size, noise_size, dtype=self.loc.dtype)
        network = eqx.nn.MLP(
            noise_size, size, width, 1, activation=jnp.tanh, dtype=self.loc.dtype, key=key
        )
        self.network = zero_last_layer(network)

    def __call__(self, key: PRNGKeyArray) -> Vector:
        """Return one draw."""
        noise = jax.random.normal(key, (self.noise_size,), self.loc.dtype)
        centred = self.linear @ noise + self.network(noise)
        return self.loc + jnp.exp(self.log_scale) * centred
