"""Which random sites of a guide the distribution of another site depends on.

If the sampler of an implicit site looks at another random site w, the draws z ~ q(z | w) that the
particles hold come from different conditional distributions. The score of their marginal is not
the score of q(z | w): for z = w + .1 n the entropy gradient comes out near 0 where 1 is right.
log q(w) + log q(z | w) = log q(w, z), so the score of the joint vector is what is needed. This file
finds w by abstract evaluation (`numpyro.ops.provenance`); samplers that close over w are seen too,
because the dependence of a draw is tracked and not that of declared parameters only.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray
from numpyro.ops.provenance import eval_provenance

from implicitppl.models._call import Call
from implicitppl.models._sites import kind_of, latent_sites

_PREFIX = "site "


def parents(
    guide: Call, latents: Mapping[str, Array], key: PRNGKeyArray
) -> dict[str, frozenset[str]]:
    """Return for each latent site the random sites that its distribution depends on, directly."""

    def draws(**values: Array) -> dict[str, Any]:
        trace = guide.trace(key, {name.removeprefix(_PREFIX): x for name, x in values.items()})
        return {
            name: (eqx.filter(jax.tree.leaves(site["fn"]), eqx.is_array), site["fn"].sample(key))
            for name, site in latent_sites(trace).items()
        }

    found = eval_provenance(draws, **{_PREFIX + name: x for name, x in latents.items()})
    return {
        name: frozenset(
            parent.removeprefix(_PREFIX)
            for leaf in jax.tree.leaves(deps, is_leaf=_is_set)
            for parent in leaf
        )
        - {name}
        for name, deps in found.items()
    }


def joint_groups(
    sites: Mapping[str, dict[str, Any]],
    parents_of: Mapping[str, frozenset[str]],
    scored: list[str],
) -> list[tuple[str, ...]]:
    """Returns groups of sites that need one joint score, so that every scored site is in one.

    A group holds scored sites and every random ancestor of theirs, in the order of the guide;
    groups that share a site are merged. Delta sites are functions of their parents and are left
    out.

    Raises:
        ValueError: if an implicit site in a plate, or an ancestor in a plate, depends on other
            random sites: the joint vector would hold the whole plate.
    """
    groups: list[set[str]] = []
    for name in scored:
        group = {a for a in ancestors(name, parents_of) if kind_of(sites[a]) != "delta"} | {name}
        if len(group) > 1:
            _refuse_batches(name, group, sites)
        apart = [g for g in groups if not g & group]
        merged = set().union(group, *(g for g in groups if g & group))
        groups = [*apart, merged]
    return [tuple(name for name in sites if name in group) for group in groups]


def ancestors(name: str, parents_of: Mapping[str, frozenset[str]]) -> set[str]:
    """Returns the sites that `name` depends on, directly or through others."""
    found: set[str] = set()
    queue = list(parents_of.get(name, ()))
    while queue:
        site = queue.pop()
        if site not in found:
            found.add(site)
            queue.extend(parents_of.get(site, ()))
    return found - {name}


def _refuse_batches(name: str, group: set[str], sites: Mapping[str, dict[str, Any]]) -> None:
    batched = [a for a in sorted(group) if sites[a]["fn"].batch_shape]
    if batched:
        others = sorted(group - {name})
        raise ValueError(
            f"Implicit guide site '{name}' depends on the random site(s) {others}, and {batched} "
            "have batch dimensions (a plate). The score of the joint vector over a plate is not "
            "separable. Draw them together in one `Implicit` site, make the sites events with "
            "`to_event`, or let the sampler depend on data and parameters only."
        )


def _is_set(node: Any) -> bool:
    return isinstance(node, frozenset)
