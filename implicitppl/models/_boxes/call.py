"""One call of a black box: from traced arrays to the host and back, with every answer checked.

The host function sees NumPy arrays of its own (copies, so it may write into them) and NumPy scalars
where an input is a scalar. Its answer comes back with a status,

    0 fine    1 exception    2 NaN in the answer    3 time-out,

and is NaN throughout where the status is not 0. An answer of another shape, or one that is not
made of real numbers, is a mistake in the program rather than a failure, and always raises.

Shapes: `arrays` are the inputs of one point, (*input_shape), or of a batch, (*batch, *input_shape)
with 1 for batch axes that an input does not have; the value is (*batch, *out.shape), the status
(*batch).
"""

import dataclasses
import logging
import subprocess
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from implicitppl.models._boxes.pool import Outcome, run

OK, EXCEPTION, NOT_A_NUMBER, TIME_OUT = range(4)
BATCHED = ("expand_dims", "broadcast_all")
MAX_TEXT = 200  # characters of one printed input

log = logging.getLogger("implicitppl.black_box")


class BlackBoxError(RuntimeError):
    """A black box failed, or answered with something that cannot be used.

    It is raised inside a compiled program, so JAX reports it as a `jax.errors.JaxRuntimeError`
    whose text contains this error's.
    """


@dataclasses.dataclass(frozen=True)
class HostCall:
    """What a black box is: its host function and how to call it. Compared by value.

    Two equal calls share one compiled program, so `fn` enters the comparison by `identity`: itself
    where it can be hashed, else its address.
    """

    name: str
    fn: Callable[..., Any] = dataclasses.field(compare=False)
    identity: Hashable
    input_ndims: tuple[int, ...]
    out: jax.ShapeDtypeStruct
    noise: jax.ShapeDtypeStruct | None
    random: bool
    vmap_method: str
    on_failure: str
    num_workers: int | None
    pool: str
    timeout: float | None

    @property
    def seeded(self) -> bool:
        """Whether the function gets a generator (and not the noise itself)."""
        return self.random and self.noise is None

    @property
    def takes_batches(self) -> bool:
        """Whether the function is called with a whole batch."""
        return self.num_workers is None and self.vmap_method in BATCHED

    @property
    def ndims(self) -> tuple[int, ...]:
        """Ranks of all arrays of one point: key data or noise, if any, then the inputs."""
        if not self.random:
            return self.input_ndims
        return (1 if self.noise is None else len(self.noise.shape), *self.input_ndims)

    def __call__(self, *arrays: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the value and the status. Runs on the host."""
        own = [np.array(array) for array in arrays]
        batch = np.broadcast_shapes(
            *(a.shape[: a.ndim - n] for a, n in zip(own, self.ndims, strict=True))
        )
        whole = self.takes_batches or not batch
        indices: list[tuple[int, ...]] = [()] if whole else list(np.ndindex(*batch))
        points = [[a[()] for a in own]] if whole else [self._at(own, batch, i) for i in indices]
        outcomes = run(
            self.fn,
            [self._arguments(point) for point in points],
            num_workers=self.num_workers,
            pool=self.pool,
            timeout=self.timeout,
        )
        values = np.full((*batch, *self.out.shape), np.nan, self.out.dtype)
        status = np.zeros(batch, np.int32)
        for index, point, outcome in zip(indices, points, outcomes, strict=True):
            if outcome.error is None:
                values[index] = self._checked(outcome.value, np.shape(values[index]))
                wrong = np.any(np.isnan(values[index]), axis=tuple(range(-len(self.out.shape), 0)))
                status[index] = np.where(wrong, NOT_A_NUMBER, OK)
            else:
                status[index] = TIME_OUT if _is_late(outcome.error) else EXCEPTION
            if np.any(status[index]):
                failed = tuple(np.argwhere(status[index])[0].tolist())
                shown = self._at(own, batch, failed) if failed and not outcome.error else point
                self._report(shown, outcome)
        values[status != OK] = np.nan
        return values, status

    def _at(self, arrays: list[np.ndarray], batch: Any, index: tuple[int, ...]) -> list[Any]:
        """Return copies of the arrays of one point of a batch."""
        return [
            np.array(np.broadcast_to(a, (*batch, *a.shape[a.ndim - n :]))[index])[()]
            for a, n in zip(arrays, self.ndims, strict=True)
        ]

    def _arguments(self, point: Sequence[Any]) -> tuple[Any, ...]:
        """Return what the function is called with: key data become a generator."""
        if self.seeded:
            return (np.random.default_rng(point[0].tolist()), *point[1:])
        return tuple(point)

    def _checked(self, result: Any, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.asarray(result)
        except ValueError as error:
            raise BlackBoxError(
                f"`fn` of black box {self.name!r} must return an array; got {result!r}."
            ) from error
        real = jnp.issubdtype(array.dtype, jnp.floating) or np.issubdtype(array.dtype, np.integer)
        if not real:
            raise BlackBoxError(
                f"`fn` of black box {self.name!r} must return real numbers; got "
                f"{type(result).__name__} of dtype {array.dtype}."
            )
        if array.shape != shape:
            batch = shape[: len(shape) - len(self.out.shape)]
            lead = f" (batch {batch}, then `out` {self.out.shape})" if batch else ""
            raise BlackBoxError(
                f"`fn` of black box {self.name!r} must return an array of shape {shape}{lead}; "
                f"got {array.shape}."
            )
        with np.errstate(over="ignore"):  # an overflow is infinite, which is no failure
            return array.astype(self.out.dtype)

    def _report(self, point: Sequence[Any], outcome: Outcome) -> None:
        """Raises, or logs, why a point failed."""
        error = outcome.error
        if error is None:
            why = "NaN in the output"
        else:
            why = "time-out" if _is_late(error) else type(error).__name__
            why = f"{why} ({error})"
        inputs = ", ".join(_printed(value) for value in point[1 if self.seeded else 0 :])
        text = f"Black box {self.name!r} failed: {why}; called with ({inputs})."
        if self.on_failure == "raise":
            raise BlackBoxError(text) from error
        log.info(text)


def _is_late(error: BaseException) -> bool:
    return isinstance(error, TimeoutError | subprocess.TimeoutExpired)


def _printed(value: Any) -> str:
    text = np.array2string(np.asarray(value), precision=6, threshold=10, separator=", ")
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def call_host(call: HostCall, *arrays: Array) -> tuple[Array, Array]:
    """Return the value and the status as traced arrays; refuses to be differentiated.

    Args:
        call: the black box.
        arrays: key data or noise, if it is random, then the inputs.

    Raises:
        ValueError: while a derivative with respect to an input is being traced. Inputs that
            carry no tangent (data, stopped gradients) are no derivative.
    """
    method = call.vmap_method if call.num_workers is None else "expand_dims"
    result = (call.out, jax.ShapeDtypeStruct((), jnp.int32))

    @jax.custom_jvp
    def on_host(*arrays: Array) -> tuple[Array, Array]:
        return jax.pure_callback(call, result, *arrays, vmap_method=method)

    @on_host.defjvp
    def refuse(primals: Any, tangents: Any) -> NoReturn:
        raise ValueError(
            f"Black box {call.name!r} has no derivative: its values come from a host function. "
            "Sample with `implicitppl.infer.ScoreHMC`, which needs none, or replace the box by a "
            "differentiable surrogate, `implicitppl.models.replace_boxes(model, fitted)`, for "
            "gradient-based inference (SVI, NUTS, optimisation)."
        )

    return on_host(*arrays)
