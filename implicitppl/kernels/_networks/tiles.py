"""Matrices of elementwise functions of several kernels, a tile at a time.

Such a function (a network of kernels) holds one plane for each unit. Planes of a whole (N, M)
matrix stream from memory; those of a tile stay in the cache, so it costs half as much per entry.
Where the matrix is symmetric only tiles on and below the diagonal are computed and the others are
their mirror images, which halves it once more. Reverse mode recomputes a tile instead of keeping
its planes: beside the matrix, memory does not depend on N.

Tiles on the diagonal are computed from one set of points: kernels know then that distances of the
diagonal are exactly 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SIDE = 128
"""Rows of a tile at most. Measured: 64 to 192 are equally fast for 25 planes of float64."""

ACCELERATOR_SIDE = 1024
"""The same where there is no such cache and small tiles would leave most of the device idle."""

Planes = Callable[[Array, Array | None], Array]


def symmetric_in_tiles(tile: Planes, X: Float[Array, "N D"]) -> Float[Array, "N N"]:
    """Return tile(X, None), a symmetric matrix, computed in tiles beyond N = 2 `SIDE`.

    Args:
        tile: function of (n, D) and (m, D), or None for the same points, to (n, m); symmetric in
            its arguments.
        X: points.
    """
    size, largest = X.shape[0], _side()
    if size <= 2 * largest:
        return tile(X, None)
    blocks = _blocks(X, largest)
    count, side, _ = blocks.shape
    # Inside a loop nothing could be merged with the recomputation, so no barrier is needed.
    on = jax.lax.map(jax.checkpoint(lambda x: tile(x, None), prevent_cse=False), blocks)

    def below(pair: tuple[Array, Array]) -> Array:
        return tile(blocks[pair[0]], blocks[pair[1]])

    i, j = np.tril_indices(count, -1)
    off = jax.lax.map(jax.checkpoint(below, prevent_cse=False), (jnp.asarray(i), jnp.asarray(j)))
    full = jnp.zeros((count, count, side, side), on.dtype)
    full = full.at[np.arange(count), np.arange(count)].set(on)
    full = full.at[i, j].set(off).at[j, i].set(off.swapaxes(1, 2))
    return full.swapaxes(1, 2).reshape(count * side, count * side)[:size, :size]


def rectangular_in_tiles(
    tile: Planes, X: Float[Array, "N D"], Y: Float[Array, "M D"]
) -> Float[Array, "N M"]:
    """Return tile(X, Y), computed in tiles if it has more than 4 `SIDE`^2 entries."""
    rows, columns, side = X.shape[0], Y.shape[0], _side()
    if rows * columns <= 4 * side**2:
        return tile(X, Y)
    # Few rows have longer tiles: the number of entries is what fills the cache.
    height = min(rows, max(side, side**2 // columns))
    over, under = _blocks(X, height), _blocks(Y, max(side, side**2 // height))

    def one(pair: tuple[Array, Array]) -> Array:
        return tile(over[pair[0]], under[pair[1]])

    count = (over.shape[0], under.shape[0])
    pairs = np.indices(count).reshape(2, -1)
    tiles = jax.lax.map(
        jax.checkpoint(one, prevent_cse=False), (jnp.asarray(pairs[0]), jnp.asarray(pairs[1]))
    )
    tiles = tiles.reshape(*count, over.shape[1], under.shape[1]).swapaxes(1, 2)
    return tiles.reshape(count[0] * over.shape[1], -1)[:rows, :columns]


def _side() -> int:
    return SIDE if jax.default_backend() == "cpu" else ACCELERATOR_SIDE


def _blocks(X: Array, side: int) -> Array:
    """Return (count, n, D) with n <= side: blocks of equal size, the last row repeated to fill."""
    size = X.shape[0]
    count = -(-size // side)
    rows = -(-size // count)
    # A copy of a point is in the range of the data, where kernels and derivatives are finite.
    padding = jnp.broadcast_to(X[-1:], (count * rows - size, X.shape[1]))
    return jnp.concatenate([X, padding]).reshape(count, rows, X.shape[1])
