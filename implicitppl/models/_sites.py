"""What a guide's sample site is to the loss: explicit, semi-implicit or implicit.

An implicit site is unwrapped: `expand`, `to_event`, `mask` and transforms are peeled off until the
`Implicit` distribution inside is reached, and the drawn value is pulled back through the
transforms, so that log q(x) = log q(u) - log |dx/du| with u the sampler's own output.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.initialization import init_to_uniform
from numpyro.primitives import Messenger

from implicitppl.distributions import Implicit, SemiImplicit

Site = dict[str, Any]
_WRAPPERS = (
    dist.ExpandedDistribution,
    dist.Independent,
    dist.MaskedDistribution,
    dist.TransformedDistribution,
)


class Pulled(NamedTuple):
    """An implicit draw before its transforms, seen as a batch of vectors.

    `u` is (*batch, D), `log_det` and `weight` are (*batch,): log |dx/du| summed over each event,
    and the plate scale times the mask.
    """

    u: Array
    log_det: Array
    weight: Array


def innermost(fn: dist.Distribution) -> dist.Distribution:
    """Returns the distribution inside expand, to_event, mask and transforms."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def kind_of(site: Site) -> str:
    """Returns "implicit", "semi-implicit", "delta" or "explicit"."""
    base = innermost(site["fn"])
    if isinstance(base, Implicit):
        return "implicit"
    if isinstance(base, SemiImplicit):
        return "semi-implicit"
    return "delta" if isinstance(base, dist.Delta) else "explicit"


def pull_back(site: Site) -> Pulled:
    """Returns the value of a site before its transforms, with Jacobian and weight.

    An implicit site is pulled back to the output of its sampler; another site, which is here as
    part of a joint score, to unconstrained space.
    """
    fn, x = site["fn"], site["value"]
    batch = jnp.shape(x)[: jnp.ndim(x) - fn.event_dim]
    log_det: Array = jnp.zeros(batch)
    transforms, mask = _unwrap(fn)
    for transform in reversed(transforms):
        y, x = x, transform.inv(x)
        jacobian = transform.log_abs_det_jacobian(x, y)
        log_det = log_det + sum_rightmost(jacobian, jnp.ndim(jacobian) - len(batch))
    weight = jnp.where(mask, _scale(site), 0.0)
    return Pulled(x.reshape(*batch, -1), log_det, jnp.broadcast_to(weight, batch))


def _unwrap(fn: dist.Distribution) -> tuple[list[Any], Any]:
    """Returns the transforms from the sampler's output outwards, and the mask."""
    if not isinstance(innermost(fn), Implicit):
        return [biject_to(fn.support)], True
    outer: list[Any] = []
    mask: Any = True
    while not isinstance(fn, Implicit):
        if isinstance(fn, dist.MaskedDistribution):
            mask = jnp.logical_and(mask, fn._mask)
        elif isinstance(fn, dist.TransformedDistribution):
            outer = [*fn.transforms, *outer]
        fn = fn.base_dist
    return [biject_to(fn.support), *outer], mask


def site_log_prob(site: Site, *, path_gradient: bool = False) -> Array:
    """Returns the scaled log density of a site that has one, summed over its elements."""
    fn = site["fn"]
    if path_gradient:
        fn = with_path_gradient(fn)
    if site["intermediates"]:
        value = fn.log_prob(site["value"], site["intermediates"])
    else:
        value = fn.log_prob(site["value"])
    return jnp.sum(value * _scale(site))


def with_path_gradient(fn: dist.Distribution) -> dist.Distribution:
    """Returns `fn` with the semi-implicit distribution inside set to the path gradient."""

    def is_leaf(node: Any) -> bool:
        return isinstance(node, SemiImplicit)

    return jax.tree.map(
        lambda node: node.with_path_gradient() if is_leaf(node) else node, fn, is_leaf=is_leaf
    )


def latent_sites(trace: dict[str, Site]) -> dict[str, Site]:
    """Returns the unobserved sample sites of a trace."""
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def _scale(site: Site) -> Any:
    return 1.0 if site["scale"] is None else site["scale"]


def look_at(model: Callable[..., Any], args: Any, kwargs: Any, read: Callable[[Any], None]) -> None:
    """Calls `read` with a trace of the model, made abstractly: nothing is computed.

    Latent sites hold starting values instead of draws, because flat priors cannot be drawn from.
    """

    def trace() -> None:
        with handlers.block():
            seeded = handlers.seed(model, jax.random.key(0))
            started = handlers.substitute(seeded, substitute_fn=init_to_uniform())
            read(handlers.trace(started).get_trace(*args, **kwargs))

    jax.eval_shape(trace)


def site_labels(site: str, shape: tuple[int, ...]) -> list[str]:
    """`["mu"]` for a scalar site, `["x[0]", "x[1]"]` for a vector."""
    if not shape:
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _base(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def is_surrogate(fn: Any) -> bool:
    """Whether a distribution, under any wrapper, has a surrogate or no log density."""
    while fn is not None:
        if getattr(fn, "is_surrogate", False):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def is_likelihood(site: Mapping[str, Any]) -> bool:
    """Whether a trace site is observed data with a density of its own."""
    if site["type"] != "sample" or not site["is_observed"]:
        return False
    fn = site["fn"]
    while fn is not None:
        if isinstance(fn, dist.Unit):
            return False
        fn = getattr(fn, "base_dist", None)
    return not is_surrogate(site["fn"])


def is_black_box(site: Mapping[str, Any]) -> bool:
    """Whether the value of a site comes from a host function (`implicitppl.models.black_box`)."""
    return "black_box" in site.get("infer", {})


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a trace site is an unobserved draw."""
    return site["type"] == "sample" and not site["is_observed"]


class forget_data(Messenger):  # noqa: N801, a NumPyro handler
    """Handler that turns likelihood sites into sites to sample, and leaves factors alone."""

    def process_message(self, msg: Any) -> None:
        """Drop the observed value; the seed handler outside supplies the key."""
        if is_likelihood(msg):
            msg["is_observed"] = False
            msg["value"] = None


def model_trace(
    model: Any, draw: Any, args: tuple, kwargs: dict[str, Any], key: Array | None = None
) -> Any:
    """Trace of the model at one draw."""
    seeded = handlers.seed(
        handlers.substitute(model, data=draw), random.key(0) if key is None else key
    )
    return handlers.trace(seeded).get_trace(*args, **kwargs)


Params = dict[str, Any]


def merge_mutable(values: Array) -> Array:
    """Reduces a mutable value over the particles, keeping its dtype."""
    if jnp.issubdtype(values.dtype, jnp.inexact):
        return jnp.mean(values, axis=0)
    return values[0]


def mutable_sites(trace: Mapping[str, Any]) -> Params:
    return {name: site["value"] for name, site in trace.items() if site["type"] == "mutable"}
