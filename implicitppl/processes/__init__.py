"""Distributions over functions: `process(x)` is the NumPyro distribution of the values at x."""

from implicitppl.processes._base import (
    AbstractGaussianProcess,
    GaussianSum,
    Process,
    ScaledGaussian,
    ScaledProcess,
    SumProcess,
)
from implicitppl.processes._evidence import Evidence
from implicitppl.processes._features import FeatureProcess
from implicitppl.processes._from_model import ModelProcess, from_model
from implicitppl.processes._function_site import SharedFunction, function
from implicitppl.processes._function_values import FunctionValues
from implicitppl.processes._gaussian_draws import GaussianDraws
from implicitppl.processes._gaussian_process import GaussianProcess
from implicitppl.processes._implicit import ImplicitProcess, check_coherent
from implicitppl.processes._linearized import LinearizedNetwork
from implicitppl.processes._mean import Mean, as_mean
from implicitppl.processes._multi_output import MultiOutput, StackedValues, stack
from implicitppl.processes._network import BayesianNetwork, NetworkEnsemble, NoiseNetwork
from implicitppl.processes._parametric import FunctionDraws, ParametricProcess
from implicitppl.processes._piecewise import (
    PiecewiseConstant,
    PiecewiseLinear,
    RandomPeriodic,
)
from implicitppl.processes._random_features import RandomFeatures
from implicitppl.processes._values import GaussianProcessValues
from implicitppl.processes._whiten import WhitenReparam

__all__ = [
    "AbstractGaussianProcess",
    "BayesianNetwork",
    "Evidence",
    "FeatureProcess",
    "FunctionDraws",
    "FunctionValues",
    "GaussianDraws",
    "GaussianProcess",
    "GaussianProcessValues",
    "GaussianSum",
    "ImplicitProcess",
    "LinearizedNetwork",
    "Mean",
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
    "as_mean",
    "check_coherent",
    "from_model",
    "function",
    "stack",
]
