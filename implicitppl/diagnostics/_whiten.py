"""Whitened coordinates of a sample: `z = L^-1 (x - m)`, so that scores turn into `L^T s_x`.

`C = L L^T` is the sample covariance, shrunk towards its diagonal by `a = min(1, (D + 1) / N)`, so
that `L` exists for few draws in many dimensions. Statistics computed in `z` do not depend on the
units of `x`; the shrinkage changes the metric only, never whether an identity holds.

Shapes: samples and scores `(N, D)`, `L` `(D, D)`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float


class Whitening(NamedTuple):
    """Mean `m` and lower Cholesky factor `L` of the shrunk covariance of a sample."""

    mean: Float[Array, " D"]
    factor: Float[Array, "D D"]

    def points(self, samples: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """`L^-1 (x - m)` of every row."""
        return solve_triangular(self.factor, (samples - self.mean).T, lower=True).T

    def scores(self, scores: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """`L^T s` of every row: the gradient with respect to the whitened point."""
        return scores @ self.factor

    def invert(self, points: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """`m + L z` of every row."""
        return self.mean + points @ self.factor.T


def whitening_of(samples: Float[Array, "N D"]) -> Whitening:
    """The whitening of a sample; a coordinate that never moves keeps its own unit."""
    n, d = samples.shape
    mean = samples.mean(0)
    centred = samples - mean
    sd = jnp.sqrt(jnp.mean(centred**2, axis=0))
    sd = jnp.where(sd > 0, sd, jnp.ones_like(sd))
    unit = centred / sd
    correlation = unit.T @ unit / n
    shrink = min(1.0, (d + 1) / n)
    # Shrunk, the smallest eigenvalue is at least `shrink`; the rounding floor covers very large N.
    floor = max(shrink, 10 * d * float(jnp.finfo(samples.dtype).eps))
    eye = jnp.eye(d, dtype=samples.dtype)
    factor = jnp.linalg.cholesky((1 - floor) * correlation + floor * eye)
    return Whitening(mean, sd[:, None] * factor)
