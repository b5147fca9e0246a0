"""The score grad log q of a distribution that can only be sampled.

An estimator is data: a kernel, a spectral filter, a metric and a reference. `fit(samples)` returns
a `FittedScore`, which is called on points. Nothing here imports NumPyro.
"""

from implicitppl._core.faces import show_at
from implicitppl.score._fitted import FittedScore
from implicitppl.score._gaussian import Gaussian
from implicitppl.score._in_sample import affine_stein_correction, entropy_term
from implicitppl.score._kef import KEF
from implicitppl.score._matching import matching_loss
from implicitppl.score._mixture import KDE, ConditionalMixture
from implicitppl.score._network import DenoisingScoreMatching, SlicedScoreMatching
from implicitppl.score._selection.select import Selection, select
from implicitppl.score._spectral.estimator import KernelEstimator
from implicitppl.score._spectral.family import (
    SSGE,
    Landweber,
    NuMethod,
    SpectralCutoff,
    Stein,
    Tikhonov,
)
from implicitppl.score._spectral.filters import Cutoff, SpectralFilter

__all__ = [
    "ConditionalMixture",
    "Selection",
    "Cutoff",
    "SpectralFilter",
    "KDE",
    "KEF",
    "Tikhonov",
    "SpectralCutoff",
    "NuMethod",
    "Landweber",
    "SSGE",
    "SlicedScoreMatching",
    "DenoisingScoreMatching",
    "FittedScore",
    "Gaussian",
    "KernelEstimator",
    "Stein",
    "affine_stein_correction",
    "entropy_term",
    "matching_loss",
    "select",
]

show_at(globals())
