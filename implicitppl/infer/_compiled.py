"""A function compiled for the arrays among its arguments; the rest is held fixed.

As `eqx.filter_jit`, whose global cache would keep every function, and with it the guide and some
thousand memory maps, for good: a process that fits new guides a hundred times would die.
"""

from collections.abc import Callable
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
