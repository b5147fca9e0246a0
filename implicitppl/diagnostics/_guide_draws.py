"""Unconstrained draws of any guide, with its log density or bounds of it where it has them.

With `x = T(z)` the bijections of the model's supports, log q(z) = log q(x) + log |det dT/dz|.
Coordinates follow the order of the sites in the model.

Shapes: `z` `(D,)`, draws `(S, D)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer.autoguide import AutoContinuous

from implicitppl.models._call import Call
from implicitppl.models._sites import has_density, is_latent, kind_of
from implicitppl.models._target import Target


@dataclass(frozen=True)
class GuideDraws:
    """Unconstrained guide draws `(S, D)` with what is known of their log density.

    `log_density` `(S,)` where it is exact, else `lower` and `upper` where the guide has bounds,
    else all None. `dropped` counts draws that left the support in floating point.
    """

    samples: Any
    log_density: Any = None
    lower: Any = None
    upper: Any = None
    dropped: int = 0

    def where(self, keep: np.ndarray) -> "GuideDraws":
        """The draws where `keep` `(S,)` holds; the others are counted as dropped."""
        if keep.all():
            return self
        fields = (self.samples, self.log_density, self.lower, self.upper)
        z, log_q, lower, upper = (a if a is None else a[keep] for a in fields)
        return GuideDraws(z, log_q, lower, upper, self.dropped + int((~keep).sum()))


def params_of(result: Any) -> dict[str, Any]:
    """The parameter dict of a fit result (`.params`), or the dict itself."""
    params = getattr(result, "params", result)
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise ValueError(
            f"`params` must be a dict or a fit result with `.params`; got {type(result).__name__}."
        )
    return dict(params)


def guide_draws(
    rng_key: Array,
    guide: Any,
    params: Mapping[str, Any],
    target: Target,
    num_samples: int,
    *,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_inner: int = 100,
) -> GuideDraws:
    """Unconstrained draws of any guide, with its exact log density or bounds where it has them.

    Args:
        rng_key: random key.
        guide: AutoGuide or guide function.
        params: its parameters.
        target: the posterior, which fixes the coordinates.
        num_samples: number of draws.
        model_args: arguments of the guide.
        model_kwargs: keyword arguments of the guide.
        num_inner: inner samples of a semi-implicit guide's density bounds.

    Returns:
        `GuideDraws`, rows that are not finite removed.

    Raises:
        ValueError: a latent site of the model that the guide does not draw.
    """
    lower = upper = log_q = None
    if getattr(guide, "has_density_bounds", False):
        z, lower, upper = guide.log_density_bounds(rng_key, params, num_samples, num_inner)
        z = _reordered(guide, target, z)
    elif hasattr(guide, "sample_unconstrained"):
        z = _reordered(guide, target, guide.sample_unconstrained(rng_key, params, num_samples))
    else:
        posterior = _flat_posterior(guide, params)
        if posterior is None:
            call = Call(guide, model_args, model_kwargs or {}, params)
            z, log_q = _trace_draws(rng_key, call, target, num_samples)
        else:
            z, log_q = _sample_with_density(rng_key, posterior, num_samples)
            z = _reordered(guide, target, z)
    keep = np.isfinite(np.asarray(z)).all(1)
    return GuideDraws(z, log_q, lower, upper).where(keep)


def _reordered(guide: Any, target: Target, z: Any) -> Any:
    """Rows in the guide's own order of sites, brought to the target's."""
    unpack = getattr(guide, "_unpack_latent", None)
    if unpack is None:
        return z
    order = np.asarray(target.ravel(unpack(np.arange(target.dim, dtype=np.float32)))).astype(int)
    return z if np.array_equal(order, np.arange(target.dim)) else z[:, order]


def _flat_posterior(guide: Any, params: Any) -> Any:
    if not isinstance(guide, AutoContinuous):
        return None
    try:
        return guide.get_posterior(dict(params))
    except NotImplementedError:  # AutoDAIS: draws only
        return None


def _sample_with_density(rng_key: Array, posterior: Any, num_samples: int) -> Any:
    # flows keep the intermediates of sampling: inverting them is slow (IAF) or impossible (BNAF)
    z, intermediates = posterior.sample_with_intermediates(rng_key, (num_samples,))
    log_q = posterior.log_prob(z, intermediates) if intermediates else posterior.log_prob(z)
    return z, log_q.reshape(num_samples, -1).sum(1)


def _trace_draws(
    rng_key: Array,
    guide: Call,
    target: Target,
    num_samples: int,
) -> Any:
    keys = random.split(rng_key, num_samples)

    def draw(key: Array) -> Any:
        with handlers.mask(mask=False):
            trace = guide.trace(key)
        missing = [k for k in target.sites if k not in trace]
        if missing:
            raise ValueError(
                f"`guide` must draw every latent site of the model; {missing} missing."
            )
        return {k: trace[k]["value"] for k in target.sites}

    def log_density(key: Array) -> Any:
        return _trace_density(guide.trace(key), target)

    z, volume = target.unconstrain(jax.jit(jax.vmap(draw))(keys))
    try:
        log_q = jax.jit(jax.vmap(log_density))(keys)
    except (NotImplementedError, TypeError, ValueError, RuntimeError):
        return z, None  # an implicit site has no density to add up
    return z, log_q + volume


def _trace_density(trace: Any, target: Target) -> Any:
    """Sum of the guide's log densities, if its random numbers are as many as the latents'."""
    total, dims = jnp.zeros(()), 0
    size = {k: int(np.prod(s)) for k, s in zip(target.sites, target.shapes, strict=True)}
    for name, site in trace.items():
        if not is_latent(site):
            continue
        if not has_density(site["fn"]):
            raise ValueError(f"site {name!r} has no density")
        if kind_of(site) != "delta":
            dims += size.get(name, int(np.size(site["value"])))
        arguments = (site["intermediates"],) if site.get("intermediates") else ()
        total = total + jnp.sum(site["fn"].log_prob(site["value"], *arguments))
    if dims != target.dim:
        raise ValueError(f"guide has {dims} random numbers for {target.dim} latent coordinates")
    return total
