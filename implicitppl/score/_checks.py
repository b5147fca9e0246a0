"""Checks of samples and queries at the boundary: what is wrong, with the value, as a ValueError.

Shapes are known while tracing and are always checked. Values are checked when they are known;
inside `jit` a non-finite sample is reported by `FittedScore.info.finite` instead, because a raise
inside a compiled step costs more than the step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def as_floating(value: ArrayLike) -> Array:
    """Return an array of a floating dtype: that of `value` if it has one, else the default."""
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def check_samples(samples: ArrayLike, *, min_samples: int = 2) -> Float[Array, "M D"]:
    """Return `samples` as a floating (M, D) array, or raise what is wrong with it."""
    array = as_floating(samples)
    if array.ndim != 2:
        raise ValueError(
            f"`samples` must have shape (M, D), one sample in each row; got shape {array.shape}. "
            "For several banks (B, M, D) use `jax.vmap(estimator.fit)`."
        )
    if array.shape[0] < min_samples:
        raise ValueError(
            f"`samples` must hold at least {min_samples} samples; got {array.shape[0]}."
        )
    if array.shape[1] < 1:
        raise ValueError(f"`samples` must have at least one coordinate; got shape {array.shape}.")
    if not isinstance(array, jax.core.Tracer):
        bad = int(np.sum(~np.all(np.isfinite(np.asarray(array)), axis=1)))
        if bad:
            raise ValueError(f"`samples` must be finite; got NaN or infinity in {bad} rows.")
    return array


def check_weights(weights: ArrayLike, samples: Float[Array, "M D"]) -> Float[Array, " M"]:
    """Return weights that sum to one, or raise what is wrong with them."""
    array = jnp.asarray(weights).astype(samples.dtype)
    if array.shape != samples.shape[:1]:
        raise ValueError(
            f"`weights` must have shape (M,) = {samples.shape[:1]}; got shape {array.shape}."
        )
    if not isinstance(array, jax.core.Tracer):
        if not bool(jnp.all(jnp.isfinite(array) & (array >= 0))):
            raise ValueError(f"`weights` must be finite and non-negative; got min {array.min()}.")
        if int(jnp.sum(array > 0)) < 2:
            raise ValueError("`weights` must be positive for at least 2 samples.")
    return array / jnp.sum(array)


def check_weighted(
    samples: ArrayLike, weights: ArrayLike | None
) -> tuple[Float[Array, "M D"], Float[Array, " M"] | None]:
    """Return checked samples, and checked weights where there are any."""
    array = check_samples(samples)
    return array, None if weights is None else check_weights(weights, array)


def check_key(key: Array) -> None:
    """Raise unless `key` is one JAX random key, of the new kind or the old."""
    array = jnp.asarray(key)
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if array.ndim != (0 if typed else 1):
        raise ValueError(
            "`key` must be one random key, such as jax.random.key(0); got "
            f"{array.dtype} of shape {array.shape}."
        )


def or_equal(weights: Array | None, samples: Float[Array, "M D"]) -> Float[Array, " M"]:
    """Return the weights, or equal ones that sum to one."""
    if weights is not None:
        return weights
    return jnp.full((samples.shape[0],), 1 / samples.shape[0], samples.dtype)


def check_query(x: ArrayLike, dimension: int, dtype: jnp.dtype) -> Float[Array, "... D"]:
    """Return the query as an array of the fit's dtype, or raise if its dimension is wrong."""
    array = jnp.asarray(x)
    if array.ndim < 1 or array.shape[-1] != dimension:
        raise ValueError(
            f"`x` must have shape (D,) or (..., D) with D = {dimension}, the dimension of the "
            f"fitted samples; got shape {array.shape}."
        )
    return array.astype(dtype)
