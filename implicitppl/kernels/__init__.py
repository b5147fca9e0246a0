"""Covariance functions on single points, their algebra, and the median lengthscale."""

from implicitppl.kernels._arccosine import ArcCosine
from implicitppl.kernels._base import ActiveDims, Kernel, Product, Scaled, Sum
from implicitppl.kernels._constant import Constant, White
from implicitppl.kernels._distances import median_lengthscale, squared_distances
from implicitppl.kernels._dot import Linear, Polynomial
from implicitppl.kernels._fields import positive, real
from implicitppl.kernels._matern import Matern12, Matern32, Matern52
from implicitppl.kernels._networks.formula import Formula, Monomial, Term
from implicitppl.kernels._networks.layers import Activation, Layer, NonNegativeLinear, ProductLayer
from implicitppl.kernels._networks.network import NeuralKernelNetwork
from implicitppl.kernels._networks.presets import (
    nkn_bayesian_optimisation,
    nkn_regression,
    nkn_texture,
    nkn_time_series,
)
from implicitppl.kernels._parameters import Parameter, as_arrays, constrain, parameters, unconstrain
from implicitppl.kernels._periodic import Cosine, Periodic
from implicitppl.kernels._radial import RBF, InverseMultiquadric, Radial, RationalQuadratic
from implicitppl.kernels._spectral import SpectralMixture
from implicitppl.kernels._terms import additive_terms
from implicitppl.kernels._wave import PlaneWave

__all__ = [
    "RBF",
    "ActiveDims",
    "Activation",
    "ArcCosine",
    "Constant",
    "Cosine",
    "Formula",
    "InverseMultiquadric",
    "Kernel",
    "Layer",
    "Linear",
    "Matern12",
    "Matern32",
    "Matern52",
    "Monomial",
    "NeuralKernelNetwork",
    "NonNegativeLinear",
    "Parameter",
    "Periodic",
    "PlaneWave",
    "Polynomial",
    "Product",
    "ProductLayer",
    "Radial",
    "RationalQuadratic",
    "Scaled",
    "SpectralMixture",
    "Sum",
    "Term",
    "White",
    "additive_terms",
    "as_arrays",
    "constrain",
    "median_lengthscale",
    "nkn_bayesian_optimisation",
    "nkn_regression",
    "nkn_texture",
    "nkn_time_series",
    "parameters",
    "positive",
    "real",
    "squared_distances",
    "unconstrain",
]
