"""One step of the functional ELBO: model and guide run once in every particle.

What a particle returns is split. Log densities and function values differ between particles;
processes and inputs must not, or there would be no two distributions to compare. They are returned
unmapped (`out_axes=None`), which JAX refuses for what depends on a particle's key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.util import check_model_guide_match

from implicitppl.divergences._divergence import Pair, flat, make_pair
from implicitppl.divergences._measurement import measurement_points
from implicitppl.infer._functional.sites import (
    batch_ratio,
    check_functions,
    check_scales,
    function_draws,
    function_values,
    is_function,
    is_one_batch,
    joined,
    without_functions,
)
from implicitppl.models._call import Call
from implicitppl.models._plates import shared_plates
from implicitppl.models._sites import (
    Params,
    kind_of,
    merge_mutable,
    mutable_sites,
    refuse_discrete_sites,
    site_log_prob,
)
from implicitppl.processes import Process


class Comparison(NamedTuple):
    """What a step compares at one function.

    Attributes:
        x: (n, D) all points, the model's inputs first.
        num_inputs: how many of them are the model's.
        values: (S, n) the guide's functions there; several outputs follow each other.
        guide: the guide's process.
        prior: the model's process.
        scale: what `handlers.scale` multiplies the divergence by.
    """

    x: Array
    num_inputs: int
    values: Array
    guide: Process
    prior: Process
    scale: Array

    @property
    def known_divergence(self) -> Array | None:
        """KL of whole functions, where the guide's process knows it."""
        return self.guide.divergence_from(self.prior)

    def pair(self, key: PRNGKeyArray) -> Pair:
        """Return moments and draws of both sides; the key is for draws of the prior."""
        prior_key = jax.random.fold_in(key, 1)
        return make_pair(self.values, self.guide, self.prior, self.x, prior_key)


class Step(NamedTuple):
    """What all particles gave.

    Attributes:
        loss: minus the log density of everything that is no function, averaged over particles.
        compared: name -> what to compare.
        batch_ratio: N / B of subsampled plates.
        is_one_batch: whether all of those hold the same observations.
        mutable: mutable state.
    """

    loss: Array
    compared: dict[str, Comparison]
    batch_ratio: float
    is_one_batch: bool
    mutable: Params


class _Own(NamedTuple):
    """What differs between particles."""

    loss: Array
    values: dict[str, Array]
    mutable: Params


class _Shared(NamedTuple):
    """What must not: inputs, scales, and arrays of priors and guides."""

    x: dict[str, Array]
    scales: dict[str, Array]
    priors: dict[str, Any]
    guides: dict[str, Any]


class _Static(NamedTuple):
    """What is known while tracing: the rest of priors and guides, sizes, N / B."""

    priors: dict[str, Any]
    guides: dict[str, Any]
    num_inputs: dict[str, int]
    batch_ratio: float
    is_one_batch: bool


def run_particles(
    model: Call,
    guide: Call,
    measurement: Callable[..., Any] | None,
    num_particles: int,
    key: PRNGKeyArray,
) -> Step:
    """Return what all particles of a step gave.

    Raises:
        ValueError: as `FunctionalELBO` does.
    """
    plate_key, measure_key, particles_key = jax.random.split(key, 3)
    known: list[_Static] = []

    def particle(key: PRNGKeyArray) -> tuple[_Own, _Shared]:
        own, shared, static = _particle(model, guide, measurement, key, plate_key, measure_key)
        known.append(static)
        return own, shared

    keys = jax.random.split(particles_key, num_particles)
    try:
        own, shared = jax.vmap(particle, out_axes=(0, None))(keys)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        raise ValueError(_DEPENDS) from error
    static = known[-1]
    compared = {
        name: Comparison(
            shared.x[name],
            static.num_inputs[name],
            flat(own.values[name]),
            eqx.combine(shared.guides[name], static.guides[name]),
            eqx.combine(shared.priors[name], static.priors[name]),
            shared.scales[name],
        )
        for name in shared.x
    }
    mutable = jax.tree.map(merge_mutable, own.mutable)
    loss = jnp.mean(own.loss)
    return Step(loss, compared, static.batch_ratio, static.is_one_batch, mutable)


@contextmanager
def dependence_named() -> Iterator[None]:
    """Say it in words where a process holds on to a particle's latent variable in a closure."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(_DEPENDS) from error


_DEPENDS = (
    "the prior process of a function, the guide's, or the inputs depend on a latent variable or on "
    "random draws, so that each particle has another one: their divergence is not that of two "
    "distributions over functions. Learn such quantities as parameters (`numpyro.param`), or by "
    "`implicitppl.gp.fit` first."
)


def _particle(
    model: Call,
    guide: Call,
    measurement: Callable[..., Any] | None,
    key: PRNGKeyArray,
    plate_key: PRNGKeyArray,
    measure_key: PRNGKeyArray,
) -> tuple[_Own, _Shared, _Static]:
    """Return what one particle gives; the other keys are the same for all particles."""
    guide_key, model_key = jax.random.split(key)
    drawn = function_draws()
    with shared_plates(key=plate_key), drawn:
        guide_trace = guide.trace(guide_key)
    mutable = mutable_sites(guide_trace)
    given = function_values(draws=drawn.draws)
    with shared_plates(key=plate_key), given:
        model_trace = model.replayed(model_key, guide_trace, mutable)
    check_functions(model_trace, guide_trace)
    check_model_guide_match(without_functions(model_trace), without_functions(guide_trace))
    mutable.update(mutable_sites(model_trace))
    loss = _explicit(guide_trace) - _explicit(model_trace)
    x, values = {}, {}
    for index, (name, asked) in enumerate(given.asked.items()):
        points_key = jax.random.fold_in(measure_key, index)
        measured = measurement_points(measurement, points_key, asked.x[0])
        x[name] = joined(asked.x, measured)
        seen = [drawn.draws[name](part) for part in (*asked.x, measured) if len(part)]
        values[name] = jnp.concatenate(seen, axis=0)
    priors = {name: eqx.partition(a.prior, eqx.is_array) for name, a in given.asked.items()}
    guides = {name: eqx.partition(drawn.processes[name], eqx.is_array) for name in given.asked}
    scales = {
        name: jnp.asarray(check_scales(name, [*a.scales, *drawn.scales[name]]), float)
        for name, a in given.asked.items()
    }
    shared = _Shared(x, scales, _part(priors, 0), _part(guides, 0))
    sizes = {name: sum(len(part) for part in a.x) for name, a in given.asked.items()}
    static = _Static(
        _part(priors, 1),
        _part(guides, 1),
        sizes,
        batch_ratio(model_trace),
        is_one_batch(model_trace),
    )
    return _Own(loss, values, mutable), shared, static


def _part(split: dict[str, tuple[Any, Any]], index: int) -> dict[str, Any]:
    return {name: parts[index] for name, parts in split.items()}


def _explicit(trace: dict[str, Any]) -> Array:
    """Return the log density of all sites that are no functions."""
    total = jnp.zeros(())
    for name, site in trace.items():
        if site["type"] != "sample" or is_function(site):
            continue
        if kind_of(site) == "implicit":
            raise ValueError(
                f"Site '{name}' is implicit and no function: its density is needed and cannot be "
                "computed. Use a distribution with a density beside the functions."
            )
        total = total + site_log_prob(site)
    refuse_discrete_sites(trace, "Sum it out of the model.")
    return total
