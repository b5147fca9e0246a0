"""Affine coordinates of points: x = shift + scale z, with scores and divergences in both.

z = T^T (x - mu) and s_x = T s_z, with
    isotropic  T = I / max sd        rotations of the samples rotate the score
    diagonal   T = diag(1 / sd)      each coordinate may be rescaled on its own
    whitened   T = L^{-T}, cov = L L^T   every affine map of the samples is allowed

The score in the original coordinates is equivariant under the named group because z is invariant
(for the whitened metric from M = 5 (D + 1) on; with fewer samples the covariance is shrunk).

With C covariates a row is (c, x), and the score of x given c is grad_x log q(c, x): T is replaced
by P T, where P sets the first C coordinates of a score to 0. L is lower triangular, so the whitened
coordinates of x are the whitened residuals of its regression on c.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from implicitppl._core.moments import (
    Moments,
    moments,
    scaled_cholesky,
    shrinkage_amount,
    shrunk_covariance,
)

METRICS = ("isotropic", "diagonal", "whitened")


def check_metric(metric: str) -> None:
    """Raise unless `metric` is one of the three names."""
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}; got {metric!r}.")


class Frame(eqx.Module):
    """An affine change of coordinates x = shift + scale z.

    Attributes:
        shift: (D,).
        scale: () or (D,) multiply elementwise; (D, D) is a lower triangular factor L.
        inverse: L^{-1} where it is kept: in the loops of a sampler a product is cheaper than a
            triangular solve.
        num_covariates: C, the leading coordinates, in which scores are not taken.

    Points are rows; with a kept inverse or an elementwise scale any leading axes will do.
    """

    shift: Float[Array, " D"]
    scale: Float[Array, ""] | Float[Array, " D"] | Float[Array, "D D"]
    inverse: Float[Array, "D D"] | None = None
    num_covariates: int = eqx.field(static=True, default=0)

    def to(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return z for points x."""
        return self._divide(x - jnp.broadcast_to(self.shift, x.shape))

    def back(self, z: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return x for points z."""
        if self.scale.ndim < 2:
            moved = z * self._elementwise(z)
        elif self.inverse is None:
            moved = z @ self.scale.T
        else:
            moved = jnp.matmul(z, self.scale.T, precision="highest")
        return moved + jnp.broadcast_to(self.shift, z.shape)

    def score_to(self, s: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the score in z of a score in x: s_z = T^{-1} s_x, rows."""
        return s @ self.scale if self.scale.ndim == 2 else s * self._elementwise(s)

    def score_back(self, s: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the score in x of a score in z: s_x = P T s_z, rows."""
        if self.scale.ndim == 2:
            s = solve_triangular(self.scale, s.T, lower=True, trans=1).T
        else:
            s = s / self._elementwise(s)
        return s.at[:, : self.num_covariates].set(0) if self.num_covariates else s

    def trace_weight(self, v: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return v T^T P T, rows: with it a divergence in x is a contraction in z."""
        return self._divide(self.score_back(v))

    def is_finite(self) -> Bool[Array, ""]:
        """Return whether points can be mapped both ways."""
        return jnp.all(jnp.isfinite(self.scale if self.inverse is None else self.inverse))

    def _divide(self, v: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return T^T v: L^{-1} v for a factor."""
        if self.scale.ndim < 2:
            return v / self._elementwise(v)
        if self.inverse is None:
            return solve_triangular(self.scale, v.T, lower=True).T
        return jnp.matmul(v, self.inverse.T, precision="highest")

    def _elementwise(self, v: Array) -> Array:
        return self.scale if self.scale.ndim == 0 else jnp.broadcast_to(self.scale, v.shape)


def metric_frame(metric: str, m: Moments, num_covariates: int = 0) -> Frame:
    """Return the coordinates of a metric for samples with the given moments.

    Covariates have units of their own, so each is divided by its standard deviation in any metric.
    """
    variances = jnp.where(m.varies, jnp.diagonal(m.covariance), 1)
    if metric == "whitened":
        factor = scaled_cholesky(shrunk_covariance(m, shrinkage_amount(m)))
        return Frame(m.mean, factor, num_covariates=num_covariates)
    if metric == "diagonal":
        return Frame(m.mean, jnp.sqrt(variances), num_covariates=num_covariates)
    largest = jnp.max(jnp.diagonal(m.covariance)[num_covariates:])
    scale = jnp.where(largest > 0, largest, 1)
    if num_covariates:
        scale = jnp.where(jnp.arange(m.mean.shape[0]) < num_covariates, variances, scale)
    return Frame(m.mean, jnp.sqrt(scale), num_covariates=num_covariates)


def weighted_frame(
    x: Float[Array, "M D"],
    weights: Float[Array, " M"],
    *,
    dense: bool = True,
    correlated: float = 1.0,
) -> Frame:
    """Return coordinates in which weighted points have mean 0 and covariance about I.

    The inverse is kept. Shrinkage is that of `correlated` times fewer independent points; without
    `dense` only variances count.
    """
    m = moments(x, weights)
    m = m._replace(size=m.size / correlated)
    amount = shrinkage_amount(m) if dense else jnp.ones_like(m.size)
    return kept_inverse(m.mean, scaled_cholesky(shrunk_covariance(m, amount)))


def kept_inverse(shift: Float[Array, " D"], factor: Float[Array, "D D"]) -> Frame:
    """Return the coordinates of a lower triangular factor, with its inverse."""
    identity = jnp.eye(factor.shape[0], dtype=factor.dtype)
    return Frame(shift, factor, solve_triangular(factor, identity, lower=True))


def whitening_frame(samples: Float[Array, "N D"]) -> Frame:
    """Return the whitened coordinates of a sample; a coordinate that never moves keeps its unit.

    The correlation is shrunk by a = min(1, (D + 1) / N), so that a factor exists for few draws in
    many dimensions. Statistics computed in z do not depend on the units of x; the shrinkage changes
    the metric only, never whether an identity holds.
    """
    n, d = samples.shape
    mean = samples.mean(0)
    centred = samples - mean
    sd = jnp.sqrt(jnp.mean(centred**2, axis=0))
    sd = jnp.where(sd > 0, sd, jnp.ones_like(sd))
    standard = centred / sd
    correlation = standard.T @ standard / n
    # Shrunk, the smallest eigenvalue is at least `shrink`; the rounding floor covers very large N.
    shrink = min(1.0, (d + 1) / n)
    floor = max(shrink, 10 * d * float(jnp.finfo(samples.dtype).eps))
    eye = jnp.eye(d, dtype=samples.dtype)
    factor = jnp.linalg.cholesky((1 - floor) * correlation + floor * eye)
    return Frame(mean, sd[:, None] * factor)
