"""Linear algebra on plain arrays: factors, normal densities, inverses and eigenpairs.

Nothing here knows about samples, kernels or scores; every function runs under `jit` and `vmap`.
"""

from implicitppl.linalg._cg import Solution, conjugate_gradients, log_of_tridiagonal
from implicitppl.linalg._eigen import Eigenpairs, is_full, top_eigenpairs
from implicitppl.linalg._inverse import Inverse, small_inverse
from implicitppl.linalg._normal import normal_log_density
from implicitppl.linalg._pivoted import pivoted_cholesky
from implicitppl.linalg._triangular import inverse_from_factor

__all__ = [
    "Eigenpairs",
    "Inverse",
    "Solution",
    "conjugate_gradients",
    "inverse_from_factor",
    "is_full",
    "log_of_tridiagonal",
    "normal_log_density",
    "pivoted_cholesky",
    "small_inverse",
    "top_eigenpairs",
]
