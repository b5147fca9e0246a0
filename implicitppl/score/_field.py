"""What a score is made of: fields of vectors on rows, each with its divergence.

A row (c, x) holds C covariates and a point; a field is 0 in the covariates, and its divergence is
that over x. What a fit returns is the sum of a few fields: a reference, and what was estimated.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Field(eqx.Module):
    """A field of vectors with its divergence: rows in, rows out."""

    @abstractmethod
    def score(self, rows: Float[Array, "N R"]) -> Float[Array, "N R"]:
        """Return the field at every row."""

    def divergence(self, rows: Float[Array, "N R"]) -> Float[Array, " N"]:
        """Return the divergence at every row: one directional derivative for each coordinate.

        Fields that know it in closed form say so.
        """

        def one(row: Float[Array, " R"]) -> Float[Array, ""]:
            return jnp.trace(jax.jacfwd(lambda point: self.score(point[None, :])[0])(row))

        return jax.lax.map(one, rows, batch_size=self.jacobians_at_once(rows.shape[1]))

    def jacobians_at_once(self, num_coordinates: int) -> int:
        """Return for how many rows Jacobians may be in memory at once."""
        del num_coordinates
        return 256


class GradientField(Field):
    """A field that is the gradient of a log density."""

    @abstractmethod
    def log_density(self, rows: Float[Array, "N R"]) -> Float[Array, " N"]:
        """Return the log density of which `score` is the gradient, up to a constant."""
