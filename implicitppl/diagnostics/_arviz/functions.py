"""Functions drawn at inputs, as variables that ArviZ can hold."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

Named = dict[str, np.ndarray]


@runtime_checkable
class FunctionDraws(Protocol):
    """Values (S, N) or (S, N, P) of functions at inputs `x`, (N, D)."""

    @property
    def x(self) -> Any:
        """Inputs."""

    @property
    def values(self) -> Any:
        """One function in each row."""


def drawn_functions(source: Mapping[str, Any]) -> tuple[Named, Named, dict[str, list[str]]]:
    """Return draws (1, S, N[, P]) by name, inputs (N, D) by name, and the dimensions of both.

    Raises:
        ValueError: if there are none, one is something else, or their numbers S differ.
    """
    if not source:
        raise ValueError("`source` must hold functions drawn by `predict`; the dict is empty.")
    draws: Named = {}
    inputs: Named = {}
    dims: dict[str, list[str]] = {}
    for name, functions in source.items():
        # A dict has `values` too, as a method.
        if not isinstance(functions, FunctionDraws) or callable(functions.values):
            raise ValueError(
                f"`source[{name!r}]` must be functions drawn by `implicitppl.infer.predict`; got "
                f"{type(functions).__name__}. A guide is given as it is: to_arviz(guide, result)."
            )
        draws[name] = np.asarray(functions.values)[None]
        inputs[f"{name}_x"] = np.asarray(functions.x)
        dims[name] = [f"{name}_point", f"{name}_output"][: draws[name].ndim - 2]
        dims[f"{name}_x"] = [f"{name}_point", f"{name}_input"]
    counts = {name: values.shape[1] for name, values in draws.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"`source` must hold as many functions under each name; got {counts}.")
    return draws, inputs, dims
