"""Gaussian processes: exact and large, their evidence, and learning from it."""

from implicitppl.gp._evidence import Evidence
from implicitppl.gp._exact import GaussianProcess
from implicitppl.gp._fit import Fit, best_fit, fit
from implicitppl.gp._large.grid import GridGaussianProcess, GridPosterior
from implicitppl.gp._large.iterative import IterativeGaussianProcess, IterativePosterior
from implicitppl.gp._large.sparse import SparseGaussianProcess, SparsePosterior
from implicitppl.gp._means import Mean, as_mean

__all__ = [
    "Evidence",
    "GaussianProcess",
    "Mean",
    "as_mean",
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
