"""Random features: a stationary kernel as the inner product of finitely many waves.

    k(x, y) = v E_w[cos w.(x - y)],   phi(x) = sqrt(v / m) (cos w_j.x, sin w_j.x)_{j = 1..m},

with frequencies w from the spectral density of the kernel: normal for the RBF, Student's t with
2 nu degrees of freedom for the Matern kernel of order nu, both scaled by 1 / lengthscale.

Rahimi and Recht, Random features for large-scale kernel machines, NeurIPS 2007.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_count
from implicitppl._core.points import check_width
from implicitppl.kernels import RBF, Kernel, Matern12, Matern32, Matern52
from implicitppl.kernels._base import Scaled

ORDERS: dict[type, float | None] = {RBF: None, Matern12: 0.5, Matern32: 1.5, Matern52: 2.5}


class RandomFeatures(eqx.Module):
    """Features phi with phi(x) . phi(y) near k(x, y); `RandomFeatures.from_kernel` makes them.

    A `FeatureProcess` of them with standard normal weights is nearly the Gaussian process of the
    kernel, and can be drawn once and evaluated anywhere. phi(x) . phi(x) is exact; other values of
    the kernel err by about v sqrt(1 / num_features).

    Attributes:
        waves: (m, D) frequencies for lengthscale 1; they do not learn.
        log_lengthscale: () or (D,).
        log_variance: ().

    Example:
        >>> import jax
        >>> from implicitppl.kernels import Matern52
        >>> from implicitppl.processes import FeatureProcess, RandomFeatures
        >>> features = RandomFeatures.from_kernel(Matern52(0.5), 2, 100, key=jax.random.key(0))
        >>> features(jax.numpy.zeros((3, 2))).shape
        (3, 100)
        >>> draws = FeatureProcess(features).draw(jax.random.key(1), 5)
        >>> draws(jax.numpy.zeros((3, 2))).shape
        (5, 3)
    """

    waves: Float[Array, "m D"]
    log_lengthscale: Array
    log_variance: Float[Array, ""]

    @classmethod
    def from_kernel(
        cls, kernel: Kernel | Any, in_size: int, num_features: int, *, key: PRNGKeyArray
    ) -> "RandomFeatures":
        """Return features of a kernel with frequencies drawn from its spectral density.

        Args:
            kernel: `RBF`, `Matern12`, `Matern32` or `Matern52`, with one lengthscale or one for
                each coordinate, or a multiple of one of these.
            in_size: D, coordinates of a point.
            num_features: p, even: a cosine and a sine for each frequency.
            key: random key of the frequencies.

        Raises:
            ValueError: if the kernel is another, or a number does not fit.
        """
        check_count("in_size", in_size)
        if num_features < 2 or num_features % 2:
            raise ValueError(
                "`num_features` must be even and positive, a cosine and a sine for each frequency; "
                f"got {num_features}."
            )
        scale, stationary = _without_scale(kernel)
        if type(stationary) not in ORDERS:
            raise ValueError(
                "`kernel` must be RBF, Matern12, Matern32 or Matern52, or a multiple of one; "
                f"got {type(stationary).__name__}. Of a sum, add the processes of its terms."
            )
        lengthscale = jnp.asarray(stationary.lengthscale, float)
        if lengthscale.shape not in ((), (in_size,)):
            raise ValueError(
                f"`lengthscale` must be a number or ({in_size},); got {lengthscale.shape}."
            )
        waves = _waves(key, ORDERS[type(stationary)], num_features // 2, in_size)
        variance = jnp.asarray(scale * jnp.asarray(stationary.variance), float)
        return cls(waves, jnp.log(lengthscale), jnp.log(variance))

    @property
    def size(self) -> int:
        """The number of features, p."""
        return 2 * self.waves.shape[0]

    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N p"]:
        """Return the features at every point."""
        check_width(x, self.waves.shape[1])
        waves = jax.lax.stop_gradient(self.waves) / jnp.exp(self.log_lengthscale)
        phases = jnp.matmul(x, waves.T, precision="highest")
        scale = jnp.exp(0.5 * self.log_variance) / math.sqrt(self.waves.shape[0])
        return scale * jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=1)


def _without_scale(kernel: Any) -> tuple[Any, Any]:
    """Return c and k of a kernel c k."""
    scale: Any = 1.0
    while isinstance(kernel, Scaled):
        scale, kernel = scale * jnp.asarray(kernel.scale), kernel.kernel
    return scale, kernel


def _waves(
    key: PRNGKeyArray, order: float | None, num_waves: int, in_size: int
) -> Float[Array, "m D"]:
    """Return frequencies for lengthscale 1: normal, or Student's t with 2 `order` degrees."""
    normal_key, gamma_key = jax.random.split(key)
    normal = jax.random.normal(normal_key, (num_waves, in_size))
    if order is None:
        return normal
    # A chi-squared variable of 2 nu degrees is twice a gamma variable of shape nu.
    gamma = jax.random.gamma(gamma_key, order, (num_waves, 1))
    return normal * jnp.sqrt(order / gamma)
