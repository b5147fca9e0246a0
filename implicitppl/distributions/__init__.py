"""Samplers as NumPyro distributions, which have no density in closed form; priors over kernels."""

from implicitppl.distributions._implicit import Implicit, ImplicitDensityError, default_support
from implicitppl.distributions._kernel_prior import kernel_at, kernel_prior, random_kernel
from implicitppl.distributions._noise import NoiseGenerator
from implicitppl.distributions._pytree import OrderedDistribution, split_callable
from implicitppl.distributions._residual import ResidualGenerator
from implicitppl.distributions._semi_implicit import SemiImplicit

__all__ = [
    "Implicit",
    "ImplicitDensityError",
    "NoiseGenerator",
    "OrderedDistribution",
    "ResidualGenerator",
    "SemiImplicit",
    "default_support",
    "kernel_at",
    "kernel_prior",
    "random_kernel",
    "split_callable",
]
