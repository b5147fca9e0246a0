"""Samplers as NumPyro distributions, which have no density in closed form; priors over kernels."""

from implicitppl._core.faces import show_at
from implicitppl.distributions._implicit import Implicit, ImplicitDensityError
from implicitppl.distributions._kernel_prior import kernel_at, random_kernel
from implicitppl.distributions._noise import NoiseGenerator
from implicitppl.distributions._residual import ResidualGenerator
from implicitppl.distributions._semi_implicit import SemiImplicit

__all__ = [
    "Implicit",
    "ImplicitDensityError",
    "NoiseGenerator",
    "ResidualGenerator",
    "SemiImplicit",
    "kernel_at",
    "random_kernel",
]

show_at(globals())
