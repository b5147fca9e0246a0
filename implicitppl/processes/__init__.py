"""Distributions over functions: `process(x)` is the NumPyro distribution of the values at x."""

from implicitppl._core.faces import show_at
from implicitppl.processes._features import FeatureProcess
from implicitppl.processes._from_model import from_model
from implicitppl.processes._function_site import function
from implicitppl.processes._gaussian.base import AbstractGaussianProcess
from implicitppl.processes._gaussian.whiten import WhitenReparam
from implicitppl.processes._implicit import ImplicitProcess, check_coherent
from implicitppl.processes._linearized import LinearizedNetwork
from implicitppl.processes._multi_output import stack
from implicitppl.processes._network import BayesianNetwork, NetworkEnsemble, NoiseNetwork
from implicitppl.processes._parametric import ParametricProcess
from implicitppl.processes._piecewise import (
    PiecewiseConstant,
    PiecewiseLinear,
    RandomPeriodic,
)
from implicitppl.processes._process import Process
from implicitppl.processes._random_features import RandomFeatures

__all__ = [
    "AbstractGaussianProcess",
    "BayesianNetwork",
    "FeatureProcess",
    "ImplicitProcess",
    "LinearizedNetwork",
    "NetworkEnsemble",
    "NoiseNetwork",
    "ParametricProcess",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Process",
    "RandomFeatures",
    "RandomPeriodic",
    "WhitenReparam",
    "check_coherent",
    "from_model",
    "function",
    "stack",
]

show_at(globals())
