"""Series to extrapolate, the kernels that try, and how they are judged.

The first 70% are fitted and the last 30% predicted. Times and values are standardised on the
fitted part, and every figure is in its standard deviations: a log density has log sd added to be
one of the values as they come.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from statsmodels import datasets

from implicitppl.kernels import (
    RBF,
    Kernel,
    Periodic,
    RationalQuadratic,
    SpectralMixture,
    constrain,
    nkn_time_series,
    parameters,
    unconstrain,
)

FITTED = 0.7
COMPONENTS = 6
SPREAD = 0.5
"""Standard deviation by which a restart moves the logarithm of a hand-made kernel's parameters."""
SHORTEST, LONGEST = 0.03, 2.0
"""Lengthscales between which an RBF kernel starts."""
NORMAL_95 = 1.959964


Start = Callable[[jax.Array, bool], Kernel]
"""From a key, and whether it is the first start, to the kernel that is fitted."""


class Series(NamedTuple):
    """A series, standardised on its first `num_fitted` values; `year` and `scale` lead back."""

    x: np.ndarray
    y: np.ndarray
    num_fitted: int
    start: float
    year: float  # one year, in units of x
    centre: float
    scale: float
    unit: str

    @property
    def years(self) -> np.ndarray:
        return self.start + self.x / self.year

    @property
    def values(self) -> np.ndarray:
        return self.centre + self.scale * self.y


def series(years: np.ndarray, values: np.ndarray, unit: str) -> Series:
    """Return the series without its missing values, standardised on the first 70%."""
    known = np.isfinite(values)
    years, values = years[known], values[known]
    num = round(FITTED * len(values))
    start, centre = years[:num].mean(), values[:num].mean()
    spread, scale = years[:num].std(), values[:num].std()
    return Series(
        (years - start) / spread,
        (values - centre) / scale,
        num,
        float(start),
        float(1 / spread),
        float(centre),
        float(scale),
        unit,
    )


def co2() -> Series:
    """Monthly means of CO2 at Mauna Loa, 1958 to 2001, without the months that have no value."""
    monthly = datasets.co2.load_pandas().data["co2"].resample("MS").mean()
    years = monthly.index.year + (monthly.index.month - 0.5) / 12
    return series(years.to_numpy(float), monthly.to_numpy(float), "CO2, ppm")


def sunspots() -> Series:
    """Yearly numbers of sunspots, 1700 to 2008."""
    table = datasets.sunspots.load_pandas().data
    values = table["SUNACTIVITY"].to_numpy(float)
    return series(table["YEAR"].to_numpy(float), values, "sunspots")


def airline(data: Path) -> Series:
    """Logarithms of the monthly passengers of 1949 to 1960: the season grows with the trend."""
    passengers = np.loadtxt(data / "series" / "airline-pass.txt").reshape(-1)
    years = 1949 + (np.arange(len(passengers)) + 0.5) / 12
    return series(years, np.log(passengers), "log passengers, thousands")


def cut(s: Series, num: int) -> Series:
    """Return the first `num` values as a series."""
    return series(s.years[:num], s.values[:num], s.unit)


def hand_made(name: str, year: float) -> Kernel:
    """Return what a person who knows the series would write, periods included.

    CO2 as in Rasmussen and Williams, section 5.4.3: trend + season that drifts + irregularities.
    """
    if name == "sunspots":
        return RBF(30 * year) * Periodic(1.0, period=11 * year) + RationalQuadratic(
            5 * year, 0.3, mixture=1.0
        )
    season = RBF(50 * year) * Periodic(1.0, 0.1, period=year)
    irregular = RationalQuadratic(year, 0.01, mixture=1.0)
    return RBF(30 * year, 4.0) + season + irregular


def moved(kernel: Kernel, key: jax.Array) -> Kernel:
    """Return the kernel with the logarithm of every parameter but the periods moved a little."""
    kinds = [parameter.kind for parameter in parameters(kernel).values()]
    leaves, structure = jax.tree.flatten(unconstrain(kernel))
    keys = jax.random.split(key, len(leaves))
    new = [
        leaf if kind == "period" else leaf + SPREAD * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, kind, k in zip(leaves, kinds, keys, strict=True)
    ]
    return constrain(jax.tree.unflatten(structure, new))


def kernels(name: str, s: Series) -> dict[str, Start]:
    """Return for each method the kernel to start from, given a key; the default one at first."""
    x, y = jnp.asarray(s.x[: s.num_fitted]), s.y[: s.num_fitted]

    def near(kernel: Kernel) -> Start:
        return lambda key, is_first: kernel if is_first else moved(kernel, key)

    def radial(key: jax.Array, is_first: bool) -> Kernel:
        # Evidence has a maximum where the season is noise and one where it is followed.
        span = jnp.log(jnp.asarray(SHORTEST)), jnp.log(jnp.asarray(LONGEST))
        drawn = jnp.exp(jax.random.uniform(key, minval=span[0], maxval=span[1]))
        return RBF(SHORTEST if is_first else drawn)

    return {
        "RBF": radial,
        "spectral mixture": lambda key, is_first: SpectralMixture.from_data(
            x, y, COMPONENTS, key=None if is_first else key
        ),
        "hand-made": near(hand_made(name, s.year)),
        "NKN as published": lambda key, is_first: nkn_time_series(x[:, None], key=key),
        "NKN": lambda key, is_first: nkn_time_series(x[:, None], y, key=key),
    }


def figures(y: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> dict[str, float]:
    """Return what a prediction N(mean, covariance) is worth where y was found.

    `log_density` is the mean over points of that of each alone, `joint` that of all together,
    divided by their number; `coverage` the share within 95% intervals.
    """
    variance = np.diagonal(covariance)
    z = (y - mean) / np.sqrt(variance)
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, y - mean)
    log_det = 2 * np.sum(np.log(np.diagonal(factor)))
    half = 0.5 * np.log(2 * np.pi)
    return {
        "log_density": float(np.mean(-0.5 * z**2 - 0.5 * np.log(variance)) - half),
        "joint": float(-0.5 * (white @ white + log_det) / len(y) - half),
        "rmse": float(np.sqrt(np.mean((y - mean) ** 2))),
        "coverage": float(np.mean(np.abs(z) < NORMAL_95)),
    }
