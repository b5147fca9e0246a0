"""Distributions over functions: `process(x)` is the NumPyro distribution of the values at x."""

from implicitppl.processes._features import FeatureProcess
from implicitppl.processes._from_model import ModelProcess, from_model
from implicitppl.processes._function_site import SharedFunction, function
from implicitppl.processes._function_values import FunctionValues
from implicitppl.processes._gaussian.base import (
    AbstractGaussianProcess,
    GaussianSum,
    ScaledGaussian,
)
from implicitppl.processes._gaussian.draws import GaussianDraws
from implicitppl.processes._gaussian.values import GaussianProcessValues
from implicitppl.processes._gaussian.whiten import WhitenReparam
from implicitppl.processes._implicit import ImplicitProcess, check_coherent
from implicitppl.processes._linearized import LinearizedNetwork
from implicitppl.processes._multi_output import MultiOutput, StackedValues, stack
from implicitppl.processes._network import BayesianNetwork, NetworkEnsemble, NoiseNetwork
from implicitppl.processes._parametric import FunctionDraws, ParametricProcess
from implicitppl.processes._piecewise import (
    PiecewiseConstant,
    PiecewiseLinear,
    RandomPeriodic,
)
from implicitppl.processes._process import Process, ScaledProcess, SumProcess
from implicitppl.processes._random_features import RandomFeatures

__all__ = [
    "AbstractGaussianProcess",
    "BayesianNetwork",
    "FeatureProcess",
    "FunctionDraws",
    "FunctionValues",
    "GaussianDraws",
    "GaussianProcessValues",
    "GaussianSum",
    "ImplicitProcess",
    "LinearizedNetwork",
    "ModelProcess",
    "MultiOutput",
    "NetworkEnsemble",
    "NoiseNetwork",
    "ParametricProcess",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Process",
    "RandomFeatures",
    "RandomPeriodic",
    "ScaledGaussian",
    "ScaledProcess",
    "SharedFunction",
    "StackedValues",
    "SumProcess",
    "WhitenReparam",
    "check_coherent",
    "from_model",
    "function",
    "stack",
]
