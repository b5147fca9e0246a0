"""The log density of a normal vector whose covariance matrix is known, and its derivatives.

    log N(r; 0, K) = -1/2 r' K^-1 r - sum_i log L_ii - N/2 log 2 pi,       K = L L'
    d log N        =  1/2 tr((a a' - K^-1) dK) - a' dr,                    a = K^-1 r

The derivative needs the inverse once, and not that of the factorisation. The rule is written in
forward mode, so that both modes and second derivatives work.

Rasmussen and Williams, Gaussian Processes for Machine Learning, equations (5.8) and (5.9).
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from implicitppl._core.cholesky import safe_cholesky
from implicitppl.linalg._triangular import inverse_from_factor


def normal_log_density(
    residuals: Float[Array, "S N"], covariance: Float[Array, "M M"]
) -> Float[Array, " S"]:
    """Return log N(r_s; 0, K) for every row r_s, with derivatives in closed form.

    The least jitter that makes K positive definite is added (`safe_cholesky`).

    Args:
        residuals: values less their means, one vector in each row.
        covariance: symmetric K.

    Returns:
        (S,) log densities; NaN where K has no factor even with jitter, or is not finite.

    Cost O(N^3 + S N^2); a gradient costs O(N^3) more, whatever the number of parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.linalg import normal_log_density
        >>> round(float(normal_log_density(jnp.zeros((1, 2)), jnp.eye(2))[0]), 4)
        -1.8379
    """
    if covariance.shape != (residuals.shape[-1],) * 2:
        raise ValueError(
            f"`covariance` must be ({residuals.shape[-1]}, {residuals.shape[-1]}), as `residuals` "
            f"have {residuals.shape[-1]} columns; got shape {covariance.shape}."
        )
    return _log_density(residuals, covariance)


@jax.custom_jvp
def _log_density(residuals: Array, covariance: Array) -> Array:
    return _with_factor(residuals, covariance)[0]


def _with_factor(residuals: Array, covariance: Array) -> tuple[Array, Array]:
    factor = safe_cholesky(covariance).factor
    white = solve_triangular(factor, residuals.T, lower=True)
    constant = 0.5 * residuals.shape[-1] * math.log(2 * math.pi)
    log_root = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -0.5 * jnp.sum(white * white, axis=0) - log_root - constant, factor


@_log_density.defjvp
def _log_density_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (residuals, covariance), (change, covariance_change) = primals, tangents
    value, factor = _with_factor(residuals, covariance)
    inverse = inverse_from_factor(factor)
    weights = jnp.matmul(residuals, inverse, precision="highest")
    quadratic = jnp.sum(jnp.matmul(weights, covariance_change) * weights, axis=1)
    slope = 0.5 * (quadratic - jnp.sum(inverse * covariance_change))
    return value, slope - jnp.sum(weights * change, axis=1)
