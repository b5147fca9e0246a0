"""Draws in any form (dict of arrays, ArviZ object) as named columns.

A dict maps a site to `(S, ...)`; an ArviZ object contributes its `posterior` group, chains stacked.
Columns are named `site` or `site[i,j]`. Shapes: columns `(S, P)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from implicitppl.models._sites import site_labels

Draws = dict[str, np.ndarray]


def as_draws(name: str, source: Any, var_names: Sequence[str] | None = None) -> Draws:
    """A dict of site -> `(S, ...)` arrays from a dict or an ArviZ object (its posterior)."""
    if isinstance(source, Mapping) and "posterior" not in source:
        draws = {k: np.asarray(v) for k, v in source.items()}
    else:
        try:
            posterior = source["posterior"]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"`{name}` must be a dict of draws or an ArviZ object with a posterior group; "
                f"got {type(source).__name__}."
            ) from error
        draws = {str(k): _stacked(posterior[k]) for k in posterior.data_vars}
    if var_names is not None:
        missing = [v for v in var_names if v not in draws]
        if missing:
            raise ValueError(f"`var_names` must be in `{name}`; got {missing}, which are not.")
        draws = {v: draws[v] for v in var_names}
    sizes = {v.shape[0] if v.ndim else 0 for v in draws.values()}
    if not draws or len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"`{name}` must hold arrays of one leading size; got sizes {sorted(sizes)}."
        )
    return draws


def _stacked(variable: Any) -> np.ndarray:
    values = variable.transpose("chain", "draw", ...).values
    return values.reshape((-1, *values.shape[2:]))


def columns(draws: Draws) -> tuple[list[str], np.ndarray]:
    """Labels and a `(S, P)` float array with one column per scalar."""
    labels = [label for k, v in draws.items() for label in site_labels(k, v.shape[1:])]
    flat = [v.reshape(v.shape[0], -1) for v in draws.values()]
    table = np.concatenate(flat, axis=1)
    if not np.issubdtype(table.dtype, np.floating):
        table = table.astype(np.float32)
    return labels, table


def paired_columns(
    reference: Any, draws: Any, var_names: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels and both tables for the sites the two have in common."""
    left, right = as_draws("reference_draws", reference), as_draws("draws", draws)
    names = list(var_names) if var_names is not None else [k for k in left if k in right]
    if not names:
        raise ValueError(
            f"`draws` must share a site with `reference_draws`, {sorted(left)}; "
            f"got {sorted(right)}."
        )
    left, right = (as_draws(n, d, names) for n, d in (("reference_draws", left), ("draws", right)))
    for k in names:
        if left[k].shape[1:] != right[k].shape[1:]:
            raise ValueError(
                f"`draws` must have shape (S, *{left[k].shape[1:]}) at site {k!r}; "
                f"got {right[k].shape}."
            )
    labels, x = columns(left)
    return labels, x, columns(right)[1]
