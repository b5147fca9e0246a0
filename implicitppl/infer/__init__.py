"""What plugs into `numpyro.infer`: guides, their loss, `fit`, black boxes, kernels, `LongMCMC`."""

from implicitppl.infer._auto_implicit import AutoImplicit
from implicitppl.infer._black_box import BlackBoxError, black_box, surrogate
from implicitppl.infer._elbo import ImplicitELBO
from implicitppl.infer._fit import FitResult, fit
from implicitppl.infer._long_mcmc import LongMCMC
from implicitppl.infer.score_hmc import Bank, ScoreHMC, ScoreHMCState

__all__ = [
    "AutoImplicit",
    "Bank",
    "BlackBoxError",
    "FitResult",
    "ImplicitELBO",
    "LongMCMC",
    "ScoreHMC",
    "ScoreHMCState",
    "black_box",
    "fit",
    "surrogate",
]
