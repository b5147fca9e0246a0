"""Curl-free kernels: vector fields that are gradients, so that the score has a log density.

From a radial profile psi(q), q = |r|^2, r = x - y, with G_n = psi^(n)(q),

    Kmat(x, y)   = -2 G_1 I - 4 G_2 r r^T
    div_y Kmat   = h r,  h = 4 [(D + 2) G_2 + 2 q G_3]
    energy       : grad_x (-2 G_1 r.c) = Kmat c,   grad_x (2 D G_1 + 4 q G_2) = div_y Kmat

and, for a weight W (the metric), sum_ij W_ij d(Kmat c)_i / dx_j = -8 G_2 r.Wc
- (r.c) (8 G_3 r.Wr + 4 G_2 tr W), and for h r: h tr W + 2 h' r.Wr. Every contraction is a product
of matrices: no array of shape N x M x D.

Zhou, Shi, Zhu, ICML 2020, section 4; Sriperumbudur et al., JMLR 18 (2017).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.frames import Frame
from implicitppl.kernels import Radial
from implicitppl.kernels._distances import squared_distances
from implicitppl.score._field import GradientField


class Profile(NamedTuple):
    """Derivatives G_1 .. G_4 of psi(q), and q, for every pair of points."""

    q: Float[Array, "N M"]
    g1: Float[Array, "N M"]
    g2: Float[Array, "N M"]
    g3: Float[Array, "N M"]
    g4: Float[Array, "N M"]


def profile(kernel: Radial, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None) -> Profile:
    """Return the derivatives of an isotropic smooth kernel; unused ones cost nothing under jit."""
    q = squared_distances(X, Y)
    scale = jnp.square(jnp.asarray(kernel.lengthscale, q.dtype))
    variance = jnp.asarray(kernel.variance, q.dtype)

    def slope(t: Array) -> Array:
        return kernel.profile_slope(t)

    def second(t: Array) -> Array:
        return jax.jvp(slope, (t,), (jnp.ones_like(t),))[1]

    def third(t: Array) -> Array:
        return jax.jvp(second, (t,), (jnp.ones_like(t),))[1]

    def fourth(t: Array) -> Array:
        return jax.jvp(third, (t,), (jnp.ones_like(t),))[1]

    t = q / scale
    return Profile(
        q,
        variance * slope(t) / scale,
        variance * second(t) / scale**2,
        variance * third(t) / scale**3,
        variance * fourth(t) / scale**4,
    )


def apply(
    p: Profile, X: Float[Array, "N D"], Y: Float[Array, "M D"], C: Float[Array, "M D"]
) -> Float[Array, "N D"]:
    """Return sum_m Kmat(x_i, y_m) c_m."""
    along = p.g2 * _inner(X, Y, C)
    radial = jnp.sum(along, axis=1)[:, None] * X - _dot(along, Y)
    return -2 * _dot(p.g1, C) - 4 * radial


def mean_divergence(
    p: Profile, X: Float[Array, "N D"], Y: Float[Array, "M D"], w: Float[Array, " M"]
) -> Float[Array, "N D"]:
    """Return zeta(x_i) = sum_m w_m div_{y_m} Kmat(x_i, y_m)."""
    weighted = _divergence_profile(p, X.shape[1]) * w[None, :]
    return jnp.sum(weighted, axis=1)[:, None] * X - _dot(weighted, Y)


def _divergence_profile(p: Profile, dimension: int) -> Float[Array, "N M"]:
    return 4 * ((dimension + 2) * p.g2 + 2 * p.q * p.g3)


def _inner(X: Array, Y: Array, C: Array) -> Float[Array, "N M"]:
    """Return (x_i - y_m) . c_m."""
    return _dot(X, C.T) - jnp.sum(Y * C, axis=1)[None, :]


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


class CurlFreeExpansion(GradientField):
    """s_z = sum_m [Kmat(z, y_m) c_m + a w_m div Kmat(z, y_m)], in the metric's coordinates."""

    kernel: Radial
    coordinates: Frame
    centres: Float[Array, "M D"]
    coefficients: Float[Array, "M D"]
    weights: Float[Array, " M"]

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the kernel part of the score for every row."""
        z = self.coordinates.to(x)
        p = profile(self.kernel, z, self.centres)
        value = apply(p, z, self.centres, self.coefficients)
        value = value + mean_divergence(p, z, self.centres, self.weights)
        return self.coordinates.score_back(value)

    def divergence(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the divergence of the kernel part for every row."""
        z, y, dimension = self.coordinates.to(x), self.centres, x.shape[1]
        p = profile(self.kernel, z, y)
        c, wc = self.coefficients, self.coordinates.trace_weight(self.coefficients)
        wy, wz = self.coordinates.trace_weight(y), self.coordinates.trace_weight(z)
        trace = jnp.trace(self.coordinates.trace_weight(jnp.eye(dimension, dtype=x.dtype)))
        # r.Wr = z.Wz - 2 z.Wy + y.Wy
        square = jnp.sum(z * wz, axis=1)[:, None] - 2 * _dot(z, wy.T)
        square = jnp.maximum(square + jnp.sum(y * wy, axis=1)[None, :], 0)
        first = -8 * p.g2 * _inner(z, y, wc)
        first = first - _inner(z, y, c) * (8 * p.g3 * square + 4 * p.g2 * trace)
        h = _divergence_profile(p, dimension)
        slope = 4 * ((dimension + 4) * p.g3 + 2 * p.q * p.g4)
        second = _dot(h * trace + 2 * slope * square, self.weights)
        return jnp.sum(first, axis=1) + second

    def log_density(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the log density of which `score` is the gradient, up to a constant."""
        z, dimension = self.coordinates.to(x), x.shape[1]
        p = profile(self.kernel, z, self.centres)
        first = -2 * jnp.sum(p.g1 * _inner(z, self.centres, self.coefficients), axis=1)
        return first + _dot(2 * dimension * p.g1 + 4 * p.q * p.g2, self.weights)
