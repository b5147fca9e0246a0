"""Where a score estimate has samples to speak from: a nearest-neighbour test of queries.

d(x) is the whitened distance from x to its nearest sample. If x comes from the same distribution,
d(x) is exchangeable with the leave-one-out distances d_i of the samples, so

    P(d(x) > max_i d_i) <= 1 / (M + 1):

a query beyond the largest of them is farther from the samples than any sample is from the others.
(Conformal p-value; Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl.kernels import squared_distances
from implicitppl.score._metric import Coordinates, coordinates
from implicitppl.score._moments import Moments

# With more samples, this many stand for all of them and as many others set the radius.
_CENTRES = 2000
_BLOCK = 2**22


class Support(eqx.Module):
    """Samples and the largest distance from one of them to its nearest neighbour."""

    coordinates: Coordinates
    centres: Float[Array, "m D"]
    radius: Float[Array, ""]

    def off(self, x: Float[Array, "N D"]) -> Bool[Array, " N"]:
        """Return which rows lie farther from the samples than the samples from each other."""
        z = self.coordinates.to_metric(x)
        size = max(1, _BLOCK // self.centres.shape[0])

        def nearest(row: Array) -> Array:
            return jnp.min(squared_distances(row[None, :], self.centres))

        return ~(jnp.sqrt(jax.lax.map(nearest, z, batch_size=size)) <= self.radius)


def nearest_neighbour_support(samples: Float[Array, "M D"], m: Moments, order: Array) -> Support:
    """Return the support of samples; `order` is a permutation of them. O(min(M, 2000)^2 D)."""
    where = coordinates("whitened", m)
    z = where.to_metric(samples)
    if z.shape[0] <= _CENTRES:
        squared = squared_distances(z)
        squared = jnp.where(jnp.eye(z.shape[0], dtype=bool), jnp.inf, squared)
        return Support(where, z, jnp.sqrt(jnp.max(jnp.min(squared, axis=1))))
    centres, others = z[order[:_CENTRES]], z[order[_CENTRES : 2 * _CENTRES]]
    nearest = jnp.min(squared_distances(others, centres), axis=1)
    return Support(where, centres, jnp.sqrt(jnp.max(nearest)))
