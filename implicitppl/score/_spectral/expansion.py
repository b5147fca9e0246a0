"""The kernel part of a fitted score: T k(z(x), Z) C, with its divergence in closed form."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.frames import Frame
from implicitppl.kernels import Kernel
from implicitppl.score._field import Field


class Expansion(Field):
    """The kernel part k(z, Z) C of a score."""

    kernel: Kernel
    coordinates: Frame
    centres: Float[Array, "m D"]
    coefficients: Float[Array, "m D"]

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the kernel part of the score for every row."""
        gram = self.kernel.gram(self.coordinates.to(x), self.centres)
        values = jnp.matmul(gram, self.coefficients, precision="highest")
        return self.coordinates.score_back(values)

    def divergence(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the divergence of the kernel part for every row."""
        weighted = self.coordinates.trace_weight(self.coefficients)
        z = self.coordinates.to(x)
        return self.kernel.directional_gradient(z, self.centres, weighted)
