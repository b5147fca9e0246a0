"""Functions in a trace: which sites hold them, one draw for all inputs, and what is refused.

A guide draws each function once in a particle. Wherever the model asks for its values, the handler
evaluates that draw at the inputs that the model uses, so that guide and model cannot disagree on
rows of a minibatch. A density is never asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array
from numpyro.primitives import Messenger

from implicitppl.infer._sites import innermost
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
    """Refuse a function inside a plate, and one with noise in its values.

    Raises:
        ValueError: if it is either.
    """
    check_plates(site)
    if getattr(innermost(site["fn"]), "is_noisy", False):
        raise ValueError(
            f"Function site '{site['name']}' is latent and has `noise_scale`: noise is no function "
            f"of x. Draw `process(x)`, and put the noise into the likelihood."
        )


class function_draws(Messenger):
    """Draws the functions of a guide, one for each name, and keeps them.

    Attributes:
        draws: name -> the function drawn, `draws[name](x) -> (N[, P])`.
        processes: name -> the guide's process.
    """

    def __init__(self, fn: Callable[..., Any] | None = None) -> None:
        self.draws: dict[str, Draw] = {}
        self.processes: dict[str, Process] = {}
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
        msg["value"] = self.draws[name](values.x)


def _one_function(process: Process, key: Array) -> Draw:
    """Return one function; its randomness is drawn once, however often it is called."""
    if hasattr(process, "function"):
        return process.function(key)
    drawn = process.draw(key, 1)
    return lambda x: drawn(x)[0]


class Asked(NamedTuple):
    """What a model asks of one function: its prior, and inputs of all its sites in order."""

    prior: Process
    x: tuple[Array, ...]


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
        before = self.asked.get(name, Asked(values.process, ()))
        self.asked[name] = Asked(before.prior, (*before.x, values.x))
        msg["value"] = found


def check_functions(model_trace: dict[str, Site], guide_trace: dict[str, Site]) -> None:
    """Refuse traces whose functions do not belong together, by name.

    Raises:
        ValueError: if there is no function, one is in the guide only, a site is one on one side
            only, or a plate that the model subsamples is not in the guide.
    """
    asked = {name for name, site in model_trace.items() if is_function(site)}
    drawn = {name for name, site in guide_trace.items() if is_function(site)}
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
    for name in asked:
        ours, theirs = (innermost(t[name]["fn"]).x for t in (guide_trace, model_trace))
        if ours.shape != theirs.shape:
            raise ValueError(
                f"Guide and model evaluate function '{name}' at inputs of different shapes, "
                f"{ours.shape} and {theirs.shape}: pass both the same rows."
            )


def batch_ratio(model_trace: dict[str, Site]) -> float:
    """Return N / B of the subsampled plates of a model; 1 where there is none."""
    ratio = 1.0
    for site in model_trace.values():
        if site["type"] == "plate":
            size, subsample = site["args"]
            if subsample is not None:
                ratio *= size / subsample
    return ratio


def joined(x: tuple[Array, ...], measured: Array) -> Array:
    """Return all inputs of a function, those of the model first."""
    return jnp.concatenate([*x, measured], axis=0)
