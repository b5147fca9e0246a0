"""The kernel candidates of `select` as data: arrays of integers and factors, one compiled program.

A configuration is (kernel, metric, width factor): one eigendecomposition. Each carries all filters
and both references, whose held-out loss costs a matrix product.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitppl.kernels import RBF, InverseMultiquadric, Radial
from implicitppl.kernels._radial import Lengthscale, Scalar

KERNELS = ("RBF", "InverseMultiquadric")
FACTORS = (0.7, 1.0, 1.4, 2.0, 4.0)
LEVELS = tuple(float(level) for level in 10.0 ** -np.arange(0, 6.01, 0.5))
POWERS = (1.0, 2.0)
DEFAULT_LEVEL = 10.0**-1.5
REFERENCES = ("none", "gaussian")
# A whitened kernel with fewer samples for each dimension would be whitened by a shrunk covariance.
SAMPLES_PER_DIMENSION = 5


class RadialChoice(Radial):
    """`RBF` or `InverseMultiquadric`, chosen by an integer that may be traced."""

    lengthscale: Lengthscale = 1.0
    choice: Int[Array, ""] | int = 0
    variance: Scalar = eqx.field(default=1.0, static=True)

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(self._is_rbf(), RBF().profile(t), InverseMultiquadric().profile(t))

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        first, second = RBF().profile_slope(t), InverseMultiquadric().profile_slope(t)
        return jnp.where(self._is_rbf(), first, second)

    def _is_rbf(self) -> Array:
        return jnp.asarray(self.choice) == 0


class Grid(NamedTuple):
    """Configurations, as NumPy arrays of equal length, and the names of the metrics."""

    kernel: np.ndarray
    metric: np.ndarray
    factor: np.ndarray
    metrics: tuple[str, ...]


class Filters(NamedTuple):
    """The candidates within one configuration: reference x power x level, as NumPy arrays."""

    reference: np.ndarray
    power: np.ndarray
    level: np.ndarray


def kernel_grid(num_train: int, dimension: int, num_covariates: int = 0) -> Grid:
    """Return the configurations for training sets of a given size.

    Args:
        num_train: samples of a fold.
        dimension: C + D.
        num_covariates: C; covariates have their own scale in every metric, so that "diagonal"
            differs from "isotropic" by the other coordinates alone.
    """
    metrics = ["isotropic"]
    if dimension - num_covariates > 1:
        metrics.append("diagonal")
    if dimension > 1 and num_train >= SAMPLES_PER_DIMENSION * (dimension + 1):
        metrics.append("whitened")
    axes = np.meshgrid(np.arange(len(KERNELS)), np.arange(len(metrics)), FACTORS, indexing="ij")
    kernel, metric, factor = (axis.ravel() for axis in axes)
    return Grid(kernel, metric, factor, tuple(metrics))


def default_configuration(grid: Grid) -> int:
    """Return the place of the RBF kernel with the median width in the isotropic metric."""
    return int(np.flatnonzero((grid.kernel == 0) & (grid.metric == 0) & (grid.factor == 1.0))[0])


def default_filters(filters: Filters) -> list[int]:
    """Return the places of Tikhonov with a level of .03, without and with the Gaussian."""
    chosen = (filters.power == 1) & np.isclose(filters.level, DEFAULT_LEVEL)
    return [int(place) for place in np.flatnonzero(chosen)]


def filter_grid() -> Filters:
    """Return the filters of every configuration."""
    axes = np.meshgrid(np.arange(len(REFERENCES)), POWERS, LEVELS, indexing="ij")
    return Filters(*(axis.ravel() for axis in axes))
