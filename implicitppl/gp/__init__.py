"""Gaussian processes: exact and large, their evidence, and learning from it."""

from implicitppl._core.faces import show_at
from implicitppl.gp._exact import GaussianProcess
from implicitppl.gp._fit import ProcessFitResult, best_fit, fit
from implicitppl.gp._large.grid import GridGaussianProcess
from implicitppl.gp._large.iterative import IterativeGaussianProcess
from implicitppl.gp._large.sparse import SparseGaussianProcess
from implicitppl.gp._means import Mean

__all__ = [
    "GaussianProcess",
    "Mean",
    "ProcessFitResult",
    "GridGaussianProcess",
    "IterativeGaussianProcess",
    "SparseGaussianProcess",
    "best_fit",
    "fit",
]

show_at(globals())
