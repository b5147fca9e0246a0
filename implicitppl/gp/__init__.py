"""Gaussian processes at work: learning their parameters, and what makes them large."""

from implicitppl.gp._fit import Fit, best_fit, fit
from implicitppl.gp._grid import GridGaussianProcess, GridPosterior
from implicitppl.gp._iterative import IterativeGaussianProcess, IterativePosterior
from implicitppl.gp._sparse import SparseGaussianProcess, SparsePosterior

__all__ = [
    "Fit",
    "GridGaussianProcess",
    "GridPosterior",
    "IterativeGaussianProcess",
    "IterativePosterior",
    "SparseGaussianProcess",
    "SparsePosterior",
    "best_fit",
    "fit",
]
