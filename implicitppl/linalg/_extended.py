"""A factor extended by rows, and a covariance with noise and with missing rows."""

import math

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from implicitppl._core.cholesky import safe_cholesky


def with_noise(
    covariance: Float[Array, "N N"],
    noise_variance: Float[Array, " N"],
    observed: Bool[Array, " N"] | None,
) -> Float[Array, "N N"]:
    """Return C, with rows and columns of the identity where outputs are missing."""
    if observed is None:
        return covariance + jnp.diag(noise_variance)
    both = observed[:, None] & observed[None, :]
    diagonal = jnp.where(observed, noise_variance, 1)
    return jnp.where(both, covariance, 0) + jnp.diag(diagonal)


def extend_factor(
    factor: Float[Array, "N N"], cross: Float[Array, "N M"], corner: Float[Array, "M M"]
) -> tuple[Float[Array, "N+M N+M"], Float[Array, ""]]:
    """Return the factor of [[L L', cross], [cross', corner]], and the jitter that it took.

    What is factorised, corner - B' B, may be rounding alone (points seen before, a kernel of low
    rank): the jitter is relative to the corner, whose rounding it is. Where all variances are 0,
    it is the root of the smallest number, so that a known value has a factor too.
    """
    side = solve_triangular(factor, cross, lower=True)
    variance = jnp.mean(jnp.diagonal(corner))
    unit = jnp.where(variance > 0, variance, math.sqrt(jnp.finfo(corner.dtype).tiny))
    rest = corner - jnp.matmul(side.T, side, precision="highest")
    block, jitter, _ = safe_cholesky(rest, unit=unit)
    top = jnp.concatenate([factor, jnp.zeros_like(side)], axis=1)
    return jnp.concatenate([top, jnp.concatenate([side.T, block], axis=1)]), jitter
