"""Handlers and helpers for models with black boxes: find, record, replace, make random.

They act on the messages that `implicitppl.models._boxes.site.black_box` sends, by the box's name in
the trace (with the prefix of a `numpyro.handlers.scope` inside of them).
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.primitives import Messenger

from implicitppl.models._boxes.call import HostCall
from implicitppl.models._call import Call, look_at

Message = dict[str, Any]


def typed_key(key: Any) -> PRNGKeyArray:
    """Return a key of dtype `key<...>` from itself or from raw key data."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(jnp.asarray(key))


class with_surrogates(Messenger):
    """Supplies the values of boxes from functions, so that their hosts are not called.

    Args:
        fn: model, or None for use as a context.
        fits: `f(*inputs) -> output` by box name; boxes without one are left alone, and so is a
            value that a handler inside has set. The output is cast to the box's dtype.

    `boxes` lists the names met in the last run.

    Raises:
        ValueError: if an output does not have the box's shape.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        fits: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.fits = dict(fits or {})
        self.boxes: list[str] = []
        super().__init__(fn)

    def __enter__(self) -> None:
        self.boxes = []
        super().__enter__()

    def process_message(self, msg: Message) -> None:
        """Sets the value of a box that has a surrogate."""
        call = _box_of(msg)
        if call is None:
            return
        self.boxes.append(msg["name"])
        if msg["value"] is not None or msg["name"] not in self.fits:
            return
        value = jnp.asarray(self.fits[msg["name"]](*msg["args"]))
        if value.shape != call.out.shape:
            raise ValueError(
                f"The surrogate of black box {msg['name']!r} must return shape {call.out.shape}; "
                f"got {value.shape}."
            )
        msg["value"] = value.astype(call.out.dtype)


class with_randomness(Messenger):
    """Gives random boxes new randomness: a key folded from `key` and the box's name, or noise.

    Args:
        fn: model, or None for use as a context.
        key: random key, or None to leave the keys of the model.
        noise: standard normal arrays by box name, for boxes with `noise`.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        key: Any = None,
        noise: Mapping[str, Any] | None = None,
    ) -> None:
        self.key = None if key is None else typed_key(key)
        self.noise = dict(noise or {})
        super().__init__(fn)

    def process_message(self, msg: Message) -> None:
        """Replaces the key, and the noise where there is some for this box."""
        call = _box_of(msg)
        if call is None or not call.random:
            return
        if self.key is not None:
            number = zlib.crc32(msg["name"].encode()) & 0x7FFFFFFF
            msg["kwargs"]["key"] = jax.random.fold_in(self.key, number)
        if msg["name"] in self.noise:
            msg["kwargs"]["noise"] = self.noise[msg["name"]]


class BoxInfo(NamedTuple):
    """Shapes and dtypes of a box's inputs, output and noise, and what it does."""

    inputs: tuple[jax.ShapeDtypeStruct, ...]
    out: jax.ShapeDtypeStruct
    noise: jax.ShapeDtypeStruct | None
    random: bool
    on_failure: str

    @property
    def input_size(self) -> int:
        """Numbers in all inputs together."""
        return sum(struct.size for struct in self.inputs)


class Record(NamedTuple):
    """One evaluation of a box; `status` is None where a handler supplied the output."""

    inputs: tuple[Array, ...]
    output: Array
    status: Array | None


def find_boxes(call: Call) -> dict[str, BoxInfo]:
    """Return the boxes that a run of the model meets, by name. No host is called."""
    return look_at(call, _boxes_in)


def _boxes_in(trace: Mapping[str, Message]) -> dict[str, BoxInfo]:
    found: dict[str, BoxInfo] = {}
    for name, site in trace.items():
        box = _box_of(site)
        if box is not None:
            inputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in site["args"])
            found[name] = BoxInfo(inputs, box.out, box.noise, box.random, box.on_failure)
    return found


def recorded(trace: Mapping[str, Message]) -> dict[str, Record]:
    """Return inputs, output and status of each box in a trace."""
    return {
        name: Record(site["args"], site["value"], site["infer"].get("status"))
        for name, site in trace.items()
        if _box_of(site) is not None
    }


def _box_of(message: Message) -> HostCall | None:
    return message.get("infer", {}).get("black_box")


def replace_boxes(model: Callable[..., Any], fitted: Any) -> Callable[..., Any]:
    """Return the model with black boxes replaced by functions that JAX can differentiate.

    Args:
        model: NumPyro model.
        fitted: `f(*inputs) -> output` by the name of a box, or an object that holds such a mapping
            as `.surrogates`. Boxes that it does not name keep calling their hosts.

    Returns:
        A model with the arguments of `model`, for SVI, NUTS and AutoGuides.

    Raises:
        ValueError: if `fitted` holds something else; when the model runs, if it names boxes that
            the model does not have, or a function returns another shape than its box.

    Cost: that of the functions.

    The posterior is that of the replaced model: as good as the functions are where it lies.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro import handlers
        >>> from implicitppl.models import black_box, replace_boxes
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        ...     numpyro.factor("f", black_box("square", lambda x: -x * x, x, out=()))
        >>> def value(x):
        ...     smooth = replace_boxes(model, {"square": lambda x: -x**2})
        ...     run = handlers.trace(handlers.substitute(smooth, {"x": x})).get_trace()
        ...     return run["square"]["value"]
        >>> jax.grad(value)(3.0).item()
        -6.0
    """
    fits = getattr(fitted, "surrogates", fitted)
    if not isinstance(fits, Mapping) or not all(callable(f) for f in fits.values()):
        raise ValueError(
            "`fitted` must map names of black boxes to functions, or hold such a mapping as "
            f"`.surrogates`; got {fitted!r}."
        )

    @functools.wraps(model)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        handler = with_surrogates(fits=fits)
        with handler:
            result = model(*args, **kwargs)
        unknown = sorted(set(fits) - set(handler.boxes))
        if unknown:
            raise ValueError(
                f"`fitted` must name black boxes of the model, which has {handler.boxes}; "
                f"got {unknown}."
            )
        return result

    return replaced
