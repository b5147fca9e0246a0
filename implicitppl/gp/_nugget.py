"""The part of a kernel that belongs to rows and not to places: what `White` puts on a diagonal.

`k.diag(x)` has it and k(x_i, x_i) has not. Methods that never form `k.gram(x)` of all inputs would
lose it without a word; as variance of the noise it is where it was.
"""

import jax
from jaxtyping import Array, Float

from implicitppl.kernels import Kernel


def nugget(kernel: Kernel, x: Float[Array, "N D"]) -> Float[Array, " N"]:
    """Return the variance at every row that it shares with no other row; mostly 0."""
    return kernel.diag(x) - jax.vmap(lambda point: kernel(point, point))(x)
