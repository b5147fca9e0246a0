"""Host functions as named, lazy, deterministic sites of NumPyro models.

A black box is a message of type "deterministic" whose value is None until NumPyro's default handler
calls the host. A handler that sets the value first (`substitute`, a surrogate) keeps the host idle:

    {"type": "deterministic", "name": name, "value": None, "fn": evaluate, "args": inputs,
     "kwargs": {"key": key, "noise": None}, "cond_indep_stack": [],
     "infer": {"black_box": HostCall, "status": int32 scalar, once the host has been called}}

`numpyro.handlers.trace` then holds inputs, value and status of each evaluation.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.primitives import _PYRO_STACK, apply_stack

from implicitppl.models._boxes.call import HostCall, call_host
from implicitppl.models._boxes.checks import check_context, check_options, checked_inputs, floats
from implicitppl.models._boxes.handlers import (
    Message,
    typed_key,
)

Shape = tuple[int, ...]


def black_box(
    name: str,
    fn: Callable[..., Any],
    *inputs: Any,
    out: jax.ShapeDtypeStruct | Shape,
    vmap_method: str = "sequential",
    key: Any = None,
    noise: jax.ShapeDtypeStruct | Shape | None = None,
    on_failure: str = "raise",
    num_workers: int | None = None,
    pool: str = "thread",
    timeout: float | None = None,
) -> Array:
    """Return y = fn(*inputs), computed by a host function, as a deterministic site of the model.

    An ordinary likelihood scores y (a simulator), or `numpyro.factor` adds it (a log density). The
    site is recorded, substituted and predicted as `numpyro.deterministic` is. It has no derivative:
    asking for one raises, and names what to use instead.

    Args:
        name: of the site.
        fn: `fn(*inputs) -> array`: NumPy, a C library, a subprocess. Its arrays are copies, its
            scalars NumPy scalars. It must depend on its arguments only, may be called from several
            threads, may be called again or not at all where nobody uses y, and must not call JAX.
        *inputs: at least one scalar or array. Host code has to state all that it reads: what is
            closed over is a constant.
        out: shape and floating dtype of y; a plain shape means JAX's default float. float64 means
            float32 where x64 is off. A float64 answer is rounded to a float32 `out`.
        vmap_method: how a batch (vectorised chains, particles) reaches the host. "sequential"
            and "sequential_unrolled": one call a point. "expand_dims" and "broadcast_all": one call
            for all, with leading batch axes on the inputs (of size 1, or repeated, where an input
            has none), to be answered with the batch axes and then `out`.
        key: random key (typed or raw); makes the box random. `fn` gets a `numpy.random.Generator`
            seeded from it as first argument. A handler may give each evaluation a new key
            (pseudo-marginal kernels do); elsewhere a fixed key makes y a fixed function.
            `numpyro.prng_key()` is None, hence no key, where NumPyro runs the model unseeded.
        noise: shape of u ~ N(0, I); `fn` then gets u as first argument, not a generator. u is
            drawn from `key` unless a handler supplies it (correlated pseudo-marginal kernels).
        on_failure: an exception, NaN in y or a time-out is a failure; an infinite y is not.
            "raise" stops the program with a `BlackBoxError`; "reject" gives NaN for y and a status
            of 1, 2 or 3 at the site, and logs the reason (level INFO,
            "implicitppl.black_box").
        num_workers: maps `fn` (one point a call) over so many workers where there is a batch.
        pool: "thread" (enough where `fn` releases the GIL or waits), or "process", for which `fn`
            is defined at the top level of a module. Pools are kept until the interpreter exits.
        timeout: seconds for one call. A late thread cannot be stopped: its answer is dropped, and
            it runs on in the background, using its core, until it returns. A late worker process
            is killed (not what it started) and replaced, which takes about a second. Programs are
            best stopped by `subprocess.run(..., timeout=)`: that counts as a time-out here.

    Raises:
        ValueError: for an argument outside of these rules; inside `contrib.control_flow` or under
            enumeration; when differentiated.
        BlackBoxError: at run time, as text of a `jax.errors.JaxRuntimeError`: for a failure with
            `on_failure="raise"`, and always for an answer of the wrong shape or type.

    Cost: the call itself, and about 0.1 ms to leave and re-enter the compiled program. Outside of
    `jit`, a function that each run of the model makes anew (a lambda in it) is compiled anew.

    Fails silently where `fn` is not a function of its arguments (a global that changes, an unseeded
    generator): JAX may reuse or repeat calls.

    Reference: Andrieu and Roberts (2009) for random boxes whose exp is an unbiased likelihood;
    Deligiannidis, Doucet and Pitt (2018) for correlated noise.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist
        >>> from numpyro import handlers
        >>> from implicitppl.models import black_box
        >>> def model(y=None):
        ...     x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        ...     mean = black_box("cube", lambda x: np.power(x, 3), x, out=())
        ...     numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> fixed = handlers.substitute(handlers.seed(model, 0), {"x": 2.0})
        >>> handlers.trace(fixed).get_trace(1.0)["cube"]["value"].item()
        8.0
    """
    arrays = checked_inputs(name, inputs)
    call = HostCall(
        name=name,
        fn=fn,
        identity=_identity(fn),
        input_ndims=tuple(array.ndim for array in arrays),
        out=floats("out", out),
        noise=None if noise is None else floats("noise", noise),
        random=key is not None,
        vmap_method=vmap_method,
        on_failure=on_failure,
        num_workers=num_workers,
        pool=pool,
        timeout=timeout,
    )
    check_options(call, key)
    check_context(name)
    infer: Message = {"black_box": call}
    evaluate = functools.partial(_evaluate, call, infer)
    kwargs = {"key": key, "noise": None}
    if not _PYRO_STACK:
        return evaluate(*arrays, **kwargs)
    message: Message = {
        "type": "deterministic",
        "name": name,
        # NumPyro's graph of a model needs the value at once; no host is called there.
        "value": evaluate(*arrays, **kwargs) if _drawing_graph() else None,
        "fn": evaluate,
        "args": arrays,
        "kwargs": kwargs,
        "cond_indep_stack": [],
        "infer": infer,
    }
    return jnp.asarray(apply_stack(message)["value"])


def _evaluate(
    call: HostCall, infer: Message, *inputs: Array, key: Any = None, noise: Any = None
) -> Array:
    """Return the value and leaves the status in `infer`."""
    first: tuple[Any, ...] = ()
    if call.noise is not None:
        if noise is None:
            noise = jax.random.normal(typed_key(key), call.noise.shape, call.noise.dtype)
        if jnp.shape(noise) != call.noise.shape:
            raise ValueError(
                f"`noise` of black box {call.name!r} must have shape {call.noise.shape}; got "
                f"{jnp.shape(noise)}."
            )
        first = (jnp.asarray(noise, call.noise.dtype),)
    elif call.random:
        first = (jax.random.key_data(typed_key(key)),)
    value, infer["status"] = call_host(call, *first, *inputs)
    return value


def _identity(fn: Any) -> Hashable:
    try:
        hash(fn)
    except TypeError:
        return id(fn)
    return fn


def _drawing_graph() -> bool:
    return any(type(handler).__module__ == "numpyro.infer.inspect" for handler in _PYRO_STACK)
