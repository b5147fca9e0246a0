"""The log density of a model on flat unconstrained space, and places to start from.

A prior median may lie in a minor mode, or where nothing moves. Some hundred draws of the prior cost
little; the likeliest of them are further starts for the Gaussian (`gaussian.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.util import log_density

from implicitppl.infer._sites import latent_sites

NUM_PRIOR_DRAWS = 200

Sites = Mapping[str, dict[str, Any]]
Unpack = Callable[[Array], dict[str, Array]]
LogDensity = Callable[[Array, PRNGKeyArray], Array]


def flat_log_density(
    model: Callable[..., Any],
    params: Mapping[str, Any],
    sites: Sites,
    unpack: Unpack,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> LogDensity:
    """Returns (z, key) -> log p(x(z), y) + log|dx/dz|; the key draws the model's subsamples.

    Args:
        model: NumPyro model.
        params: values of its parameters.
        sites: latent sites of a trace, which fix the supports.
        unpack: from the flat vector to unconstrained values by name.
        args: of the model.
        kwargs: of the model.
    """

    def density(z: Array, key: PRNGKeyArray) -> Array:
        values, volume = {}, jnp.zeros(())
        for name, u in unpack(z).items():
            fn = sites[name]["fn"]
            transform = biject_to(fn.support)
            x = transform(u)
            jacobian = transform.log_abs_det_jacobian(u, x)
            rank = jnp.ndim(jacobian) - jnp.ndim(x) + fn.event_dim
            volume = volume + jnp.sum(sum_rightmost(jacobian, rank))
            values[name] = x
        with handlers.block():
            seeded = handlers.seed(model, key)
            log_p, _ = log_density(seeded, args, kwargs, {**params, **values})
        return log_p + volume

    return density


def prior_starts(
    key: PRNGKeyArray,
    model: Callable[..., Any],
    params: Mapping[str, Any],
    density: LogDensity,
    ravel: Callable[[dict[str, Array]], Array],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_starts: int,
) -> Array:
    """Returns the likeliest of a few hundred prior draws, unconstrained, (num_starts, D).

    Raises:
        NotImplementedError: if some prior cannot be drawn from (a flat one, or one that has a
            density alone).
    """
    draw_key, density_key = jax.random.split(key)

    def draw(key: PRNGKeyArray) -> Array:
        seeded = handlers.seed(handlers.substitute(model, data=dict(params)), key)
        with handlers.block():
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
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
