"""What observations tell a Gaussian process, kept so that nothing is factorised twice.

    y = f(x) + e,  e ~ N(0, diag(s^2)),      C = k(x, x) + diag(s^2) = L L',   w = C^-1 (y - m(x))

A missing output is a row of C that equals the identity, with y - m = 0: it takes no part in w, and
shapes stay what they are, so that data may be padded. New observations extend L by a block,

    | L        0 |      B = L^-1 k(x, x2),    H H' = k(x2, x2) + diag(s2^2) - B' B
    | B'       H |

at O(N^2) for each of them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl._core.cholesky import safe_cholesky
from implicitppl.gp._means import Mean
from implicitppl.kernels import Kernel
from implicitppl.linalg._extended import extend_factor, with_noise
from implicitppl.linalg._triangular import inverse_from_factor


class Evidence(eqx.Module):
    """Observations of a process and the factor of their covariance.

    Attributes:
        kernel, mean: of the process that was observed, before the observations.
        x: (N, D) inputs; y: (N,) outputs, 0 where missing.
        noise_variance: (N,).
        observed: (N,) booleans, or None where nothing is missing.
        factor: L, (N, N).
        weights: w, (N,).
        jitter: what was added to the diagonal to factorise, in units of the variance.
    """

    kernel: Kernel
    mean: Mean
    x: Float[Array, "N D"]
    y: Float[Array, " N"]
    noise_variance: Float[Array, " N"]
    observed: Bool[Array, " N"] | None
    factor: Float[Array, "N N"]
    weights: Float[Array, " N"]
    jitter: Float[Array, ""]

    @property
    def present(self) -> Float[Array, " N"]:
        """1 where an output was observed, 0 where it is missing."""
        if self.observed is None:
            return jnp.ones_like(self.y)
        return self.observed.astype(self.y.dtype)

    def cross(self, kernel: Kernel, x: Float[Array, "M D"]) -> Float[Array, "N M"]:
        """Return the covariance of the outputs with a function of `kernel` at new points."""
        return self.present[:, None] * kernel.gram(self.x, x)


@eqx.filter_jit
def gather(
    kernel: Kernel,
    mean: Mean,
    x: Float[Array, "N D"],
    y: Float[Array, " N"],
    noise_variance: Float[Array, " N"],
    observed: Bool[Array, " N"] | None,
) -> Evidence:
    """Return the evidence of observations, at O(N^3)."""
    factor, jitter, _ = safe_cholesky(with_noise(kernel.gram(x), noise_variance, observed))
    residual = _residual(mean, x, y, observed)
    weights = _solve(factor, residual)
    return Evidence(kernel, mean, x, y, noise_variance, observed, factor, weights, jitter)


@eqx.filter_jit
def extend(
    old: Evidence,
    x: Float[Array, "M D"],
    y: Float[Array, " M"],
    noise_variance: Float[Array, " M"],
    observed: Bool[Array, " M"] | None,
) -> Evidence:
    """Return the evidence of old and new observations, at O(N^2 M + M^3)."""
    corner = with_noise(old.kernel.gram(x), noise_variance, observed)
    present = jnp.ones_like(y) if observed is None else observed.astype(y.dtype)
    cross = old.cross(old.kernel, x) * present[None, :]
    factor, jitter = extend_factor(old.factor, cross, corner)
    both_observed = None
    if old.observed is not None or observed is not None:
        both_observed = jnp.concatenate([old.present, present]) > 0
    all_x, all_y = jnp.concatenate([old.x, x]), jnp.concatenate([old.y, y])
    residual = _residual(old.mean, all_x, all_y, both_observed)
    return Evidence(
        old.kernel,
        old.mean,
        all_x,
        all_y,
        jnp.concatenate([old.noise_variance, noise_variance]),
        both_observed,
        factor,
        _solve(factor, residual),
        jnp.maximum(jitter, old.jitter),
    )


def left_out(evidence: Evidence) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Return mean and variance of every output given all the others, at O(N^3).

    mean_i = y_i - w_i / C^-1_ii,  variance_i = 1 / C^-1_ii. Where an output is missing, nothing
    was left out; the caller replaces those rows.

    Reference: Rasmussen and Williams, equation (5.12).
    """
    precision = jnp.diagonal(inverse_from_factor(evidence.factor))
    return evidence.y - evidence.weights / precision, 1 / precision


def check_factor(evidence: Evidence) -> Evidence:
    """Return the evidence, or raise `ValueError` where its covariance has no factor."""
    corner: Any = evidence.factor[-1, -1]
    if not isinstance(corner, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(evidence.factor))):
        diagonal = evidence.kernel.diag(evidence.x)
        raise ValueError(
            "the covariance of the outputs is not positive definite, not even with jitter: "
            f"variances from {float(jnp.min(diagonal)):.3g} to {float(jnp.max(diagonal)):.3g}, "
            f"noise variance from {float(jnp.min(evidence.noise_variance)):.3g}, in "
            f"{evidence.y.dtype}. Check the kernel's parameters, raise `noise_scale`, or use "
            "float64 (`numpyro.enable_x64()`)."
        )
    return evidence


def _residual(
    mean: Mean, x: Array, y: Array, observed: Bool[Array, " N"] | None
) -> Float[Array, " N"]:
    residual = y - mean.at(x)
    return residual if observed is None else jnp.where(observed, residual, 0)


def _solve(factor: Array, residual: Array) -> Array:
    return jax.scipy.linalg.cho_solve((factor, True), residual)
