"""Covariance functions on single points, their algebra, and the median lengthscale."""

from implicitppl._core.faces import show_at
from implicitppl.kernels._arccosine import ArcCosine
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._constant import Constant, White
from implicitppl.kernels._dot import Linear, Polynomial
from implicitppl.kernels._fields import positive, real
from implicitppl.kernels._matern import Matern12, Matern32, Matern52
from implicitppl.kernels._networks.layers import Activation, NonNegativeLinear, ProductLayer
from implicitppl.kernels._networks.network import NeuralKernelNetwork
from implicitppl.kernels._networks.presets import (
    nkn_bayesian_optimisation,
    nkn_regression,
    nkn_texture,
    nkn_time_series,
)
from implicitppl.kernels._parameters import constrain, parameters, unconstrain
from implicitppl.kernels._periodic import Cosine, Periodic
from implicitppl.kernels._radial import RBF, InverseMultiquadric, Radial, RationalQuadratic
from implicitppl.kernels._spectral import SpectralMixture
from implicitppl.kernels._wave import PlaneWave

__all__ = [
    "RBF",
    "Activation",
    "ArcCosine",
    "Constant",
    "Cosine",
    "InverseMultiquadric",
    "Kernel",
    "Linear",
    "Matern12",
    "Matern32",
    "Matern52",
    "NeuralKernelNetwork",
    "NonNegativeLinear",
    "Periodic",
    "PlaneWave",
    "Polynomial",
    "ProductLayer",
    "Radial",
    "RationalQuadratic",
    "SpectralMixture",
    "White",
    "constrain",
    "nkn_bayesian_optimisation",
    "nkn_regression",
    "nkn_texture",
    "nkn_time_series",
    "parameters",
    "positive",
    "real",
    "unconstrain",
]

show_at(globals())
