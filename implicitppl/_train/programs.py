"""Compiled programs that are kept, and what they hold of the world outside of their arguments.

`Compiled` is as `eqx.filter_jit`, whose global cache would keep every function, and with it the
guide and some thousand memory maps, for good: a process that fits new guides a hundred times would
die.

A program holds the globals and closures of its function as they were when it was traced. Whoever
keeps programs for a second call (`implicitppl.infer.fit`) compares `Captured` first: if a value has
been rebound in between (a notebook cell that sets `y` anew), the programs must not be used again.
Values that were changed in place are not seen.
"""

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np


class Compiled:
    """A function of a PyTree of arrays and other things, with its own programs.

    Args:
        function: of positional arguments; what it returns must be arrays.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.programs: dict[Any, Callable[[Any], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        arrays, fixed = eqx.partition(args, _is_array)
        leaves, structure = jax.tree.flatten(fixed)
        key = (tuple((type(leaf), leaf) for leaf in leaves), structure)
        if key not in self.programs:
            self.programs[key] = jax.jit(lambda arrays: self.function(*eqx.combine(arrays, fixed)))
        return self.programs[key](arrays)


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
