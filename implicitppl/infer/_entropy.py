"""The largest entropy that a cloud of particles can have: that of a Gaussian with its covariance.

H(q) <= log det(2 pi e Cov q) / 2 (maximum entropy). The log determinant of a sample covariance is
biased low; for Gaussian data the bias is known exactly (Wishart), and it is removed:

    E log det S = log det C + sum_i digamma((n + 1 - i) / 2) + D log(2 / n),   n = P - 1.

With P - 1 <= D particles the covariance is singular, and the sum of the coordinates' bounds is
used, which is larger.
"""

import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, Float

LOG_2PI_E = 2.8378770664093453


def gaussian_entropy(particles: Float[Array, "P D"]) -> Float[Array, ""]:
    """Returns an estimate of log det(2 pi e Cov) / 2, an upper bound of the particles' entropy."""
    count, size = particles.shape
    degrees = count - 1
    centred = particles - jnp.mean(particles, axis=0)
    if degrees <= size:
        log_variance = jnp.log(jnp.sum(centred**2, axis=0) / degrees)
        log_det = jnp.sum(log_variance) - size * _log_det_bias(degrees, 1)
    else:
        covariance = centred.T @ centred / degrees
        log_det = jnp.linalg.slogdet(covariance)[1] - _log_det_bias(degrees, size)
    return 0.5 * (size * LOG_2PI_E + log_det)


def _log_det_bias(degrees: int, size: int) -> Array:
    steps = jnp.arange(size)
    return jnp.sum(digamma((degrees - steps) / 2) + jnp.log(2 / degrees))
