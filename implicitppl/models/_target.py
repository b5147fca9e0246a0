"""A NumPyro model as one function of one unconstrained vector `z`.

With `x = T(z)` the bijections of the model's supports,

    log p(z) = log p(x, data) + log |det dT/dz|,

so scores, Stein statistics and NUTS live in `R^D`, where boundary terms vanish. Coordinates follow
the order of the sites in the model.

Shapes: `z` `(D,)`, draws `(S, D)`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer import init_to_uniform
from numpyro.infer.util import get_transforms, initialize_model, log_density

from implicitppl.models._call import Call, refuse_discrete
from implicitppl.models._sites import site_labels


@dataclass(frozen=True)
class Target:
    """An unnormalised posterior in unconstrained coordinates.

    `log_density(z)` takes one point; `constrain` maps `(S, D)` to a dict of constrained draws of
    the latent sites; `unconstrain` maps such a dict back to `(S, D)` and `log |det dT/dz|` `(S,)`.
    """

    sites: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    log_density: Callable[[Any], Any]
    constrain: Callable[[Any], dict[str, Any]]
    unconstrain: Callable[[Mapping[str, Any]], tuple[Any, Any]]

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates `D`."""
        return len(self.names)

    def scores(self, samples: Float[Array, "S D"]) -> Float[Array, "S D"]:
        """Gradient of the log density at every row."""
        return jax.jit(jax.vmap(jax.grad(self.log_density)))(samples)

    def log_densities(self, samples: Float[Array, "S D"]) -> Float[Array, " S"]:
        """Log density of every row."""
        return jax.jit(jax.vmap(self.log_density))(samples)

    def ravel(self, values: Mapping[str, Any]) -> Float[Array, " D"]:
        """One flat vector from a dict of unconstrained values."""
        return jnp.concatenate([jnp.ravel(values[k]) for k in self.sites])


def posterior_target(
    model: Callable,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    rng_key: Array | None = None,
) -> Target:
    """The posterior of a NumPyro model as a function of one unconstrained vector.

    Args:
        model: NumPyro model with continuous latent sites.
        model_args: its arguments, data included.
        model_kwargs: its keyword arguments.
        params: values of `numpyro.param` sites of the model, if it has any.
        rng_key: key of the search for a valid starting point.

    Returns:
        `Target`.

    Raises:
        ValueError: a discrete latent site, or none at all.
    """
    kwargs = dict(model_kwargs or {})
    fixed = handlers.substitute(model, data=dict(params)) if params else model
    refuse_discrete(Call(fixed, model_args, kwargs), "Sum them out of the model.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        info = initialize_model(
            random.key(0) if rng_key is None else rng_key,
            fixed,
            init_strategy=init_to_uniform,
            model_args=model_args,
            model_kwargs=kwargs,
            validate_grad=False,
        )
    sites = _latent_sites(info.model_trace, info.param_info.z)
    prototype = {k: info.param_info.z[k] for k in sites}
    shapes = tuple(jnp.shape(v) for v in prototype.values())
    unravel = _unravel(sites, shapes)

    def constrain(samples: Any) -> Any:
        def one(z: Any) -> Any:
            values = info.postprocess_fn(unravel(z))
            return {k: values[k] for k in sites}

        return jax.vmap(one)(jnp.asarray(samples))

    def unconstrain(draws: Any) -> Any:
        def one(x: Any) -> Any:
            transforms = get_transforms(handlers.seed(fixed, 0), model_args, kwargs, x)
            values = {k: transforms[k]._inverse(x[k]) for k in sites}
            volume = [transforms[k].log_abs_det_jacobian(values[k], x[k]) for k in sites]
            return _ravel(values, sites), sum(jnp.sum(v) for v in volume)

        return jax.vmap(one)({k: jnp.asarray(draws[k]) for k in sites})

    names = tuple(n for k, shape in zip(sites, shapes, strict=True) for n in site_labels(k, shape))
    return Target(
        sites, shapes, names, lambda z: -info.potential_fn(unravel(z)), constrain, unconstrain
    )


def _latent_sites(trace: Any, z: Any) -> tuple[str, ...]:
    sites = tuple(
        k for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"] and k in z
    )
    if not sites:
        raise ValueError("`model` must have a latent site; got none.")
    return sites


def _ravel(values: Any, sites: tuple[str, ...]) -> Array:
    return jnp.concatenate([jnp.ravel(values[k]) for k in sites])


def _unravel(sites: tuple[str, ...], shapes: Any) -> Any:
    ends = np.cumsum([int(np.prod(s)) for s in shapes])

    def unravel(z: Any) -> Any:
        parts = jnp.split(z, ends[:-1])
        return {k: p.reshape(s) for k, p, s in zip(sites, parts, shapes, strict=True)}

    return unravel


Sites = Mapping[str, dict[str, Any]]
Unpack = Callable[[Array], dict[str, Array]]
LogDensity = Callable[[Array, PRNGKeyArray], Array]


def flat_log_density(call: Call, sites: Sites, unpack: Unpack) -> LogDensity:
    """Return (z, key) -> log p(x(z), y) + log|dx/dz|; the key draws the model's subsamples.

    Args:
        call: of the model.
        sites: latent sites of a trace, which fix the supports.
        unpack: from the flat vector to unconstrained values by name.
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
            seeded = handlers.seed(call.program, key)
            log_p, _ = log_density(seeded, call.args, call.kwargs, {**call.params, **values})
        return log_p + volume

    return density
