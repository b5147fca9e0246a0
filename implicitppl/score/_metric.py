"""Coordinates in which the kernel measures distance.

z = T^T (x - mu) and s_x = T s_z, with
    isotropic  T = I / max sd        rotations of the samples rotate the score
    diagonal   T = diag(1 / sd)      each coordinate may be rescaled on its own
    whitened   T = L^{-T}, cov = L L^T   every affine map of the samples is allowed

The score in the original coordinates is equivariant under the named group because z is invariant
(for the whitened metric from M = 5 (D + 1) on; with fewer samples the covariance is shrunk).
"""

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from implicitppl.score._moments import Moments, scaled_cholesky, shrinkage_amount, shrunk_covariance

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
    """

    shift: Float[Array, " D"]
    scale: Float[Array, ""] | Float[Array, " D"] | Float[Array, "D D"]

    def to_metric(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return z for rows x."""
        return self._divide(x - self.shift[None, :])

    def score_to_metric(self, s: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the score in z of a score in x: s_z = T^{-1} s_x, rows."""
        return s @ self.scale if self.scale.ndim == 2 else s * self._row()

    def score_from_metric(self, s: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the score in x of a score in z: s_x = T s_z, rows."""
        if self.scale.ndim == 2:
            return solve_triangular(self.scale, s.T, lower=True, trans=1).T
        return s / self._row()

    def trace_weight(self, v: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return v T^T T, rows: with it a divergence in x is a contraction in z."""
        return self._divide(self.score_from_metric(v))

    def _divide(self, v: Array) -> Array:
        """Return T^T v, rows: L^{-1} v."""
        if self.scale.ndim == 2:
            return solve_triangular(self.scale, v.T, lower=True).T
        return v / self._row()

    def _row(self) -> Array:
        return self.scale if self.scale.ndim == 0 else self.scale[None, :]


def coordinates(metric: str, m: Moments) -> Coordinates:
    """Return the coordinates of a metric for samples with the given moments."""
    variances = jnp.where(m.varies, jnp.diagonal(m.covariance), 1)
    if metric == "whitened":
        covariance = shrunk_covariance(m, shrinkage_amount(m))
        return Coordinates(m.mean, scaled_cholesky(covariance))
    if metric == "diagonal":
        return Coordinates(m.mean, jnp.sqrt(variances))
    largest = jnp.max(jnp.diagonal(m.covariance))
    return Coordinates(m.mean, jnp.sqrt(jnp.where(largest > 0, largest, 1)))
