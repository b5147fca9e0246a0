"""Distances between two samples: sliced Wasserstein and energy distance.

    SW_p^p(x, y) = E_theta |F_x^-1 - F_y^-1|_p^p      along random unit vectors theta
    E(x, y)      = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

(Bonneel et al. 2015, J. Math. Imaging Vision 51; Szekely and Rizzo 2013, J. Stat. Planning
Inference 143). Both are in units of the reference's standard deviation, coordinate by coordinate.

Shapes: reference `(N, D)`, draws `(M, D)`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float

from implicitppl._core.checks import as_matrix, check_count


def _checked(x: Array, y: Array) -> tuple[Array, Array]:
    x = as_matrix("x", x)
    y = as_matrix("y", y).astype(x.dtype)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`y` must have {x.shape[1]} columns, like `x`; got {y.shape[1]}.")
    return x, y


def _standardised(x: Array, y: Array) -> tuple[Array, Array]:
    mean, sd = x.mean(0), x.std(0)
    sd = jnp.where(sd > 0, sd, jnp.ones_like(sd))
    return (x - mean) / sd, (y - mean) / sd


def sliced_wasserstein(
    x: Float[Array, "N D"],
    y: Float[Array, "M D"],
    key: Array,
    num_projections: int = 100,
    *,
    order: int = 1,
) -> Float[Array, ""]:
    """Sliced Wasserstein distance of two samples, in standard deviations of the first.

    Two samples of the same distribution are not at distance zero: compare with the distance
    between two reference samples of the same size. Random directions see few of many
    dimensions at a time, so in high dimension a difference in one coordinate is diluted.

    Args:
        x: reference draws; they set the unit of every coordinate.
        y: draws to judge.
        key: random key of the directions. One key for all comparisons makes them comparable.
        num_projections: directions; the Monte Carlo error falls with the square root.
        order: 1 (robust to tails) or 2.

    Returns:
        The distance. With samples of different sizes, quantile functions are compared at the
        midpoints of the smaller one.

    Raises:
        ValueError: different numbers of columns, NaN, an order other than 1 or 2.

    Reference:
        Bonneel, Rabin, Peyre, Pfister 2015, definition 1. Cost `O(L (N log N + N D))`.

    Example:
        >>> import jax
        >>> from implicitppl.metrics import sliced_wasserstein
        >>> x = jax.random.normal(jax.random.key(0), (500, 1))
        >>> round(float(sliced_wasserstein(x, x + 2 * x.std(), jax.random.key(1))), 3)
        2.0
    """
    check_count("num_projections", num_projections, 1)
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2; got {order}.")
    return _sliced(*_checked(x, y), key, num_projections, order)


@partial(jax.jit, static_argnums=(3, 4))
def _sliced(x: Array, y: Array, key: Array, num_projections: int, order: int) -> Array:
    x, y = _standardised(x, y)
    theta = random.normal(key, (x.shape[1], num_projections), x.dtype)
    theta = theta / jnp.linalg.norm(theta, axis=0)
    px, py = _matched_quantiles(jnp.sort(x @ theta, 0), jnp.sort(y @ theta, 0))
    if order == 1:
        return jnp.mean(jnp.abs(px - py))
    return jnp.sqrt(jnp.mean((px - py) ** 2))


def _matched_quantiles(px: Array, py: Array) -> tuple[Array, Array]:
    """Sorted columns `(N, L)` and `(M, L)`, both read at the midpoints of the shorter one."""
    n, m = px.shape[0], py.shape[0]
    if n == m:
        return px, py
    size = min(n, m)
    levels = (jnp.arange(size, dtype=px.dtype) + 0.5) / size

    def read(sorted_columns: Any) -> Array:
        own = (jnp.arange(sorted_columns.shape[0], dtype=px.dtype) + 0.5) / sorted_columns.shape[0]
        return jax.vmap(lambda c: jnp.interp(levels, own, c), in_axes=1, out_axes=1)(sorted_columns)

    return read(px), read(py)


def energy_distance(x: Float[Array, "N D"], y: Float[Array, "M D"]) -> Float[Array, ""]:
    """Energy distance of two samples in units of the first's sd; unbiased, so it may be below 0.

    Zero in expectation iff both distributions agree, so unlike the slopes it sees everything, given
    enough draws. Cost `O((N + M)^2 D)` time; memory `O((N + M)^2)`.

    Args:
        x: reference draws; they set the unit of every coordinate.
        y: draws to judge.

    Returns:
        `2 E|X - Y| - E|X - X'| - E|Y - Y'|` with pairs of distinct draws.

    Raises:
        ValueError: different numbers of columns, NaN.

    Reference:
        Szekely and Rizzo 2013, equation 6, as a U-statistic.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.metrics import energy_distance
        >>> x = jnp.array([[-1.0], [1.0]])
        >>> float(energy_distance(x, x + 10.0))
        16.0
    """
    return _energy(*_checked(x, y))


@jax.jit
def _energy(x: Array, y: Array) -> Array:
    x, y = _standardised(x, y)
    n, m = x.shape[0], y.shape[0]
    within_x = _distances(x, x).sum() / (n * (n - 1))
    within_y = _distances(y, y).sum() / (m * (m - 1))
    return 2 * _distances(x, y).mean() - within_x - within_y


def _distances(x: Array, y: Array) -> Array:
    centre = x.mean(0)
    x, y = x - centre, y - centre
    q = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :] - 2 * x @ y.T
    return jnp.sqrt(jnp.maximum(q, 0))
