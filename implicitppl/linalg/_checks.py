"""Range checks of hyper-parameters that may be numbers, arrays or traced values."""

import equinox as eqx
import jax
import numpy as np


def check_positive(name: str, value: object) -> None:
    """Raise `ValueError` unless a value is positive; values unknown while tracing pass.

    Example:
        >>> from implicitppl.linalg import check_positive
        >>> check_positive("bandwidth", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: `bandwidth` must be positive; got -1.0.
    """
    if _is_known(value) and not bool(np.all(np.asarray(value) > 0)):
        raise ValueError(f"`{name}` must be positive; got {value}.")


def check_non_negative(name: str, value: object) -> None:
    """Raise `ValueError` unless a value is at least 0; values unknown while tracing pass.

    Example:
        >>> from implicitppl.linalg import check_non_negative
        >>> check_non_negative("ridge", 0.0)
    """
    if _is_known(value) and not bool(np.all(np.asarray(value) >= 0)):
        raise ValueError(f"`{name}` must be non-negative; got {value}.")


def _is_known(value: object) -> bool:
    return eqx.is_array_like(value) and not isinstance(value, jax.core.Tracer)
