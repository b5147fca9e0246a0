"""Differences of marginals between two samples, in units of the reference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import as_matrix


class MarginalDifferences(NamedTuple):
    """Per scalar `(P,)`: shifts in reference sd, sd ratio, largest correlation difference."""

    mean_shift: Float[Array, " P"]
    sd_ratio: Float[Array, " P"]
    q05_shift: Float[Array, " P"]
    q95_shift: Float[Array, " P"]
    corr_diff: Float[Array, " P"]


@jax.jit
def _differences(x: Array, y: Array) -> MarginalDifferences:
    m, s = x.mean(0), x.std(0, ddof=1)
    s = jnp.where(s > 0, s, jnp.ones_like(s))
    levels = jnp.array([0.05, 0.95], x.dtype)
    shift = (jnp.quantile(y, levels, axis=0) - jnp.quantile(x, levels, axis=0)) / s
    corr = jnp.abs(_correlation(x) - _correlation(y))
    return MarginalDifferences(
        (y.mean(0) - m) / s, y.std(0, ddof=1) / s, shift[0], shift[1], corr.max(1)
    )


def _correlation(x: Array) -> Array:
    """Correlation matrix; a constant column has correlation 0 with all others."""
    c = x - x.mean(0)
    norm = jnp.sqrt(jnp.sum(c**2, 0))
    c = c / jnp.where(norm > 0, norm, jnp.ones_like(norm))
    return c.T @ c


def marginal_differences(
    reference: Float[Array, "N P"], draws: Float[Array, "M P"]
) -> MarginalDifferences:
    """The five numbers of `compare` for every column, as arrays."""
    x = as_matrix("reference", reference)
    y = as_matrix("draws", draws).astype(x.dtype)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`draws` must have {x.shape[1]} columns; got {y.shape[1]}.")
    return _differences(x, y)
