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

from implicitppl._core.checks import as_floating


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


def check_covariates(covariates: ArrayLike, samples: Float[Array, "M D"]) -> Float[Array, "M C"]:
    """Return covariates in the dtype of the samples, or raise what is wrong with them."""
    array = jnp.asarray(covariates).astype(samples.dtype)
    if array.ndim != 2 or array.shape[0] != samples.shape[0] or array.shape[1] < 1:
        raise ValueError(
            f"`covariates` must have shape (M, C) with M = {samples.shape[0]}, one row for each "
            f"sample, and C at least 1; got shape {array.shape}."
        )
    if not isinstance(array, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(array))):
        raise ValueError("`covariates` must be finite; got NaN or infinity.")
    return array


def check_query(
    x: ArrayLike, dimension: int, dtype: jnp.dtype, covariates: ArrayLike | None, num: int
) -> tuple[Float[Array, "... D"], Float[Array, "... C"] | None]:
    """Return a query and its covariates in the fit's dtype, or raise if a shape is wrong."""
    array = jnp.asarray(x)
    if array.ndim < 1 or array.shape[-1] != dimension:
        raise ValueError(
            f"`x` must have shape (D,) or (..., D) with D = {dimension}, the dimension of the "
            f"fitted samples; got shape {array.shape}."
        )
    if num == 0:
        if covariates is not None:
            raise ValueError("`covariates` were given, but the score was fitted without any.")
        return array.astype(dtype), None
    if covariates is None:
        raise ValueError(
            f"`covariates` of shape (C,) or (..., C) with C = {num} are needed: the score was "
            "fitted with them."
        )
    conditions = jnp.asarray(covariates).astype(dtype)
    if conditions.ndim < 1 or conditions.shape[-1] != num:
        raise ValueError(
            f"`covariates` must have shape (C,) or (..., C) with C = {num}; got shape "
            f"{conditions.shape}."
        )
    if conditions.ndim > array.ndim or any(
        size not in (1, other)
        for size, other in zip(conditions.shape[-2::-1], array.shape[-2::-1], strict=False)
    ):
        raise ValueError(
            f"`covariates` of shape {conditions.shape} do not fit `x` of shape {array.shape}: "
            "their leading axes must be those of `x`, or be missing."
        )
    return array.astype(dtype), conditions


def join_query(
    x: Float[Array, "... D"], covariates: Float[Array, "... C"] | None
) -> Float[Array, "N R"]:
    """Return rows (c, x) of a query whose shapes were checked."""
    if covariates is not None:
        shape = (*x.shape[:-1], covariates.shape[-1])
        x = jnp.concatenate([jnp.broadcast_to(covariates, shape), x], axis=-1)
    return x.reshape(-1, x.shape[-1])
