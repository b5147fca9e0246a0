"""Where a score estimate has samples to speak from: a nearest-neighbour test of queries.

d(x) is the distance from x to its nearest sample, in standard deviations of each coordinate. If x
comes from the distribution of the samples, and these are independent, d(x) is exchangeable with the
leave-one-out distances d_i of the samples (up to the estimated standard deviations), so

    P(d(x) > max_i d_i) = 1 / (M + 1) about:

a query beyond the largest of them is farther from the samples than any sample is from the others.
(Conformal p-value; Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005.)
Distances are not whitened: a whitening fitted on few samples makes fresh points look far.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.frames import Frame
from implicitppl.kernels._distances import squared_distances
from implicitppl.score._sample import Sample

# Up to twice as many samples all are kept; beyond, this many, and as many others set the radius.
_CENTRES = 2000
_BLOCK = 2**22
# Squared distance, in standard deviations, below which two samples count as one.
_COINCIDES = 1e-5


class Support(eqx.Module):
    """Samples and the largest distance from one of them to its nearest neighbour."""

    coordinates: Frame
    centres: Float[Array, "m D"]
    counts: Bool[Array, " m"]
    radius: Float[Array, ""]

    def off(self, x: Float[Array, "N D"]) -> Bool[Array, " N"]:
        """Return which rows lie farther from the samples than the samples from each other."""
        z = self.coordinates.to(x)
        size = max(1, _BLOCK // self.centres.shape[0])

        def nearest(row: Array) -> Array:
            squared = squared_distances(row[None, :], self.centres)[0]
            return jnp.min(jnp.where(self.counts, squared, jnp.inf))

        return ~(jnp.sqrt(jax.lax.map(nearest, z, batch_size=size)) <= self.radius)


def nearest_neighbour_support(sample: Sample, order: Int[Array, " M"]) -> Support:
    """Return the support of samples; `order` is a permutation of them. O(min(M, 4000)^2 D).

    Samples of weight 0 do not count, and neither do duplicates: distances are to the nearest
    sample that does not coincide.
    """
    frame = sample.frame("diagonal")
    z = frame.to(sample.rows)
    size = sample.size
    chosen = order[:_CENTRES] if size > 2 * _CENTRES else jnp.arange(size)
    judges = order[_CENTRES : 2 * _CENTRES] if size > 2 * _CENTRES else chosen
    counts = sample.counts
    squared = squared_distances(z[judges], z[chosen])
    # Itself, and duplicates up to rounding: bootstrap samples would have the radius 0.
    coincides = squared <= _COINCIDES
    neighbours = jnp.where(coincides | ~counts[chosen][None, :], jnp.inf, squared)
    nearest = jnp.min(neighbours, axis=1)
    nearest = jnp.where(counts[judges] & jnp.isfinite(nearest), nearest, 0)
    return Support(frame, z[chosen], counts[chosen], jnp.sqrt(jnp.max(nearest)))
