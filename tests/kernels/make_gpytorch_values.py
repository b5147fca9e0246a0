"""Freezes matrices of GPyTorch's kernels in `gpytorch_values.json`, in float64.

    python -m venv peers && peers/bin/pip install torch==2.13.0 gpytorch==1.15.2
    peers/bin/python tests/kernels/make_gpytorch_values.py

GPyTorch has no arc-cosine kernel and no white one; what it has under another convention is frozen
as it is, and the test converts. Its spectral mixture in several coordinates is a product of
mixtures in one coordinate each (cornellius-gp/gpytorch issue 1815).
"""

import json
from pathlib import Path

import gpytorch
import numpy as np
import torch
from gpytorch import kernels as gk

SHAPES = {"X": (5, 3), "Y": (3, 3)}


def points() -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    return {
        name: torch.tensor(random.normal(size=shape).round(3)) for name, shape in SHAPES.items()
    }


def with_values(kernel: gk.Kernel, **values: object) -> gk.Kernel:
    """Set constrained values, each reshaped to the parameter that holds it."""
    kernel = kernel.double()
    for name, value in values.items():
        shape = getattr(kernel, name).shape
        setattr(kernel, name, torch.as_tensor(value, dtype=torch.float64).reshape(shape))
    return kernel


def kernels() -> dict[str, gk.Kernel]:
    ard = [0.6, 1.1, 1.9]
    weights = [0.7, 1.2]
    means = [[0.3, 0.1, 0.5], [0.05, 0.4, 0.2]]
    scales = [[0.05, 0.1, 0.02], [0.2, 0.03, 0.1]]
    return {
        "RBF": with_values(gk.RBFKernel(ard_num_dims=3), lengthscale=ard),
        "RationalQuadratic": with_values(gk.RQKernel(), lengthscale=0.8, alpha=0.7),
        "Matern12": with_values(gk.MaternKernel(0.5), lengthscale=0.8),
        "Matern32": with_values(gk.MaternKernel(1.5), lengthscale=0.8),
        "Matern52": with_values(gk.MaternKernel(2.5), lengthscale=0.8),
        "Periodic": with_values(
            gk.PeriodicKernel(ard_num_dims=3), lengthscale=ard, period_length=ard[::-1]
        ),
        "Cosine": with_values(gk.CosineKernel(active_dims=[0]), period_length=0.9),
        "Linear": with_values(gk.LinearKernel(ard_num_dims=3), variance=ard),
        "Polynomial": with_values(gk.PolynomialKernel(power=3), offset=0.7),
        "Constant": with_values(gk.ConstantKernel(), constant=1.7),
        "SpectralMixture, D = 1": with_values(
            gk.SpectralMixtureKernel(num_mixtures=2, active_dims=[0]),
            mixture_weights=weights,
            mixture_means=[row[0] for row in means],
            mixture_scales=[row[0] for row in scales],
        ),
        "SpectralMixture": with_values(
            gk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=3),
            mixture_weights=weights,
            mixture_means=means,
            mixture_scales=scales,
        ),
    }


def main() -> None:
    inputs = points()
    with torch.no_grad():
        matrices = {
            name: kernel(inputs["X"], inputs["Y"]).to_dense().tolist()
            for name, kernel in kernels().items()
        }
    versions = {"torch": torch.__version__, "gpytorch": gpytorch.__version__}
    frozen = {"versions": versions} | {k: v.tolist() for k, v in inputs.items()}
    path = Path(__file__).with_name("gpytorch_values.json")
    path.write_text(json.dumps(frozen | {"matrices": matrices}, indent=1) + "\n")


if __name__ == "__main__":
    main()
