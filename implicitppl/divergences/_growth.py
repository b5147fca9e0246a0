"""How a divergence grows with the points of comparison, and how far particles overstate it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, PRNGKeyArray

from implicitppl.divergences._divergence import GaussianKL, RegularizedKL, flat, make_pair
from implicitppl.divergences._measurement import measurement_points
from implicitppl.processes import Process

MULTIPLES = (1, 2, 4)
DRAWS_PER_POINT, MIN_DRAWS = 5, 1000


class Growth(NamedTuple):
    """Divergences of one function at more and more points, in nats.

    Attributes:
        name: of the function.
        num_points: n, with 1, 2 and 4 times the measurement points.
        noisy: KL of Gaussian moments with fixed noise.
        regularized: KL of Gaussian moments with noise variance g n.
    """

    name: str
    num_points: tuple[int, ...]
    noisy: tuple[float, ...]
    regularized: tuple[float, ...]


def overstatement(num_particles: int, num_points: int) -> Array:
    """Return how far the covariance of S normal particles overstates a KL at n values, in nats.

    Minus half the bias of its log determinant, of a Wishart matrix with S - 1 degrees of freedom.
    """
    freedom = num_particles - 1
    terms = digamma((freedom - jnp.arange(num_points)) / 2) - jnp.log(freedom / 2)
    return -0.5 * jnp.sum(terms)


def growth(
    name: str,
    guide: Process,
    prior: Process,
    x: Array,
    measurement: Callable[..., Any] | None,
    key: PRNGKeyArray,
    noise: float,
    strength: float,
) -> Growth:
    """Return divergences of two processes at the inputs and 1, 2, 4 sets of measured points."""
    measure_key, draw_key = jax.random.split(key)
    sets = [
        measurement_points(measurement, jax.random.fold_in(measure_key, i), x)
        for i in range(MULTIPLES[-1])
    ]
    sizes, noisy, regularized = [], [], []
    for multiple in MULTIPLES:
        points = jnp.concatenate([x, *sets[:multiple]], axis=0)
        num = max(MIN_DRAWS, DRAWS_PER_POINT * points.shape[0])
        values = flat(guide.sample(draw_key, points, num))
        pair = make_pair(values, guide, prior, points, draw_key)
        sizes.append(points.shape[0])
        noisy.append(float(GaussianKL(noise)(pair, draw_key)))
        regularized.append(float(RegularizedKL(strength)(pair, draw_key)))
    return Growth(name, tuple(sizes), tuple(noisy), tuple(regularized))
