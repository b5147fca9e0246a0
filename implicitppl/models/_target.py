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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer import init_to_uniform
from numpyro.infer.util import (
    constrain_fn,
    get_transforms,
    initialize_model,
    log_density,
    potential_energy,
)

from implicitppl._train.programs import OFTEN, ONCE, Captured, Compiled
from implicitppl.models._call import Call, refuse_discrete
from implicitppl.models._sites import site_labels

KEPT = 8  # programs of so many models


class FlatDensity(eqx.Module):
    """z (D,) -> log p(x(z), data) + log |det dx/dz|, with the data among its leaves.

    A program that takes it as an argument (`implicitppl._train.programs.Compiled`) is compiled once
    for all data of equal shapes.
    """

    call: Call
    sites: tuple[str, ...] = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    captured: Captured = eqx.field(static=True)

    def __call__(self, z: Float[Array, " D"]) -> Float[Array, ""]:
        """Return the log density at one point."""
        call = self.call
        values = _unravel(self.sites, self.shapes)(z)
        return -potential_energy(_fixed(call), call.args, call.kwargs, values)

    def constrained(self, z: Float[Array, " D"]) -> dict[str, Array]:
        """Return the latent sites on the model's own scale."""
        call = self.call
        values = _unravel(self.sites, self.shapes)(z)
        x = constrain_fn(_fixed(call), call.args, call.kwargs, values)
        return {name: x[name] for name in self.sites}

    def unconstrained(self, x: Mapping[str, Any]) -> tuple[Array, Array]:
        """Return the point z of latent sites, and log |det dx/dz|."""
        call = self.call
        transforms = get_transforms(handlers.seed(_fixed(call), 0), call.args, call.kwargs, x)
        values = {k: transforms[k]._inverse(x[k]) for k in self.sites}
        volume = [transforms[k].log_abs_det_jacobian(values[k], x[k]) for k in self.sites]
        return _ravel(values, self.sites), sum((jnp.sum(v) for v in volume), start=jnp.zeros(()))


def _fixed(call: Call) -> Callable[..., Any]:
    """Return the model with its parameters; where it asks for a key, it gets the same one."""

    def same_key(site: Any) -> Any:
        asks = site["type"] == "prng_key" and site["value"] is None
        return random.key(0) if asks else None

    fixed = handlers.substitute(call.program, data=dict(call.params))
    return handlers.substitute(fixed, substitute_fn=same_key)


def _values_and_scores(density: Callable[[Array], Array], z: Array) -> tuple[Array, Array]:
    return jax.vmap(jax.value_and_grad(density))(z)


def _constrained(density: FlatDensity, z: Array) -> dict[str, Array]:
    return jax.vmap(density.constrained)(z)


def _unconstrained(density: FlatDensity, x: dict[str, Array]) -> tuple[Array, Array]:
    return jax.vmap(density.unconstrained)(x)


# Shared by all targets: the density, with its data, is an argument.
_evaluate = Compiled(_values_and_scores, OFTEN, keep=KEPT)
_constrain = Compiled(_constrained, ONCE, keep=KEPT)
_unconstrain = Compiled(_unconstrained, ONCE, keep=KEPT)


@dataclass(frozen=True)
class Target:
    """An unnormalised posterior in unconstrained coordinates.

    `log_density(z)` takes one point; `constrain` maps `(S, D)` to a dict of constrained draws of
    the latent sites; `unconstrain` maps such a dict back to `(S, D)` and `log |det dT/dz|` `(S,)`.
    """

    names: tuple[str, ...]
    log_density: FlatDensity

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the latent sites, in the order of the coordinates."""
        return self.log_density.sites

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the latent sites, unconstrained."""
        return self.log_density.shapes

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates `D`."""
        return len(self.names)

    def evaluate(
        self, samples: Float[Array, "S D"]
    ) -> tuple[Float[Array, " S"], Float[Array, "S D"]]:
        """Log density and its gradient at every row."""
        return _evaluate(self.log_density, jnp.asarray(samples))

    def scores(self, samples: Float[Array, "S D"]) -> Float[Array, "S D"]:
        """Gradient of the log density at every row."""
        return self.evaluate(samples)[1]

    def log_densities(self, samples: Float[Array, "S D"]) -> Float[Array, " S"]:
        """Log density of every row."""
        return self.evaluate(samples)[0]

    def constrain(self, samples: Float[Array, "S D"]) -> dict[str, Any]:
        """Latent sites on the model's own scale, by name."""
        return _constrain(self.log_density, jnp.asarray(samples))

    def unconstrain(self, draws: Mapping[str, Any]) -> tuple[Any, Any]:
        """Points `(S, D)` of constrained draws, and `log |det dT/dz|` `(S,)`."""
        held = {k: jnp.asarray(draws[k]) for k in self.sites}
        return _unconstrain(self.log_density, held)

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
        rng_key: key of the starting values of parameters that are not in `params`.

    Returns:
        `Target`.

    Raises:
        ValueError: a discrete latent site, or none at all.
    """
    call = Call(model, tuple(model_args), dict(model_kwargs or {}), dict(params or {}))
    key = random.key(0) if rng_key is None else rng_key
    refuse_discrete(call, "Sum them out of the model.")
    shapes, held = _latent_shapes(call, key)
    call = call._replace(params={**call.params, **held})
    names = tuple(n for k, shape in shapes.items() for n in site_labels(k, shape))
    density = FlatDensity(call, tuple(shapes), tuple(shapes.values()), Captured(model))
    return Target(names, density)


def _latent_shapes(call: Call, key: Array) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the unconstrained shape of each latent site, and values that the model keeps.

    Nothing is computed, unless the model has parameters or mutable sites without a value.
    """
    found: list[tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = []

    def look(key: Array) -> None:
        fixed = handlers.substitute(call.program, data=dict(call.params))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            info = initialize_model(
                key,
                fixed,
                init_strategy=init_to_uniform,
                model_args=call.args,
                model_kwargs=dict(call.kwargs),
                validate_grad=False,
            )
        z, trace = info.param_info.z, info.model_trace
        held = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] in ("param", "mutable") and name not in call.params
        }
        found.append(({k: jnp.shape(z[k]) for k in _latent_sites(trace, z)}, held))

    jax.eval_shape(look, key)
    if found[-1][1]:
        look(key)
    return found[-1]


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
