"""What plugs into `numpyro.infer`: guides, losses, `fit`, kernels, `LongMCMC`."""

from implicitppl._core.faces import show_at
from implicitppl.infer._functional.loss import FunctionalELBO
from implicitppl.infer._functional.posterior import FunctionSamples, function_posterior, predict
from implicitppl.infer._functional.report import FunctionalReport
from implicitppl.infer._guides.auto_implicit import AutoImplicit
from implicitppl.infer._guides.elbo import ImplicitELBO
from implicitppl.infer._guides.fit import GuideFitResult, fit
from implicitppl.infer._long.mcmc import LongMCMC
from implicitppl.infer._score_hmc.evaluations import Evaluations
from implicitppl.infer._score_hmc.kernel import ScoreHMC
from implicitppl.infer._score_hmc.state import ScoreHMCState

__all__ = [
    "AutoImplicit",
    "Evaluations",
    "FunctionSamples",
    "FunctionalELBO",
    "FunctionalReport",
    "GuideFitResult",
    "ImplicitELBO",
    "LongMCMC",
    "ScoreHMC",
    "ScoreHMCState",
    "fit",
    "function_posterior",
    "predict",
]

show_at(globals())
