"""Kernels of functions that repeat: a point becomes an angle, and angles lie on a circle.

    Periodic:  k = v exp(-2 sum_d sin^2(pi (x_d - y_d) / p_d) / l_d^2)
    Cosine:    k = v cos(2 pi sum_d mu_d (x_d - y_d))

With c(x) = (cos(2 pi x / p), sin(2 pi x / p)), the points on the circle, 4 sin^2(pi (x - y) / p) =
|c(x) - c(y)|^2: the first kernel is the Gaussian one between points on circles of radius 1/l, and
the second is the inner product of two points on one circle. Both matrices are products of features.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._distances import squared_distances
from implicitppl.kernels._fields import positive, real
from implicitppl.kernels._values import PerCoordinate, Scalar, per_coordinate, scalar


def centre_of(X: Array, Y: Array | None) -> Array:
    """Return the mean point (1, D): angles of distant points would round by more than 2 pi."""
    return jax.lax.stop_gradient(jnp.mean(X if Y is None else Y, axis=0))[None, :]


def circle(cycles: Array) -> tuple[Array, Array]:
    """Return the cosine and sine of 2 pi `cycles`, whole cycles removed before they round."""
    angle = 2 * jnp.pi * (cycles - jnp.round(cycles))
    return jnp.cos(angle), jnp.sin(angle)


class Periodic(Kernel):
    """Periodic kernel v exp(-2 sum_d sin^2(pi (x_d - y_d) / p_d) / l_d^2).

    Args:
        lengthscale: l, in units of the circle and not of the data: below 1 the function varies
            within a period, above 2 it is nearly a sinusoid; a scalar, or (D,).
        variance: v.
        period: p, in data units; a scalar, or one for each coordinate (D,).

    Cost of `gram` O(N M D), one matrix product. In float32 its absolute error is about v times
    2e-7 D / l^2, and 1e-7 / l for each period of range. The function repeats for ever: multiply
    by an `RBF` to let its shape drift.

    Reference: MacKay (1998), Introduction to Gaussian processes; the form of scikit-learn's
    `ExpSineSquared`. Others have l^2 where this has l^2 / 4 or l: see the page on kernels.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Periodic
        >>> k = Periodic(period=12.0)
        >>> round(float(k(jnp.array([1.0]), jnp.array([7.0]))), 4)  # half a period: exp(-2)
        0.1353
    """

    lengthscale: PerCoordinate = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")
    period: PerCoordinate = positive(1.0, kind="period")

    def __check_init__(self) -> None:
        for name in ("lengthscale", "variance", "period"):
            check_positive(name, getattr(self, name))

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        sine = jnp.sin(jnp.pi * ((x - y) / per_coordinate("period", self.period, x)))
        chord = 2 * sine / per_coordinate("lengthscale", self.lengthscale, x)
        return scalar("variance", self.variance, x) * jnp.exp(-0.5 * jnp.sum(chord * chord))

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        Y = None if X is Y else Y
        centre = centre_of(X, Y)
        other = None if Y is None else self._points_on_circles(Y - centre)
        squared = squared_distances(self._points_on_circles(X - centre), other)
        return scalar("variance", self.variance, X) * jnp.exp(-0.5 * squared)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.full((X.shape[0],), scalar("variance", self.variance, X))

    def _points_on_circles(self, X: Array) -> Array:
        """Return (N, 2 D): the points on circles of radius 1 / l."""
        cosine, sine = circle(X / per_coordinate("period", self.period, X))
        lengthscale = per_coordinate("lengthscale", self.lengthscale, X)
        return jnp.concatenate([cosine / lengthscale, sine / lengthscale], axis=1)


class Cosine(Kernel):
    """Cosine kernel v cos(2 pi sum_d mu_d (x_d - y_d)): plane waves of one frequency.

    Args:
        frequency: mu, in cycles per data unit, of any sign; a scalar (the same in every
            coordinate), or one for each coordinate (D,). Only its sign as a whole is free.
        variance: v.

    Cost of `gram` O(N M + (N + M) D). The matrix has rank two. A likelihood has many maxima in
    the frequency: start at one read off the data, see `SpectralMixture.from_data`.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Cosine
        >>> k = Cosine(frequency=0.5)  # period 2
        >>> [round(float(k(jnp.array([0.0]), jnp.array([d]))), 4) for d in (1.0, 2.0)]
        [-1.0, 1.0]
    """

    frequency: PerCoordinate = real(1.0, kind="frequency")
    variance: Scalar = positive(1.0, kind="variance")

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        cycles = jnp.sum((x - y) * per_coordinate("frequency", self.frequency, x))
        return scalar("variance", self.variance, x) * circle(cycles)[0]

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        centre = centre_of(X, Y)
        cosine, sine = self._wave(X - centre)
        other_cosine, other_sine = (cosine, sine) if Y is None else self._wave(Y - centre)
        # Two outer products rather than a matrix product: symmetric to the last bit.
        product = cosine[:, None] * other_cosine[None, :] + sine[:, None] * other_sine[None, :]
        return scalar("variance", self.variance, X) * product

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.full((X.shape[0],), scalar("variance", self.variance, X))

    def _wave(self, X: Array) -> tuple[Array, Array]:
        return circle(jnp.sum(X * per_coordinate("frequency", self.frequency, X), axis=1))
