"""What may be a black box, and where: everything that is checked before a host is called."""

import pickle
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.primitives import _PYRO_STACK
from numpyro.util import is_prng_key

from implicitppl.models._boxes.call import BATCHED, HostCall

VMAP_METHODS = ("sequential", "sequential_unrolled", *BATCHED)
ON_FAILURE = ("raise", "reject")
POOLS = ("thread", "process")
LOOPS = "jax._src.lax.control_flow"


def floats(argument: str, struct: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and the floating dtype that this precision of JAX has."""
    if isinstance(struct, tuple):
        struct = jax.ShapeDtypeStruct(struct, jnp.result_type(float))
    if not isinstance(struct, jax.ShapeDtypeStruct):
        raise ValueError(f"`{argument}` must be a jax.ShapeDtypeStruct or a shape; got {struct!r}.")
    if not jnp.issubdtype(struct.dtype, jnp.floating):
        raise ValueError(f"`{argument}` must have a floating dtype; got {struct.dtype}.")
    return jax.ShapeDtypeStruct(struct.shape, jax.dtypes.canonicalize_dtype(struct.dtype))


def checked_inputs(name: Any, inputs: tuple[Any, ...]) -> tuple[Array, ...]:
    """Return the inputs as arrays, once the name and they are what they must be."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"`name` must be a string that is not empty; got {name!r}.")
    if not inputs:
        raise ValueError(f"Black box {name!r} needs at least one input; got none.")
    arrays = tuple(jnp.asarray(value) for value in inputs)
    for position, array in enumerate(arrays):
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            raise ValueError(
                f"`inputs` of black box {name!r} must be numbers (a random key goes into `key`); "
                f"got dtype {array.dtype} at position {position}."
            )
    return arrays


def check_options(call: HostCall, key: Any) -> None:
    """Raise for options that are unknown or exclude each other."""
    if not callable(call.fn):
        raise ValueError(f"`fn` must be a function of the inputs; got {call.fn!r}.")
    for argument, value, allowed in (
        ("vmap_method", call.vmap_method, VMAP_METHODS),
        ("on_failure", call.on_failure, ON_FAILURE),
        ("pool", call.pool, POOLS),
    ):
        if value not in allowed:
            raise ValueError(f"`{argument}` must be one of {allowed}; got {value!r}.")
    workers = call.num_workers
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f"`num_workers` must be a positive integer or None; got {workers!r}.")
    if workers is not None and call.vmap_method in BATCHED:
        raise ValueError(
            f"`num_workers` calls `fn` with one point, `vmap_method={call.vmap_method!r}` with a "
            f"batch: give one of the two; got num_workers={workers}."
        )
    if call.timeout is not None and not call.timeout > 0:
        raise ValueError(f"`timeout` must be positive or None; got {call.timeout!r}.")
    if call.pool == "process":
        _check_process(call)
    if key is not None and not is_prng_key(key):
        raise ValueError(f"`key` must be one random key, typed or raw; got {key!r}.")
    if call.noise is not None and key is None:
        raise ValueError("`noise` is drawn from `key`, which must be given as well; got None.")
    if call.seeded and call.takes_batches:
        raise ValueError(
            f"`vmap_method={call.vmap_method!r}` hands `fn` a batch, and a batch has a key for "
            'each point: use `noise`, `num_workers` or "sequential" with a `key`.'
        )


def _check_process(call: HostCall) -> None:
    if call.num_workers is None:
        raise ValueError('`pool="process"` needs `num_workers`; got None.')
    try:
        pickle.dumps(call.fn)
    except Exception as error:
        raise ValueError(
            '`fn` must be picklable for `pool="process"` (a function at the top level of a '
            f"module); got {call.fn!r}."
        ) from error


def check_context(name: str) -> None:
    """Raise where NumPyro would run the model's body in a way that a box cannot follow."""
    frame, mapped, by_numpyro = sys._getframe(1), False, False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if mapped and module == "numpyro.primitives":  # a handler runs the body that maps
            raise ValueError(
                f"Black box {name!r} is inside a `jax.vmap` or a `jax.lax` loop of the model's "
                "body, whose values handlers cannot keep. Use one box for the whole batch, with "
                "`out=(n, ...)`, or a Python loop with a name for each box."
            )
        mapping = frame.f_code.co_name == "vmap_f" or module.startswith(LOOPS)
        mapped = mapped or (mapping and not by_numpyro)  # else the whole model is mapped
        by_numpyro = by_numpyro or module.startswith("numpyro.")
        if module.startswith("numpyro.contrib.control_flow"):
            raise ValueError(
                f"Black box {name!r} is inside numpyro.contrib.control_flow."
                f"{module.rpartition('.')[2]}, which hides its sites from handlers. Use a Python "
                "loop, one box for the whole sequence, or `jax.lax` around code without sites."
            )
        frame = frame.f_back  # type: ignore[assignment]
    for handler in _PYRO_STACK:
        if any(
            base.__module__.startswith("numpyro.contrib.funsor") and base.__name__ == "enum"
            for base in type(handler).__mro__
        ):
            raise ValueError(
                f"Black box {name!r} is in a model whose discrete sites are enumerated: its inputs "
                "would carry the axes of all their values. Sum over the discrete sites by hand, or "
                "sample them."
            )
