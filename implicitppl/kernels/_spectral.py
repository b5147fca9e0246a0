"""Spectral mixture kernels: a stationary kernel is a density over frequencies, here of Gaussians.

    k(x, y) = sum_q w_q prod_d exp(-2 pi^2 s_qd^2 tau_d^2) cos(2 pi mu_qd tau_d),   tau = x - y

A component of mean mu and standard deviation s is a wave of frequency mu whose shape is kept over
a lengthscale of 1 / (2 pi s). Enough components approximate every stationary kernel.

Wilson and Adams, Gaussian process kernels for pattern discovery and extrapolation, ICML 2013,
equation (12).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._distances import squared_distances
from implicitppl.kernels._fields import positive
from implicitppl.kernels._networks.periodogram import spans, strongest_frequencies
from implicitppl.kernels._networks.tiles import rectangular_in_tiles, symmetric_in_tiles
from implicitppl.kernels._periodic import centre_of, circle


class SpectralMixture(Kernel):
    """Spectral mixture kernel of Q components, in D coordinates.

    Args:
        weights: w (Q,), the variances of the components; k(x, x) is their sum.
        means: mu (Q, D), frequencies in cycles per data unit.
        scales: s (Q, D), standard deviations of the frequencies in cycles per data unit.

    Raises:
        ValueError: if a value is not positive, or the shapes do not agree.

    Cost of `gram` O(N M D Q) time, by tiles of 128 x 128: memory is that of the matrix and of one
    tile, in reverse mode too. The likelihood has many maxima in the means: start at
    `from_data`, several times. The default is one component of frequency 1 in one coordinate.
    In several coordinates a component is a product of waves along the axes; for a wave across
    them write `Cosine(mu) * RBF(1 / (2 * pi * s))`.

    Reference: Wilson and Adams (2013), arXiv 1302.4245, equation (12).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import SpectralMixture
        >>> k = SpectralMixture([1.0, 2.0], [[0.5], [0.1]], [[0.01], [0.02]])
        >>> k.gram(jnp.zeros((4, 1))).shape
        (4, 4)
    """

    weights: ArrayLike = positive(kind="variance")
    means: ArrayLike = positive(kind="frequency")
    scales: ArrayLike = positive(kind="frequency")

    def __init__(
        self,
        weights: ArrayLike | list | tuple = (1.0,),
        means: ArrayLike | list | tuple = ((1.0,),),
        scales: ArrayLike | list | tuple = ((0.1,),),
    ):
        self.weights, self.means, self.scales = (
            jnp.asarray(value, float) if isinstance(value, list | tuple) else value
            for value in (weights, means, scales)
        )

    def __check_init__(self) -> None:
        shapes = np.shape(self.weights), np.shape(self.means), np.shape(self.scales)
        if len(shapes[0]) != 1 or len(shapes[1]) != 2 or shapes[1] != shapes[2]:
            wrong = True
        else:
            wrong = shapes[0] != shapes[1][:1] or 0 in shapes[1]
        if wrong:
            raise ValueError(
                "`weights`, `means` and `scales` must be (Q,), (Q, D) and (Q, D); got shapes "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
            )
        for name in ("weights", "means", "scales"):
            check_positive(name, getattr(self, name))

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        weights, means, scales = self._components(x)
        tau = (x - y)[None, :]
        waves = jnp.prod(circle(means * tau)[0], axis=1)
        return jnp.sum(weights * _envelope(scales, tau) * waves)

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        self._components(X)  # shapes are checked before anything is traced
        Y = None if X is Y else Y
        centre = centre_of(X, Y)
        return _gram(self, X - centre, None if Y is None else Y - centre)

    def _tile(self, X: Array, Y: Array | None) -> Array:
        """Return the matrix of a few points, from a plane for each component and coordinate."""

        def component(weight: Array, mean: Array, scale: Array) -> Array:
            width = 2 * math.pi * scale[None, :]
            spread = squared_distances(width * X, None if Y is None else width * Y)
            plane = weight * jnp.exp(-0.5 * spread)
            # cos(a - b) is the inner product of two points on a circle. One small product of
            # matrices for each coordinate: their derivatives are products of matrices too, and
            # that of `prod` takes several times as long as a loop over planes.
            left = _circles(mean, X)
            right = left if Y is None else _circles(mean, Y)
            waves = jnp.matmul(left, right.swapaxes(1, 2), precision="highest")
            for wave in waves:
                plane = plane * wave
            return plane

        return jnp.sum(jax.vmap(component)(*self._components(X)), axis=0)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        weights, _, _ = self._components(X)
        return jnp.full((X.shape[0],), jnp.sum(weights))

    def _components(self, x: Array) -> tuple[Array, Array, Array]:
        means = jnp.asarray(self.means, x.dtype)
        if means.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"`means` must have D = {x.shape[-1]} columns, one for each coordinate; "
                f"got shape {means.shape}."
            )
        return jnp.asarray(self.weights, x.dtype), means, jnp.asarray(self.scales, x.dtype)

    @classmethod
    def from_data(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        num_components: int = 4,
        *,
        key: Array | None = None,
    ) -> "SpectralMixture":
        """Return a mixture to start learning from, at frequencies that the data show.

        For each coordinate alone, sinusoids are taken from `y` one after another, each at the
        highest point of the Lomb-Scargle periodogram of what is left, so that the inputs need not
        be evenly spaced. Frequencies lie between half a cycle over the range of the inputs and
        the Nyquist frequency of the median spacing; in several coordinates, that of N points
        spread evenly over a box, where that is lower. The q-th strongest frequencies of all
        coordinates make component q: structure that no coordinate shows alone is not found.
        Weights are var(y) / Q, and scales one half over the range: waves that keep their shape
        over a third of the data.

        Args:
            x: inputs (N, D), or (N,) for one coordinate.
            y: values (N,).
            num_components: Q.
            key: if given, frequencies are drawn with probability proportional to power instead of
                the highest being taken: another start for every key.

        Raises:
            ValueError: if shapes do not agree, values are not finite, `y` or a coordinate of `x`
                is constant, or `num_components` is below 1.

        Runs on the host in float64 and cannot be traced. Cost O(Q D N F) for F frequencies, about
        2 N and at most 20,000: give at most some 10,000 rows.

        Example:
            >>> import numpy as np
            >>> from implicitppl.kernels import SpectralMixture
            >>> months = np.arange(120.0)
            >>> k = SpectralMixture.from_data(months, np.sin(2 * np.pi * months / 12), 1)
            >>> round(float(1 / k.means[0, 0]))  # the period
            12
        """
        inputs, values = np.asarray(x, float), np.asarray(y, float)
        inputs = inputs[:, None] if inputs.ndim == 1 else inputs
        if inputs.ndim != 2 or values.shape != inputs.shape[:1] or len(values) < 3:
            raise ValueError(
                "`x` must be (N, D) or (N,) and `y` (N,), with N >= 3; got shapes "
                f"{np.shape(x)} and {values.shape}."
            )
        if num_components < 1:
            raise ValueError(f"`num_components` must be at least 1; got {num_components}.")
        if not (np.all(np.isfinite(inputs)) and np.all(np.isfinite(values))):
            raise ValueError("`x` and `y` must be finite; got NaN or infinite values.")
        if not np.var(values) > 0:
            raise ValueError(f"`y` must vary; got {values[0]} everywhere.")
        seed = None if key is None else np.asarray(jax.random.bits(key, (4,))).tolist()
        means = strongest_frequencies(inputs, values, num_components, seed)
        weights = np.full(num_components, np.var(values) / num_components)
        scales = np.tile(0.5 / spans(inputs), (num_components, 1))
        return cls(*(jnp.asarray(part) for part in (weights, means, scales)))


@eqx.filter_jit  # a loop outside `jit` would be compiled at every call
def _gram(kernel: SpectralMixture, X: Array, Y: Array | None) -> Array:
    if Y is None:
        return symmetric_in_tiles(kernel._tile, X)
    return rectangular_in_tiles(kernel._tile, X, Y)


def _circles(mean: Array, X: Array) -> Array:
    """Return the points on circles of the frequencies `mean`, (D, N, 2)."""
    return jnp.stack(circle(mean[None, :] * X), axis=-1).swapaxes(0, 1)


def _envelope(scales: Array, tau: Array) -> Array:
    """Return exp(-2 pi^2 sum_d s_d^2 tau_d^2)."""
    return jnp.exp(-0.5 * jnp.sum(jnp.square(2 * math.pi * scales * tau), axis=-1))


def _component(
    x: Float[Array, " D"],
    other: Float[Array, "D M"],
    weight: Float[Array, ""],
    scales: Float[Array, " D"],
    cosine: Float[Array, " D"],
    sine: Float[Array, " D"],
    cosines: Float[Array, "D M"],
    sines: Float[Array, "D M"],
) -> Float[Array, " M"]:
    """Return one component between a point and all others, of which the waves are given."""
    exponent, wave = jnp.zeros_like(other[0]), jnp.full_like(other[0], weight)
    for d in range(x.shape[0]):
        exponent = exponent + jnp.square(2 * math.pi * scales[d] * (x[d] - other[d]))
        # cos(a - b) from the cosines and sines of a and b: none is evaluated for a pair.
        wave = wave * (cosine[d] * cosines[d] + sine[d] * sines[d])
    return wave * jnp.exp(-0.5 * exponent)
