"""Coordinates in which the kernel measures distance.

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
from jaxtyping import Array, Float

from implicitppl._core.moments import Moments, scaled_cholesky, shrinkage_amount, shrunk_covariance

METRICS = ("isotropic", "diagonal", "whitened")


def check_metric(metric: str) -> None:
    """Raise unless `metric` is one of the three names."""
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}; got {metric!r}.")


class Coordinates(eqx.Module):
    """An affine change of coordinates x = shift + scale z.

    Attributes:
        shift: (D,).
        scale: () or (D,) multiply elementwise; (D, D) is a lower triangular factor L.
        num_covariates: C, the leading coordinates, in which scores are not taken.
    """

    shift: Float[Array, " D"]
    scale: Float[Array, ""] | Float[Array, " D"] | Float[Array, "D D"]
    num_covariates: int = eqx.field(static=True, default=0)

    def to_metric(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return z for rows x."""
        return self._divide(x - self.shift[None, :])

    def from_metric(self, z: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return x for rows z."""
        moved = z @ self.scale.T if self.scale.ndim == 2 else z * self._row()
        return self.shift[None, :] + moved

    def score_to_metric(self, s: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the score in z of a score in x: s_z = T^{-1} s_x, rows."""
        return s @ self.scale if self.scale.ndim == 2 else s * self._row()

    def score_from_metric(self, s: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the score in x of a score in z: s_x = P T s_z, rows."""
        if self.scale.ndim == 2:
            s = solve_triangular(self.scale, s.T, lower=True, trans=1).T
        else:
            s = s / self._row()
        return s.at[:, : self.num_covariates].set(0) if self.num_covariates else s

    def trace_weight(self, v: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return v T^T P T, rows: with it a divergence in x is a contraction in z."""
        return self._divide(self.score_from_metric(v))

    def _divide(self, v: Array) -> Array:
        """Return T^T v, rows: L^{-1} v."""
        if self.scale.ndim == 2:
            return solve_triangular(self.scale, v.T, lower=True).T
        return v / self._row()

    def _row(self) -> Array:
        return self.scale if self.scale.ndim == 0 else self.scale[None, :]


def coordinates(metric: str, m: Moments, num_covariates: int = 0) -> Coordinates:
    """Return the coordinates of a metric for samples with the given moments.

    Covariates have units of their own, so each is divided by its standard deviation in any metric.
    """
    variances = jnp.where(m.varies, jnp.diagonal(m.covariance), 1)
    if metric == "whitened":
        covariance = shrunk_covariance(m, shrinkage_amount(m))
        return Coordinates(m.mean, scaled_cholesky(covariance), num_covariates)
    if metric == "diagonal":
        return Coordinates(m.mean, jnp.sqrt(variances), num_covariates)
    largest = jnp.max(jnp.diagonal(m.covariance)[num_covariates:])
    scale = jnp.where(largest > 0, largest, 1)
    if num_covariates:
        scale = jnp.where(jnp.arange(m.mean.shape[0]) < num_covariates, variances, scale)
    return Coordinates(m.mean, jnp.sqrt(scale), num_covariates)
