"""Linear algebra on plain arrays: factors, normal densities, inverses and eigenpairs.

Nothing here knows about samples, kernels or scores; every function runs under `jit` and `vmap`.
"""

from implicitppl._core.faces import show_at
from implicitppl.linalg._normal import normal_log_density
from implicitppl.linalg._pivoted import pivoted_cholesky

__all__ = [
    "normal_log_density",
    "pivoted_cholesky",
]

show_at(globals())
