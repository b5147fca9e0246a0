"""What two long MCMC runs must have in common to be one, and to share compiled programs."""

import functools
import hashlib
import inspect
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC

from implicitppl._train.programs import Captured
from implicitppl.infer._long.blocks import Thinning, raw

OPTION = "option"  # of a kernel; some kernels fill in what was left out, so both runs must tell it
UNKNOWN = "of unknown content"
LAYOUT = "layout of the state"


def settings(
    mcmc: MCMC,
    rng_key: Array,
    plan: Thinning,
    fields: tuple[str, ...],
    removed: tuple[str, ...],
    data: dict[str, Any],
) -> dict[str, Any]:
    """Settings of a run by the words that an error has for them; plain enough for JSON."""
    alone = "each chain alone"  # one after the other or in parallel
    found = {
        "kernel": fingerprint(type(mcmc.sampler)),
        **_layout(mcmc.sampler),
        "model": model_name(getattr(mcmc.sampler, "model", None)),
        "num_warmup": mcmc.num_warmup,
        "num_samples": mcmc.num_samples,
        "num_chains": mcmc.num_chains,
        "thinning": mcmc.thinning,
        "chain_method": "vectorized" if mcmc.chain_method == "vectorized" else alone,
        "extra_fields": [*fields, *(f"without {k}" for k in removed)],
        "first iteration kept": plan.start,
        "rng_key": np.asarray(raw(rng_key)).tolist(),
        "precision": str(jnp.result_type(float)),
        **_options(mcmc.sampler),
    }
    for name, tree in data.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {f"{name} {jax.tree_util.keystr(path)}": fingerprint(x) for path, x in leaves}
    return found


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In words, what two runs do not have in common; at most three."""
    names = [k for k in {**here, **there} if not k.startswith(OPTION) or (k in here and k in there)]
    return [
        f"{k} is {there.get(k, 'not set')} there, {here.get(k, 'not set')} here"
        for k in names
        if there.get(k) != here.get(k)
    ][:3]


def other_version(there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether two runs are of one kernel, but of versions that put it or its state differently.

    A kernel is known by its package and class: the module between them may move.
    """
    names = [str(settings.get("kernel")).split(".") for settings in (there, here)]
    same = names[0][0] == names[1][0] and names[0][-1] == names[1][-1]
    return same and (names[0] != names[1] or there.get(LAYOUT) != here.get(LAYOUT))


def fingerprint(value: Any) -> str:
    """A short text that tells data by their content, functions and classes by their name.

    Objects that are no arrays, numbers or text are told by their pickle; those that have none and
    can be called, by the name of their class; of others `UNKNOWN` is said. A `functools.partial`
    is told by its parts.
    """
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        text = f"{value.dtype}{list(value.shape)}"
        if not getattr(value, "is_fully_addressable", True):
            return text
        if value.dtype == object:
            return f"{text} {_pickled(value)}"
        return f"{text} {_digest(np.ascontiguousarray(np.asarray(raw(value))).tobytes())}"
    if hasattr(value, "__qualname__"):
        return _name(value)
    if isinstance(value, functools.partial):
        return f"{fingerprint(value.func)} {described((value.args, value.keywords))}"
    content = _pickled(value)
    return _name(type(value)) + ("" if content == UNKNOWN and callable(value) else f" {content}")


def model_name(model: Any) -> str:
    """The name of a model; of an object that can be called that of its class, as it may count."""
    known = model is None or hasattr(model, "__qualname__") or isinstance(model, functools.partial)
    return fingerprint(model) if known else _name(type(model))


def _layout(kernel: Any) -> dict[str, Any]:
    """Which fields the kernel's state has, as a number, where it tells."""
    layout = getattr(kernel, "state_layout", None)
    return {} if layout is None else {LAYOUT: layout}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _pickled(value: Any) -> str:
    try:
        return _digest(pickle.dumps(value))
    except Exception:  # whatever a class raises that cannot be pickled
        return UNKNOWN


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def described(value: Any) -> str:
    """A short text for an option of a kernel: a function, or a tree of arrays and others."""
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: leaf is None)
    return " ".join(fingerprint(leaf) for leaf in leaves)


class Known(Captured):
    """What programs hold; two that are equal may share them. Arrays are compared by content."""

    def __init__(self, sampler: Any, options: dict[str, Any], constants: Any) -> None:
        options = dict(options)
        super().__init__(getattr(sampler, "model", None), options["postprocess_fn"])
        leaves, structure = jax.tree.flatten(constants)
        arrays = (np.ndarray, jax.Array)
        content = (fingerprint(x) if isinstance(x, arrays) else x for x in leaves)
        words = (str(options.pop("fields")), str(options.pop("removed")), str(structure))
        self.values += (sampler, *words, *options.pop("chains"), *options.values(), *content)


def _options(kernel: Any) -> dict[str, Any]:
    """What the kernel was made with: numbers, switches, words and estimators.

    Of a kernel whose options stay as they were given (`options_stay`), everything, and what was
    left out too; others fill some in when they run, such as inverse mass matrices.
    """
    names = inspect.signature(type(kernel).__init__).parameters
    values = {k: getattr(kernel, f"_{k}", getattr(kernel, k, None)) for k in names}
    plain = (bool, int, float, str)
    words: dict[str, Any] = {k: repr(v) for k, v in values.items() if isinstance(v, eqx.Module)}
    words |= {k: v for k, v in values.items() if isinstance(v, plain)}
    if getattr(kernel, "options_stay", False):
        words |= {k: described(v) for k, v in values.items() if k not in words and k != "model"}
    return {f"{OPTION} `{k}`": v for k, v in words.items()}
