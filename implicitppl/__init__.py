"""Probabilistic programming with distributions that can be sampled but have no density.

`import implicitppl as ip` gives the packages below and nothing else. ArviZ and matplotlib are
imported by `ip.diagnostics` when one of its functions is called; no JAX setting is changed.
"""

from implicitppl import (
    diagnostics,
    distributions,
    divergences,
    gp,
    infer,
    kernels,
    linalg,
    metrics,
    models,
    processes,
    score,
)

__all__ = [
    "diagnostics",
    "distributions",
    "divergences",
    "gp",
    "infer",
    "kernels",
    "linalg",
    "metrics",
    "models",
    "processes",
    "score",
]
__version__ = "0.1.0.dev0"
