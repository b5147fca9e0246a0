"""The kernel candidates of `select` as data: arrays of integers and factors, one compiled program.

A configuration is (kernel, metric, width factor): one eigendecomposition. Each carries all filters
and both references, whose held-out loss costs a matrix product.
"""

from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitppl.kernels import RBF, InverseMultiquadric, Radial
from implicitppl.kernels._radial import Lengthscale, Scalar
from implicitppl.score._sample import Sample

KERNELS = ("RBF", "InverseMultiquadric")
FACTORS = (0.7, 1.0, 1.4, 2.0, 4.0)
LEVELS = tuple(float(level) for level in 10.0 ** -np.arange(0, 6.01, 0.5))
POWERS = (1.0, 2.0)
DEFAULT_LEVEL = 10.0**-1.5
REFERENCES = ("none", "gaussian")
# A whitened kernel with fewer samples for each dimension would be whitened by a shrunk covariance.
SAMPLES_PER_DIMENSION = 5


# In the grid a NumPy array; an entry, or several, is a JAX array.
Column = Any
Table = TypeVar("Table", "Configurations", "Filters")


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


class Configurations(NamedTuple):
    """Kernel x metric x width factor: one eigendecomposition each, columns of equal length."""

    kernel: Column
    metric: Column
    factor: Column


class Filters(NamedTuple):
    """The candidates within one configuration: reference x power x level, columns."""

    reference: Column
    power: Column
    level: Column


class Grid(NamedTuple):
    """All kernel candidates, in NumPy, and the names of the metrics."""

    configurations: Configurations
    filters: Filters
    metrics: tuple[str, ...]

    @property
    def num_configurations(self) -> int:
        """N."""
        return len(self.configurations.kernel)

    @property
    def num_filters(self) -> int:
        """F."""
        return len(self.filters.level)

    @property
    def default_configuration(self) -> int:
        """The index of the RBF kernel with the median width in the isotropic metric."""
        kernel, metric, factor = self.configurations
        return int(np.flatnonzero((kernel == 0) & (metric == 0) & (factor == 1.0))[0])

    @property
    def default_filters(self) -> list[int]:
        """The indices of Tikhonov with a level of .03, without and with the Gaussian."""
        _, power, level = self.filters
        return [int(f) for f in np.flatnonzero((power == 1) & np.isclose(level, DEFAULT_LEVEL))]


def kernel_grid(num_train: int, sample: Sample) -> Grid:
    """Return the candidates for training sets of a given size.

    Covariates have their own scale in every metric, so that "diagonal" differs from "isotropic" by
    the other coordinates alone.
    """
    num_coordinates = sample.rows.shape[1]
    metrics = ["isotropic"]
    if sample.dimension > 1:
        metrics.append("diagonal")
    if num_coordinates > 1 and num_train >= SAMPLES_PER_DIMENSION * (num_coordinates + 1):
        metrics.append("whitened")
    return Grid(
        Configurations(*_product(np.arange(len(KERNELS)), np.arange(len(metrics)), FACTORS)),
        Filters(*_product(np.arange(len(REFERENCES)), POWERS, LEVELS)),
        tuple(metrics),
    )


def entries(table: Table, index: Any, dtype: jnp.dtype) -> Table:
    """Return the entries of a table of NumPy columns at an index, which may be traced."""

    def entry(column: np.ndarray) -> Array:
        is_real = np.issubdtype(column.dtype, np.floating)
        return jnp.asarray(column, dtype if is_real else None)[index]

    return type(table)(*map(entry, table))


def as_rows(table: Configurations | Filters, dtype: jnp.dtype) -> Float[Array, "rows 3"]:
    """Return a table as one array, for reports."""
    return jnp.asarray(np.stack(table, axis=1), dtype)


def _product(*axes: Any) -> list[np.ndarray]:
    """Return the columns of all combinations."""
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
