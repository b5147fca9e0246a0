"""Functions in a trace: which sites hold them, one draw for all inputs, and what is refused.

A guide draws each function once in a particle. Wherever the model asks for its values, the handler
evaluates that draw at the inputs that the model uses, so that guide and model cannot disagree on
rows of a minibatch. A density is never asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array
from numpyro.primitives import Messenger

from implicitppl.models._sites import innermost
from implicitppl.processes import Process

Site = dict[str, Any]
Draw = Callable[[Array], Array]


def is_function(site: Site) -> bool:
    """Return whether a message or site is a latent draw of a process."""
    if site["type"] != "sample" or site["is_observed"]:
        return False
    return isinstance(getattr(innermost(site["fn"]), "process", None), Process)


def function_name(site: Site) -> str:
    """Return the name of the function whose values a site holds."""
    return site["infer"].get("function", site["name"])


def check_plates(site: Site) -> None:
    """Refuse a function inside a plate: it would be one function for each row."""
    if site["cond_indep_stack"]:
        plates = [frame.name for frame in site["cond_indep_stack"]]
        raise ValueError(
            f"Function site '{site['name']}' stands inside plate {plates}, which would draw one "
            "whole function for every row. Draw it outside of the plate, at the inputs of the "
            "batch: `with plate as rows: batch = x[rows]`, then "
            f"`numpyro.sample('{site['name']}', process(batch))`, then the likelihood in the plate."
        )


def check_site(site: Site) -> None:
    """Refuse what would not be the values of one function, as the process draws them.

    Raises:
        ValueError: if the site is in a plate, is noisy, masked, or wrapped in anything.
    """
    check_plates(site)
    values, name = innermost(site["fn"]), site["name"]
    if getattr(values, "is_noisy", False):
        raise ValueError(
            f"Function site '{name}' is latent and has `noise_scale`: noise is no function "
            f"of x. Draw `process(x)`, and put the noise into the likelihood."
        )
    if site["fn"] is not values:
        raise ValueError(
            f"Function site '{name}' is a process inside {type(site['fn']).__name__}, and "
            "functions are compared as the process draws them. Draw "
            f"`f = numpyro.sample('{name}', process(x))`, and transform f, or mask the "
            "likelihood, in the model; several functions are `processes.stack`."
        )
    if values.batch_shape:
        raise ValueError(
            f"Function site '{name}' has batch shape {values.batch_shape}: it would be several "
            "functions. Use `processes.stack`."
        )


def scale_of(site: Site) -> Any:
    """Return what `handlers.scale` multiplies the log density of a site by."""
    return 1.0 if site.get("scale") is None else site["scale"]


def is_equal(first: Any, second: Any) -> bool:
    """Return whether two scales are known to be equal."""
    if first is second:
        return True
    traced = isinstance(first, Tracer) or isinstance(second, Tracer)
    return not traced and bool(jnp.all(jnp.asarray(first) == jnp.asarray(second)))


def check_scales(name: str, scales: list[Any]) -> Any:
    """Return the scale of all sites of a function.

    Raises:
        ValueError: if they differ, or are no numbers.
    """
    first = scales[0]
    if jnp.ndim(first) or not all(is_equal(first, other) for other in scales[1:]):
        raise ValueError(
            f"`handlers.scale` gives function '{name}' the scales {scales}: its divergence has "
            "one. Give every site of it, in model and guide, the same number (traced: the same "
            "object)."
        )
    return first


class function_draws(Messenger):
    """Draw the functions of a guide, one for each name, and keeps them.

    Attributes:
        draws: name -> the function drawn, `draws[name](x) -> (N[, P])`.
        processes: name -> the guide's process.
        scales: name -> what `handlers.scale` says at its sites.
    """

    def __init__(self, fn: Callable[..., Any] | None = None) -> None:
        self.draws: dict[str, Draw] = {}
        self.processes: dict[str, Process] = {}
        self.scales: dict[str, list[Any]] = {}
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        """Fill in the values of a function."""
        if msg["type"] != "sample" or not is_function(msg):
            return
        check_site(msg)
        values, name = innermost(msg["fn"]), function_name(msg)
        if name not in self.draws:
            self.processes[name] = values.process
            self.draws[name] = _one_function(values.process, msg["kwargs"]["rng_key"])
        self.scales.setdefault(name, []).append(scale_of(msg))
        msg["value"] = self.draws[name](values.x)


def _one_function(process: Process, key: Array) -> Draw:
    """Return one function; its randomness is drawn once, however often it is called."""
    if hasattr(process, "function"):
        return process.function(key)
    drawn = process.draw(key, 1)
    return lambda x: drawn(x)[0]


class Asked(NamedTuple):
    """What a model asks of one function: its prior, and inputs and scales of all its sites."""

    prior: Process
    x: tuple[Array, ...]
    scales: tuple[Any, ...]


class function_values(Messenger):
    """Gives a model the values of a guide's functions at the model's own inputs.

    Attributes:
        asked: name -> what the model asked of the function.
    """

    def __init__(self, fn: Callable[..., Any] | None = None, *, draws: dict[str, Draw]) -> None:
        self.drawn = draws
        self.asked: dict[str, Asked] = {}
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        """Replace the replayed values of a function."""
        if msg["type"] != "sample" or not is_function(msg):
            return
        check_site(msg)
        values, name = innermost(msg["fn"]), function_name(msg)
        if name not in self.drawn:
            raise ValueError(
                f"Model site '{msg['name']}' is a function that the guide does not draw; the "
                f"guide's functions are {sorted(self.drawn)}."
            )
        found = self.drawn[name](values.x)
        if found.shape != values.event_shape:
            raise ValueError(
                f"The guide's function '{name}' has values of shape {found.shape} at the model's "
                f"inputs; the prior's have shape {values.event_shape}."
            )
        before = self.asked.get(name, Asked(values.process, (), ()))
        scales = (*before.scales, scale_of(msg))
        self.asked[name] = Asked(before.prior, (*before.x, values.x), scales)
        msg["value"] = found


def check_functions(model_trace: dict[str, Site], guide_trace: dict[str, Site]) -> None:
    """Refuse traces whose functions do not belong together, by name.

    Raises:
        ValueError: if there is no function, one is in the guide only, a site is one on one side
            only, or a plate that the model subsamples is not in the guide.
    """
    asked = {function_name(site) for site in model_trace.values() if is_function(site)}
    drawn = {function_name(site) for site in guide_trace.values() if is_function(site)}
    if not asked and not drawn:
        raise ValueError(
            "neither model nor guide draws a function: `FunctionalELBO` needs a site such as "
            "`numpyro.sample('f', process(x))` in both. Use `Trace_ELBO` or `ImplicitELBO`."
        )
    if asked != drawn:
        raise ValueError(
            f"model and guide must draw the same functions; the model has {sorted(asked)}, the "
            f"guide {sorted(drawn)}."
        )
    for name, site in model_trace.items():
        if site["type"] != "plate" or name in guide_trace:
            continue
        size, subsample = site["args"]
        if subsample is not None and subsample < size:
            raise ValueError(
                f"The model subsamples plate '{name}' ({subsample} of {size} rows) and the guide "
                "has no such plate: it would look at other rows. Open it in the guide, "
                f"`with numpyro.plate('{name}', {size}, subsample_size={subsample}) as rows:`, "
                "and evaluate its process at the same rows."
            )
    for name, site in model_trace.items():
        # A function that may be asked several times has sites at the points that are new to it,
        # which differ between processes; the guide's is evaluated wherever the model asks.
        if not is_function(site) or "function" in site["infer"] or name not in guide_trace:
            continue
        ours, theirs = (innermost(t[name]["fn"]).x for t in (guide_trace, model_trace))
        if ours.shape != theirs.shape:
            raise ValueError(
                f"Guide and model evaluate function '{name}' at inputs of different shapes, "
                f"{ours.shape} and {theirs.shape}: pass both the same rows."
            )


def batch_ratio(model_trace: dict[str, Site]) -> float:
    """Return N / B of the subsampled plates of a model; 1 where there is none."""
    return float(np.prod([size / batch for size, batch in subsampled(model_trace).values()]))


def subsampled(model_trace: dict[str, Site]) -> dict[str, tuple[int, int]]:
    """Return N and B of the plates that a model subsamples, by name."""
    plates = {name: s["args"] for name, s in model_trace.items() if s["type"] == "plate"}
    return {name: args for name, args in plates.items() if args[1] not in (None, args[0])}


def is_one_batch(model_trace: dict[str, Site]) -> bool:
    """Return whether all subsampled plates hold the same observations, so that N / B is one."""
    plates = set(subsampled(model_trace))
    held = [
        plates & {frame.name for frame in site["cond_indep_stack"]}
        for site in model_trace.values()
        if site["type"] == "sample" and site["is_observed"]
    ]
    return all(found in (set(), plates) for found in held)


def without_functions(trace: dict[str, Site]) -> dict[str, Site]:
    """Return the other sites of a trace."""
    return {name: site for name, site in trace.items() if not is_function(site)}


def joined(x: tuple[Array, ...], measured: Array) -> Array:
    """Return all inputs of a function, those of the model first."""
    return jnp.concatenate([*x, measured], axis=0)
