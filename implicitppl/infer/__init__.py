"""What plugs into `numpyro.infer`: guides, losses, `fit`, black boxes, kernels, `LongMCMC`."""

from implicitppl.infer._auto_implicit import AutoImplicit
from implicitppl.infer._black_box import BlackBoxError, black_box, surrogate
from implicitppl.infer._elbo import ImplicitELBO
from implicitppl.infer._fit import FitResult, fit
from implicitppl.infer._long_mcmc import LongMCMC
from implicitppl.infer.functional import (
    DataNoise,
    FunctionalELBO,
    FunctionalReport,
    FunctionSamples,
    GaussianKL,
    GridKL,
    HeldInputs,
    RegularizedKL,
    ScoreKL,
    UniformBox,
    batch_weight,
    function_posterior,
    predict,
)
from implicitppl.infer.score_hmc import Bank, ScoreHMC, ScoreHMCState

__all__ = [
    "AutoImplicit",
    "Bank",
    "BlackBoxError",
    "DataNoise",
    "FitResult",
    "FunctionSamples",
    "FunctionalELBO",
    "FunctionalReport",
    "GaussianKL",
    "GridKL",
    "HeldInputs",
    "ImplicitELBO",
    "LongMCMC",
    "RegularizedKL",
    "ScoreHMC",
    "ScoreHMCState",
    "ScoreKL",
    "UniformBox",
    "batch_weight",
    "black_box",
    "fit",
    "function_posterior",
    "predict",
    "surrogate",
]
