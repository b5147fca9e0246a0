"""KL divergence of normal values, the same noise added to both sides.

    KL[ N(m1, C1 + r I) || N(m2, C2 + r I) ]

A guide with finitely many weights and a prior that is no such network have no common density, and
their KL is infinite: at r = 0 it grows without end as points are added. With r fixed it is finite
at every set of points; with r = g n, for n points, it converges as the set grows.

Burt et al. (2021), arXiv 2011.09421; Cinquin and Bamler (2024), arXiv 2406.04317.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.cholesky import safe_cholesky
from implicitppl.linalg._triangular import inverse_from_factor


class Moments(NamedTuple):
    """Mean (n,) and covariance (n, n) of the values of a process at n points."""

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]

    @property
    def mean_variance(self) -> Float[Array, ""]:
        """The variance of a value, averaged over the points: the unit of noise."""
        return jnp.mean(jnp.diagonal(self.covariance))


def sample_moments(values: Float[Array, "S n"]) -> Moments:
    """Return moments of draws, the covariance with divisor S.

    With that divisor E |f - m|^2 over the particles is |mean - m|^2 plus the trace, exactly.
    """
    mean = jnp.mean(values, axis=0)
    centred = values - mean
    covariance = jnp.matmul(centred.T, centred, precision="highest") / values.shape[0]
    return Moments(mean, covariance)


def gaussian_kl(q: Moments, p: Moments, ridge: Any = 0.0) -> Float[Array, ""]:
    """Return KL[q || p] in nats, with `ridge` added to the variances of both.

    Cost O(n^3); derivatives are in closed form, from the two inverses.
    """
    added = ridge * jnp.eye(q.mean.shape[0], dtype=q.mean.dtype)
    return _kl(q.mean - p.mean, q.covariance + added, p.covariance + added)


@jax.custom_jvp
def _kl(shift: Array, of_q: Array, of_p: Array) -> Array:
    return _with_inverses(shift, of_q, of_p)[0]


def _with_inverses(shift: Array, of_q: Array, of_p: Array) -> tuple[Array, Array, Array]:
    """Return the KL and the inverses of both covariances."""
    lower_q, lower_p = safe_cholesky(of_q).factor, safe_cholesky(of_p).factor
    inverse = inverse_from_factor(lower_p)
    log_ratio = jnp.log(jnp.diagonal(lower_p)) - jnp.log(jnp.diagonal(lower_q))
    square = jnp.sum(inverse * of_q) + shift @ inverse @ shift
    value = 0.5 * (square - shift.shape[0]) + jnp.sum(log_ratio)
    return value, inverse_from_factor(lower_q), inverse


@_kl.defjvp
def _kl_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    (shift, of_q, of_p), (move, change_q, change_p) = primals, tangents
    value, inverse_q, inverse_p = _with_inverses(shift, of_q, of_p)
    pull = inverse_p @ shift
    seen = inverse_p - inverse_p @ of_q @ inverse_p - jnp.outer(pull, pull)
    slope = 0.5 * jnp.sum((inverse_p - inverse_q) * change_q) + 0.5 * jnp.sum(seen * change_p)
    return value, slope + pull @ move


def masked(moments: Moments, keep: Array, fill: Any) -> Moments:
    """Return the moments of some of the values; the others are independent of variance `fill`.

    Two sides masked alike have the KL of the kept values alone, at static shapes.
    """
    both = keep[:, None] & keep[None, :]
    diagonal = fill * jnp.diag(jnp.where(keep, 0.0, 1.0).astype(moments.mean.dtype))
    covariance = jnp.where(both, moments.covariance, 0) + diagonal
    return Moments(jnp.where(keep, moments.mean, 0), covariance)
