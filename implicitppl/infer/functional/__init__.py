"""Inference over functions: the functional ELBO, its divergences and measurement points."""

from implicitppl.infer.functional._divergence import (
    Divergence,
    GaussianKL,
    GridKL,
    Pair,
    RegularizedKL,
)
from implicitppl.infer.functional._gaussian import Moments, gaussian_kl, sample_moments
from implicitppl.infer.functional._loss import FunctionalELBO
from implicitppl.infer.functional._measurement import (
    DataNoise,
    HeldInputs,
    Measurement,
    UniformBox,
)
from implicitppl.infer.functional._particles import Comparison
from implicitppl.infer.functional._posterior import (
    FunctionSamples,
    function_posterior,
    predict,
)
from implicitppl.infer.functional._report import FunctionalReport
from implicitppl.infer.functional._score import ScoreKL
from implicitppl.infer.functional._weight import batch_weight

__all__ = [
    "Comparison",
    "DataNoise",
    "Divergence",
    "FunctionSamples",
    "FunctionalELBO",
    "FunctionalReport",
    "GaussianKL",
    "GridKL",
    "HeldInputs",
    "Measurement",
    "Moments",
    "Pair",
    "RegularizedKL",
    "ScoreKL",
    "UniformBox",
    "batch_weight",
    "function_posterior",
    "gaussian_kl",
    "predict",
    "sample_moments",
]
