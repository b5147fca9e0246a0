"""Samplers as NumPyro distributions: they can be drawn from and have no density in closed form."""

from implicitppl.distributions._implicit import Implicit, ImplicitDensityError
from implicitppl.distributions._noise import NoiseGenerator
from implicitppl.distributions._residual import ResidualGenerator
from implicitppl.distributions._semi_implicit import SemiImplicit

__all__ = [
    "Implicit",
    "ImplicitDensityError",
    "NoiseGenerator",
    "ResidualGenerator",
    "SemiImplicit",
]
