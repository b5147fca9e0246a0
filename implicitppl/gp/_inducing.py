"""The contract of what a sparse process conditions on in place of all points, and points as such.

A linear functional u_m of the function, a value f(z_m) or another, is all that the collapsed bound
needs: the covariance of the u with each other, and with the values at points.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl.gp._nugget import nugget
from implicitppl.kernels import Kernel


class Inducing(eqx.Module):
    """M linear functionals u of a function."""

    @abstractmethod
    def gram(self, kernel: Kernel) -> Float[Array, "M M"]:
        """Return the covariance of u with itself."""

    @abstractmethod
    def cross(self, kernel: Kernel, x: Float[Array, "N D"]) -> Float[Array, "M N"]:
        """Return the covariance of u with the values at points."""


class InducingPoints(Inducing):
    """The values at M points."""

    points: Float[Array, "M D"]

    def gram(self, kernel: Kernel) -> Float[Array, "M M"]:
        """Return k(z, z) without white noise: no function of places explains that."""
        return kernel.gram(self.points) - jnp.diag(nugget(kernel, self.points))

    def cross(self, kernel: Kernel, x: Float[Array, "N D"]) -> Float[Array, "M N"]:
        """Return k(z, x)."""
        return kernel.gram(self.points, x)
