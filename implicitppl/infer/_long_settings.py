"""What two long MCMC runs must have in common to be one, and to share compiled programs."""

import hashlib
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC

from implicitppl.infer._captured import Captured
from implicitppl.infer._long_blocks import Plan, raw

OPTION = "option"  # of a kernel; some kernels fill in what was left out, so both runs must tell it


def settings(
    mcmc: MCMC,
    rng_key: Array,
    plan: Plan,
    fields: tuple[str, ...],
    removed: tuple[str, ...],
    data: dict[str, Any],
) -> dict[str, Any]:
    """Settings of a run by the words that an error has for them; plain enough for JSON."""
    alone = "each chain alone"  # one after the other or in parallel
    found = {
        "kernel": fingerprint(type(mcmc.sampler)),
        "model": fingerprint(getattr(mcmc.sampler, "model", None)),
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


def fingerprint(value: Any) -> str:
    """A short text that tells arrays and numbers by their content, other objects by their name."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        text = f"{value.dtype}{list(value.shape)}"
        if value.dtype == object or not getattr(value, "is_fully_addressable", True):
            return text
        content = np.ascontiguousarray(np.asarray(raw(value)))
        return f"{text} {hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()}"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


class Known(Captured):
    """What programs hold; two that are equal may share them. Arrays are compared by content."""

    def __init__(self, sampler: Any, options: dict[str, Any], given: Any) -> None:
        options = dict(options)
        super().__init__(getattr(sampler, "model", None), options["postprocess_fn"])
        leaves, structure = jax.tree.flatten(given)
        arrays = (np.ndarray, jax.Array)
        content = (fingerprint(x) if isinstance(x, arrays) else x for x in leaves)
        words = (str(options.pop("fields")), str(options.pop("removed")), str(structure))
        self.values += (sampler, *words, *options.pop("chains"), *options.values(), *content)


def _options(kernel: Any) -> dict[str, Any]:
    """Numbers, switches, words and estimators that the kernel was made with."""
    names = inspect.signature(type(kernel).__init__).parameters
    values = {k: getattr(kernel, f"_{k}", getattr(kernel, k, None)) for k in names}
    plain = (bool, int, float, str)
    words: dict[str, Any] = {k: repr(v) for k, v in values.items() if isinstance(v, eqx.Module)}
    words |= {k: v for k, v in values.items() if isinstance(v, plain)}
    return {f"{OPTION} `{k}`": v for k, v in words.items()}
