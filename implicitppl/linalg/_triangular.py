"""The inverse of a covariance from its Cholesky factor, by halves.

    | A    |-1     | A^-1               |               | U    |' | U    |     | U'U + V'V   V'W |
    | B  C |    =  | -C^-1 B A^-1  C^-1 |  = R,         | V  W |  | V  W |  =  | W'V         W'W |

A solve with the identity and a product R'R treat the triangles as full and take 3 N^3; halving
them, and the halves again, skips the zeros and takes N^3, nearly all of it in products of matrices.
"""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

_SIDE, _PARTS = 128, 32
"""Rows that are not halved: at most 128, or the 32nd part of the matrix, so programs stay short."""


def inverse_from_factor(factor: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """Return (L L')^-1 from a lower triangular L.

    Cost about N^3, half of the time of a solve with the identity and a product. NaN where L is.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.linalg._triangular import inverse_from_factor
        >>> inverse_from_factor(jnp.array([[2.0, 0.0], [0.0, 4.0]])).tolist()
        [[0.25, 0.0], [0.0, 0.0625]]
    """
    side = max(_SIDE, -(-factor.shape[0] // _PARTS))
    return _square(_inverse(factor, side), side)


def _inverse(factor: Array, side: int) -> Array:
    """Return L^-1."""
    size = factor.shape[0]
    if size <= side:
        return solve_triangular(factor, jnp.eye(size, dtype=factor.dtype), lower=True)
    half = size // 2
    top = _inverse(factor[:half, :half], side)
    corner = _inverse(factor[half:, half:], side)
    below = -_product(corner, _product(factor[half:, :half], top))
    return jnp.block([[top, jnp.zeros((half, size - half), factor.dtype)], [below, corner]])


def _square(root: Array, side: int) -> Array:
    """Return R'R of a lower triangular R."""
    size = root.shape[0]
    if size <= side:
        return _product(root.T, root)
    half = size // 2
    top, below, corner = root[:half, :half], root[half:, :half], root[half:, half:]
    side_block = _product(corner.T, below)
    first = _square(top, side) + _product(below.T, below)
    return jnp.block([[first, side_block.T], [side_block, _square(corner, side)]])


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
