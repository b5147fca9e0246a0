"""Replay a NumPyro model at given draws: likelihoods, predictions, deterministic values.

Shapes: draws `(S, ...)` per site.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import lax, random
from jaxtyping import Array

from implicitppl.models._call import Call
from implicitppl.models._sites import forget_data, is_likelihood


def replay(
    key: Array,
    model: Call,
    draws: Any,
    *,
    deterministic: Any,
    log_likelihood: Any,
    predictive: Any,
    batch_size: Any,
) -> Any:
    """Values of a model at all draws: three dicts of `(S, ...)` arrays, empty where off."""
    num = next(iter(draws.values())).shape[0]
    new_data = model._replace(program=forget_data(model.program))

    def one(inputs: Any) -> Any:
        key, draw = inputs
        given_key, new_key = random.split(key)
        trace = model.trace(given_key, draw)
        fixed = {
            k: s["value"]
            for k, s in trace.items()
            if deterministic and s["type"] == "deterministic"
        }
        likelihood = {
            k: s["fn"].log_prob(s["value"])
            for k, s in trace.items()
            if log_likelihood and is_likelihood(s)
        }
        new = {}
        if predictive:
            data = [k for k, s in trace.items() if is_likelihood(s)]
            simulated = new_data.trace(new_key, draw)
            new = {k: simulated[k]["value"] for k in data}
        return fixed, likelihood, new

    @jax.jit
    def run(keys: Any, draws: Any) -> Any:
        return lax.map(one, (keys, draws), batch_size=min(batch_size, num))

    return jax.device_get(run(random.split(key, num), draws))


def site_dims(site: Any, shape: tuple[int, ...]) -> list[str | None]:
    """A name per axis of a site's value: its plates, its `infer["event_dims"]`, None elsewhere.

    A plate's `dim` counts from the right of the batch axes. Deterministic sites have no
    distribution: their plates are taken to be the leading axes.
    """
    names: list[str | None] = [None] * len(shape)
    frames = sorted(site.get("cond_indep_stack", []), key=lambda frame: frame.dim)
    depth = max((-frame.dim for frame in frames), default=0)
    batch = len(site["fn"].batch_shape) if site["type"] == "sample" else min(depth, len(shape))
    for frame in frames:
        axis = batch + frame.dim
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            names[axis] = frame.name
    event = list((site.get("infer") or {}).get("event_dims", []))
    for axis, name in zip(range(batch, len(shape)), event, strict=False):
        names[axis] = name
    return names


def numpy_dict(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a dict that NumPy and netCDF can hold; typed keys and pytrees are left out."""
    out = {}
    for name, value in values.items():
        dtype = getattr(value, "dtype", None)
        plain = dtype is not None and not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        if plain or isinstance(value, bool | int | float):
            array = np.asarray(value)
            narrow = array.dtype.kind not in "biuf" or array.dtype.itemsize < 1
            low = array.dtype.name in ("float16", "bfloat16") or narrow
            out[name] = array.astype(np.float32) if low else array
    return out
