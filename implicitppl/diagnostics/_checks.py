"""Checks of arguments that every diagnostic shares; each raises before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at now, i.e. outside `jit`."""
    return not isinstance(x, jax.core.Tracer)


def as_matrix(name: str, value: Any, *, min_rows: int = 2) -> Float[Array, "N D"]:
    """`value` as a floating-point `(N, D)` array without NaN or infinity."""
    x = jnp.asarray(value)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    if x.ndim != 2:
        raise ValueError(f"`{name}` must have shape (N, D); got {x.shape}.")
    if x.shape[0] < min_rows:
        raise ValueError(f"`{name}` must have at least {min_rows} rows; got {x.shape[0]}.")
    if concrete(x) and not np.isfinite(np.asarray(x)).all():
        bad = int((~np.isfinite(np.asarray(x)).all(1)).sum())
        raise ValueError(f"`{name}` must be finite; got {bad} rows with NaN or infinity.")
    return x


def same_shape(first: str, x: Any, second: str, y: Any) -> None:
    """Raise unless two arrays have one shape."""
    if x.shape != y.shape:
        raise ValueError(f"`{second}` must have the shape of `{first}`, {x.shape}; got {y.shape}.")


def at_least(name: str, value: int, minimum: int) -> None:
    """Raise unless `value >= minimum`."""
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}; got {value}.")
