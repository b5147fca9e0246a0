"""The complex plane wave v exp(2 pi i mu.(x - y)), a primitive of complex kernel networks.

Its matrices are Hermitian and positive semi-definite, and so are their sums with weights >= 0,
products and power series; the real part of a Hermitian positive semi-definite matrix is a
covariance, because a' Re(K) a = a^H K a for real a. What complex values gain: two waves multiply
to one of the sum of their frequencies, two cosines to a sum and a difference.

Sun et al. (2018), arXiv 1806.04326, section 3, complex-valued kernels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from implicitppl._core.checks import check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._fields import positive, real
from implicitppl.kernels._periodic import centre_of, circle
from implicitppl.kernels._values import PerCoordinate, Scalar, per_coordinate, scalar


class PlaneWave(Kernel):
    """Plane wave v exp(2 pi i mu.(x - y)): complex, for `NeuralKernelNetwork` only.

    Args:
        frequency: mu, in cycles per data unit, of any sign; a scalar (the same in every
            coordinate), or one for each coordinate (D,).
        variance: v.

    Not a covariance by itself: `gram` is Hermitian. A network takes the real part of its last
    unit; of a lone wave that is `Cosine`. Complex planes double the memory of a tile.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import PlaneWave
        >>> k = PlaneWave(frequency=0.25)
        >>> abs(k(jnp.array([1.0]), jnp.array([0.0])) - 1j) < 1e-6
        Array(True, dtype=bool)
    """

    frequency: PerCoordinate = real(1.0, kind="frequency")
    variance: Scalar = positive(1.0, kind="variance")

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Complex[Array, ""]:
        cycles = jnp.sum((x - y) * per_coordinate("frequency", self.frequency, x))
        return jax.lax.complex(*self._scaled(circle(cycles), x))

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        centre = centre_of(X, Y)
        cosine, sine = self._wave(X - centre)
        other_cosine, other_sine = (cosine, sine) if Y is None else self._wave(Y - centre)
        parts = (
            cosine[:, None] * other_cosine[None, :] + sine[:, None] * other_sine[None, :],
            sine[:, None] * other_cosine[None, :] - cosine[:, None] * other_sine[None, :],
        )
        return jax.lax.complex(*self._scaled(parts, X))

    def diag(self, X: Float[Array, "N D"]) -> Complex[Array, " N"]:
        variances = jnp.full((X.shape[0],), scalar("variance", self.variance, X))
        return jax.lax.complex(variances, jnp.zeros_like(variances))

    def _scaled(self, parts: tuple[Array, Array], X: Array) -> tuple[Array, Array]:
        variance = scalar("variance", self.variance, X)
        return variance * parts[0], variance * parts[1]

    def _wave(self, X: Array) -> tuple[Array, Array]:
        return circle(jnp.sum(X * per_coordinate("frequency", self.frequency, X), axis=1))
