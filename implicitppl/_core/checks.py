"""What every argument is checked for: numbers, counts, finite values, one key.

Each function answers one question and raises a `ValueError` that names argument, rule and value.
Values unknown while tracing pass.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def check_positive(name: str, value: object) -> None:
    """Raise `ValueError` unless a value is positive; values unknown while tracing pass.

    Example:
        >>> from implicitppl._core.checks import check_positive
        >>> check_positive("bandwidth", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: `bandwidth` must be positive; got -1.0.
    """
    if is_known(value) and not bool(np.all(np.asarray(value) > 0)):
        raise ValueError(f"`{name}` must be positive; got {value}.")


def check_non_negative(name: str, value: object) -> None:
    """Raise `ValueError` unless a value is at least 0; values unknown while tracing pass.

    Example:
        >>> from implicitppl._core.checks import check_non_negative
        >>> check_non_negative("ridge", 0.0)
    """
    if is_known(value) and not bool(np.all(np.asarray(value) >= 0)):
        raise ValueError(f"`{name}` must be non-negative; got {value}.")


def is_known(value: object) -> bool:
    """Tell whether the values of a number or an array can be looked at now, so outside `jit`."""
    return eqx.is_array_like(value) and not isinstance(value, jax.core.Tracer)


def check_finite(name: str, values: Array, remedy: str = "") -> None:
    """Raise `ValueError` if values that are known are not finite."""
    if not is_known(values):
        return
    bad = int(np.sum(~np.isfinite(np.asarray(values))))
    if bad:
        raise ValueError(f"`{name}` must be finite; {bad} of {values.size} are not.{remedy}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise `ValueError` if a count is below the least that makes sense."""
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}.")


def as_floating(value: ArrayLike) -> Array:
    """Return an array of a floating dtype: that of `value` if it has one, else the default."""
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def check_key(key: Array) -> None:
    """Raise unless `key` is one JAX random key, of the new kind or the old."""
    array = jnp.asarray(key)
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if array.ndim != (0 if typed else 1):
        raise ValueError(
            "`key` must be one random key, such as jax.random.key(0); got "
            f"{array.dtype} of shape {array.shape}."
        )


def as_matrix(name: str, value: Any, *, min_rows: int = 2) -> Float[Array, "N D"]:
    """Return `value` as a floating-point (N, D) array, or raise what is wrong with it."""
    x = as_floating(value)
    if x.ndim != 2:
        raise ValueError(f"`{name}` must have shape (N, D); got {x.shape}.")
    if x.shape[0] < min_rows:
        raise ValueError(f"`{name}` must have at least {min_rows} rows; got {x.shape[0]}.")
    if is_known(x) and not np.isfinite(np.asarray(x)).all():
        bad = int((~np.isfinite(np.asarray(x)).all(1)).sum())
        raise ValueError(f"`{name}` must be finite; got {bad} rows with NaN or infinity.")
    return x


def same_shape(first: str, x: Any, second: str, y: Any) -> None:
    """Raise unless two arrays have one shape."""
    if x.shape != y.shape:
        raise ValueError(f"`{second}` must have the shape of `{first}`, {x.shape}; got {y.shape}.")
