"""How far two processes are apart at the inputs where they are compared, in nats."""

from implicitppl._core.faces import show_at
from implicitppl.divergences._divergence import Divergence, GaussianKL, GridKL, RegularizedKL
from implicitppl.divergences._measurement import DataNoise, HeldInputs, Measurement, UniformBox
from implicitppl.divergences._score import ScoreKL
from implicitppl.divergences._weight import batch_weight

__all__ = [
    "DataNoise",
    "Divergence",
    "GaussianKL",
    "GridKL",
    "HeldInputs",
    "Measurement",
    "RegularizedKL",
    "ScoreKL",
    "UniformBox",
    "batch_weight",
]

show_at(globals())
