"""What a function reads from outside of its arguments: globals and closures, found from its code.

A compiled program holds such values as they were when it was traced. `implicitppl.infer.fit` keeps
programs for a second call; if a value behind them has been rebound in between (a notebook cell that
sets `y` anew), the programs must not be used again. Values that were changed in place are not seen.
"""

import functools
import types
from collections.abc import Iterator
from typing import Any

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
    """Tells whether two values are one; numbers and strings by their value."""
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
    """Returns the Python function behind a method, a partial or a guide with a model."""
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
