"""What is in a trace: latent sites, data, black boxes, and sites with and without a density.

A site of a guide is explicit, semi-implicit or implicit to its loss. An implicit one is unwrapped:
`expand`, `to_event`, `mask` and transforms are peeled off until the `Implicit` distribution inside
is reached, and the drawn value is pulled back through the transforms, so that
log q(x) = log q(u) - log |dx/du| with u the sampler's own output.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.primitives import Messenger

from implicitppl.distributions import Implicit, SemiImplicit

Site = dict[str, Any]
Params = dict[str, Any]
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


def layers(fn: dist.Distribution | None) -> Iterator[dist.Distribution]:
    """Yield a distribution and those that it wraps, the outermost first."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)


def innermost(fn: dist.Distribution) -> dist.Distribution:
    """Return the distribution inside expand, to_event, mask and transforms."""
    return next(layer for layer in layers(fn) if not isinstance(layer, _WRAPPERS))


def kind_of(site: Site) -> str:
    """Return "implicit", "semi-implicit", "delta" or "explicit"."""
    base = innermost(site["fn"])
    if isinstance(base, Implicit):
        return "implicit"
    if isinstance(base, SemiImplicit):
        return "semi-implicit"
    return "delta" if isinstance(base, dist.Delta) else "explicit"


def pull_back(site: Site) -> Pulled:
    """Return the value of a site before its transforms, with Jacobian and weight.

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
    """Return the transforms from the sampler's output outwards, and the mask."""
    if not isinstance(innermost(fn), Implicit):
        return [biject_to(fn.support)], True
    outer: list[Any] = []
    mask: Any = True
    for layer in layers(fn):
        if isinstance(layer, dist.MaskedDistribution):
            mask = jnp.logical_and(mask, layer._mask)
        elif isinstance(layer, dist.TransformedDistribution):
            outer = [*layer.transforms, *outer]
    return [biject_to(innermost(fn).support), *outer], mask


def site_log_prob(site: Site, *, path_gradient: bool = False) -> Array:
    """Return the scaled log density of a site that has one, summed over its elements."""
    fn = site["fn"]
    if path_gradient:
        fn = with_path_gradient(fn)
    if site["intermediates"]:
        value = fn.log_prob(site["value"], site["intermediates"])
    else:
        value = fn.log_prob(site["value"])
    return jnp.sum(value * _scale(site))


def with_path_gradient(fn: dist.Distribution) -> dist.Distribution:
    """Return `fn` with the semi-implicit distribution inside set to the path gradient."""

    def is_leaf(node: Any) -> bool:
        return isinstance(node, SemiImplicit)

    return jax.tree.map(
        lambda node: node.with_path_gradient() if is_leaf(node) else node, fn, is_leaf=is_leaf
    )


def latent_sites(trace: Mapping[str, Site]) -> dict[str, Site]:
    """Return the unobserved sample sites of a trace."""
    return {name: site for name, site in trace.items() if is_latent(site)}


def discrete_latents(trace: Mapping[str, Site]) -> list[str]:
    """Return the names of unobserved sites whose values are discrete: they have no gradient."""
    return [n for n, site in latent_sites(trace).items() if site["fn"].support.is_discrete]


def refuse_discrete_sites(trace: Mapping[str, Site], remedy: str) -> None:
    """Raise `ValueError` for a latent site without a gradient, and name the remedy."""
    for name in discrete_latents(trace):
        raise ValueError(
            f"Site '{name}' is latent and discrete: gradients do not pass through its draws. "
            f"{remedy}"
        )


def _scale(site: Site) -> Any:
    return 1.0 if site["scale"] is None else site["scale"]


def site_labels(site: str, shape: tuple[int, ...]) -> list[str]:
    """`["mu"]` for a scalar site, `["x[0]", "x[1]"]` for a vector."""
    if not shape:
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def has_density(fn: dist.Distribution) -> bool:
    """Tell whether a distribution has a log density, under any wrapper."""
    return all(getattr(layer, "has_density", True) for layer in layers(fn))


def is_likelihood(site: Mapping[str, Any]) -> bool:
    """Tell whether a trace site is observed data with a density of its own.

    `numpyro.factor` (an observed `Unit` distribution) and distributions without a density are terms
    of a loss, not data: they would be exported as zeros, or as log likelihoods that no observation
    belongs to.
    """
    if site["type"] != "sample" or not site["is_observed"]:
        return False
    is_factor = any(isinstance(layer, dist.Unit) for layer in layers(site["fn"]))
    return not is_factor and has_density(site["fn"])


def is_black_box(site: Mapping[str, Any]) -> bool:
    """Tell whether the value of a site comes from a host function, see `black_box`."""
    return "black_box" in site.get("infer", {})


def is_latent(site: Mapping[str, Any]) -> bool:
    """Tell whether a trace site is an unobserved draw."""
    return site["type"] == "sample" and not site["is_observed"]


class forget_data(Messenger):  # noqa: N801, a NumPyro handler
    """Handler that turns likelihood sites into sites to sample, and leaves factors alone."""

    def process_message(self, msg: Any) -> None:
        """Drop the observed value; the seed handler outside supplies the key."""
        if is_likelihood(msg):
            msg["is_observed"] = False
            msg["value"] = None


def merge_mutable(values: Array) -> Array:
    """Reduce a mutable value over the particles, keeping its dtype."""
    if jnp.issubdtype(values.dtype, jnp.inexact):
        return jnp.mean(values, axis=0)
    return values[0]


def mutable_sites(trace: Mapping[str, Any]) -> Params:
    """Return the values of mutable sites."""
    return {name: site["value"] for name, site in trace.items() if site["type"] == "mutable"}
