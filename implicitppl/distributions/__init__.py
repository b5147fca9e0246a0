"""Samplers as NumPyro distributions: they can be drawn from and have no density in closed form."""

from implicitppl.distributions._generators import NoiseGenerator, ResidualGenerator
from implicitppl.distributions._implicit import Implicit, ImplicitDensityError
from implicitppl.distributions._semi_implicit import SemiImplicit

__all__ = [
    "Implicit",
    "ImplicitDensityError",
    "NoiseGenerator",
    "ResidualGenerator",
    "SemiImplicit",
]
