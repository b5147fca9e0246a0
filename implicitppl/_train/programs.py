"""Compiled programs that are kept, and what they hold of the world outside of their arguments.

`Compiled` is as `eqx.filter_jit`, whose global cache would keep every function, and with it the
guide and some thousand memory maps, for good: a process that fits new guides a hundred times would
die.

How hard XLA works on a program is said with it, because its default is dear. Measured on a step of
the default implicit guide, 400 kernels, jaxlib 0.10, CPU seconds of compiling and of 100 steps on
569 rows: default 9 and .10, `OFTEN` 4.3 and .10, `ONCE` 1.6 and .3. XLA's default also takes 1 to 4
seconds for every set of more than a few dozen random numbers, these .2. `ONCE` leaves loops as they
are written: it is for programs that run once and have little to do, whatever the data.

A program holds the globals and closures of its function as they were when it was traced. Whoever
keeps programs for a second call (`implicitppl.infer.fit`) compares `Captured` first: if a value has
been rebound in between (a notebook cell that sets `y` anew), the programs must not be used again.
Values that were changed in place are not seen.
"""

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

Options = Mapping[str, Any]

_OUTSIDE = get_opaque_trace_state(convention="flax")
_PLAIN_KERNELS = {"xla_cpu_use_fusion_emitters": False}
ONCE: Options = {"xla_backend_optimization_level": 0, **_PLAIN_KERNELS}
OFTEN: Options = {"xla_backend_optimization_level": 1, **_PLAIN_KERNELS}


FEW = 3000
"""Numbers of data, up to which a program that runs once is sooner done with plain loops."""


def effort_once(data: Any) -> Options:
    """Return how hard to work on a long program that runs once, by the amount of data in it."""
    arrays = (leaf for leaf in jax.tree.leaves(data) if _is_array(leaf))
    return ONCE if sum(leaf.size for leaf in arrays) <= FEW else OFTEN


class Compiled:
    """A function of a PyTree of arrays and other things, with its own programs.

    Args:
        function: of positional arguments; what it returns must be arrays.
        effort: `ONCE`, `OFTEN`, or which of them, as a function of the arguments. Inside of
            another program, that one's counts.
        keep: the number of programs that are kept, the latest ones; None for all.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        effort: Options | Callable[..., Options] = OFTEN,
        *,
        keep: int | None = None,
    ) -> None:
        self.function, self.effort, self.keep = function, effort, keep
        self.programs: dict[Any, Callable[[Any], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        arrays, fixed = eqx.partition(args, _is_array)
        leaves, structure = jax.tree.flatten(fixed)
        is_inner = get_opaque_trace_state(convention="flax") != _OUTSIDE
        key = (tuple((type(leaf), leaf) for leaf in leaves), structure, is_inner)
        program = self.programs.pop(key, None)
        if program is None:
            effort = self.effort(*args) if callable(self.effort) else self.effort
            program = self._program(fixed, {} if is_inner else known(effort))
        self.programs[key] = program  # the latest one stands last
        if self.keep is not None and len(self.programs) > self.keep:
            del self.programs[next(iter(self.programs))]
        return program(arrays)

    def _program(self, fixed: Any, options: Options) -> Callable[[Any], Any]:
        def program(arrays: Any) -> Any:
            return self.function(*eqx.combine(arrays, fixed))

        program.__name__ = getattr(self.function, "__name__", program.__name__)
        return jax.jit(program, compiler_options=dict(options) or None)


def known(options: Options) -> Options:
    """Return those of the options that this XLA has for the CPU; none on another device.

    Who asked JAX not to optimise (`JAX_DISABLE_MOST_OPTIMIZATIONS`) gets that here, too.
    """
    if jax.default_backend() != "cpu":
        return {}
    if jax.config.values["jax_disable_most_optimizations"]:
        options = ONCE
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Tell whether XLA takes an option; one that it has dropped is an error at compile time."""
    try:
        jax.jit(lambda: np.int32(0), compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


MAX_DEPTH = 4  # functions that call functions


class Captured:
    """The values that functions read from outside, compared by identity."""

    def __init__(self, *functions: Any) -> None:
        self.values = tuple(value for function in functions for value in _reads(function, 0, set()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Captured) or len(self.values) != len(other.values):
            return False
        return all(_same(a, b) for a, b in zip(self.values, other.values, strict=True))

    def __hash__(self) -> int:
        return len(self.values)


def _same(a: Any, b: Any) -> bool:
    """Tell whether two values are one; numbers and strings by their value."""
    plain = (int, float, str, bool, type(None))
    return a is b or (type(a) is type(b) and isinstance(a, plain) and a == b)


def _reads(function: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    function = _plain_function(function)
    if function is None or depth > MAX_DEPTH or id(function) in seen:
        return
    seen.add(id(function))
    names = set(_names(function.__code__))
    found = {n: v for n, v in function.__globals__.items() if n in names}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in sorted(found):
        value = found[name]
        if isinstance(value, types.ModuleType | type):
            continue
        yield value
        yield from _reads(value, depth + 1, seen)


def _plain_function(value: Any) -> types.FunctionType | None:
    """Return the Python function behind a method, a partial or a guide with a model."""
    if isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)
    if isinstance(value, types.FunctionType):
        return value
    inner = getattr(value, "model", None) or getattr(value, "fn", None)
    return inner if isinstance(inner, types.FunctionType) else None


def _names(code: types.CodeType) -> Iterator[str]:
    """Yields the names that a code object, or a function inside it, may look up globally."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
