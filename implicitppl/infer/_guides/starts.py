"""The log density of a model on flat unconstrained space, and places to start from.

A prior median may lie in a minor mode, or where nothing moves. Some hundred draws of the prior cost
little; the likeliest of them are further starts for the Gaussian (`gaussian.py`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to

from implicitppl.models._call import Call
from implicitppl.models._sites import latent_sites
from implicitppl.models._target import LogDensity

NUM_PRIOR_DRAWS = 200


def prior_starts(
    key: PRNGKeyArray,
    call: Call,
    density: LogDensity,
    ravel: Callable[[dict[str, Array]], Array],
    num_starts: int,
) -> Array:
    """Return the likeliest of a few hundred prior draws, unconstrained, (num_starts, D).

    Raises:
        NotImplementedError: if some prior cannot be drawn from (a flat one, or one that has a
            density alone).
    """
    draw_key, density_key = jax.random.split(key)

    def draw(key: PRNGKeyArray) -> Array:
        with handlers.block():
            trace = call.trace(key)
        return ravel(
            {
                name: biject_to(site["fn"].support).inv(site["value"])
                for name, site in latent_sites(trace).items()
            }
        )

    draws = jax.vmap(draw)(jax.random.split(draw_key, NUM_PRIOR_DRAWS))
    values = jax.lax.map(lambda z: density(z, density_key), draws)
    usable = jnp.isfinite(values) & jnp.all(jnp.isfinite(draws), axis=1)
    order = jnp.argsort(jnp.where(usable, -values, jnp.inf))
    return draws[order[:num_starts]]
