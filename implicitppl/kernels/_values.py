"""Values of a kernel's fields as arrays beside the points: the points' dtype, shapes checked.

A field holds what the user gave, often a Python number. Shapes are checked where a value meets
the points, because only there is the number of coordinates known.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

# What fields of kernels are annotated with: () or (D,), and ().
PerCoordinate = ArrayLike
Scalar = ArrayLike


def per_coordinate(name: str, value: ArrayLike, x: Array) -> Array:
    """Return a scalar, or one value for each coordinate shaped to broadcast against `x`.

    Args:
        name: name of the field, for the error.
        value: its value, () or (D,).
        x: points (..., D).

    Raises:
        ValueError: if `value` has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels._values import per_coordinate
        >>> per_coordinate("lengthscale", jnp.ones(3), jnp.zeros((5, 3))).shape
        (1, 3)
    """
    array = jnp.asarray(value, x.dtype)
    if array.ndim not in (0, 1) or array.shape not in ((), x.shape[-1:]):
        raise ValueError(
            f"`{name}` must be a scalar or one for each of the D = {x.shape[-1]} "
            f"coordinates; got shape {array.shape}."
        )
    return array if array.ndim == 0 else jnp.expand_dims(array, tuple(range(x.ndim - 1)))


def scalar(name: str, value: ArrayLike, x: Array) -> Array:
    """Return a scalar of the dtype of `x`.

    Raises:
        ValueError: if `value` is not a scalar.
    """
    array = jnp.asarray(value, x.dtype)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar; got shape {array.shape}.")
    return array
