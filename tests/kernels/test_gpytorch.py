"""Matrices of GPyTorch, frozen by `tests/kernels/make_gpytorch_values.py`, in our conventions."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import (
    RBF,
    Constant,
    Cosine,
    Kernel,
    Linear,
    Matern12,
    Matern32,
    Matern52,
    Periodic,
    Polynomial,
    RationalQuadratic,
    SpectralMixture,
)

FROZEN = json.loads(Path(__file__).with_name("gpytorch_values.json").read_text())
ARD = np.array([0.6, 1.1, 1.9])
WEIGHTS = np.array([0.7, 1.2])
MEANS = np.array([[0.3, 0.1, 0.5], [0.05, 0.4, 0.2]])
SCALES = np.array([[0.05, 0.1, 0.02], [0.2, 0.03, 0.1]])


def _mixture_in(d: int) -> Kernel:
    return SpectralMixture(WEIGHTS, MEANS[:, d : d + 1], SCALES[:, d : d + 1]).on(d)


KERNELS = {
    "RBF": lambda: RBF(ARD),
    "RationalQuadratic": lambda: RationalQuadratic(0.8, mixture=0.7),
    "Matern12": lambda: Matern12(0.8),
    "Matern32": lambda: Matern32(0.8),
    "Matern52": lambda: Matern52(0.8),
    "Periodic": lambda: Periodic(np.sqrt(ARD), period=ARD[::-1].copy()),  # exp(-2 sin^2 / l)
    "Cosine": lambda: Cosine(1 / (2 * 0.9)).on(0),  # cos(pi d / p)
    "Linear": lambda: Linear(ARD),
    "Polynomial": lambda: Polynomial(1.0, 0.7, 3),
    "Constant": lambda: Constant(1.7),
    "SpectralMixture, D = 1": lambda: _mixture_in(0),
    "SpectralMixture": lambda: _mixture_in(0) * _mixture_in(1) * _mixture_in(2),
}


def test_every_frozen_matrix_is_compared():
    assert set(KERNELS) == set(FROZEN["matrices"])


@pytest.mark.parametrize("name", KERNELS)
def test_matrix_agrees_with_gpytorch(name):
    expected = np.array(FROZEN["matrices"][name])
    with jax.enable_x64(True):
        gram = KERNELS[name]().gram(jnp.asarray(FROZEN["X"]), jnp.asarray(FROZEN["Y"]))
        tolerance = 1e-7 if name.startswith("Matern") else 1e-12  # it floors distances at 1e-15
        np.testing.assert_allclose(gram, expected, rtol=0, atol=tolerance * np.abs(expected).max())
