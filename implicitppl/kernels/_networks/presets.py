"""Networks of the published experiments, started from data.

Sun et al. (2018), arXiv 1806.04326, section 5 and the authors' code. Three things are not as there:

- The variance of a linear primitive is 1/D on standardised inputs, and the last layer is scaled to
  a mean prior variance of 1. As published the mean variance at the start is 42 for D = 4, 382 for
  D = 8 and a million for D = 90.
- Given values, periods start at those that the values show: from the published ones learning seldom
  gets there (docs/series.md).
- Thresholds are relative to the standard deviation of a column, so that units do not matter. On
  standardised inputs this is what was published.

The papers' periodic kernel is exp(-sin^2(pi d / p) / (2 l^2)); `Periodic` has 2 sin^2 / l^2, and
its lengthscale is twice theirs.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl.kernels._base import Kernel
from implicitppl.kernels._dot import Linear
from implicitppl.kernels._networks.network import NeuralKernelNetwork
from implicitppl.kernels._networks.periodogram import strongest_frequencies
from implicitppl.kernels._periodic import Periodic
from implicitppl.kernels._radial import RBF, RationalQuadratic

WIDTHS = (8, 4)
"""Linear layers of every published network, each followed by products of two."""

MAX_ROWS = 1000
"""Rows that medians are taken over; evenly spaced ones of more."""

MIN_CYCLES = 3
"""Cycles that the data must hold of a period that they are said to show."""

MIN_WIDTHS = 1.5
"""Between two frequencies, in units of 1 / range: nearer ones are one peak of the periodogram."""

NUM_SINUSOIDS = 12
"""Taken from the values in search of periods."""


def nkn_regression(
    x: Float[Array, "N D"], *, key: PRNGKeyArray, variance: ArrayLike = 1.0
) -> NeuralKernelNetwork:
    """Return the network for regression on tables: 2 linear, 2 RBF and 2 RQ primitives.

    Args:
        x: inputs (N, D), better standardised; they set the lengthscales, one for each column.
        key: of the weights.
        variance: mean prior variance over `x` at the start; 1 fits standardised values.

    Returns:
        A `NeuralKernelNetwork` of degree 4: a polynomial of 210 terms.

    Raises:
        ValueError: if `x` is not (N, D) with N >= 2, or not finite.

    Reference: Sun et al. (2018), section 5.

    Example:
        >>> import jax
        >>> from implicitppl.kernels import nkn_regression
        >>> x = jax.random.normal(jax.random.key(0), (50, 8))
        >>> k = nkn_regression(x, key=jax.random.key(1))
        >>> round(float(k.diag(x).mean()), 3)
        1.0
    """
    data = _checked(x)
    scale = _lengthscale(data)
    slopes = _slope_variance(data)

    def linear() -> Linear:
        return Linear(jnp.full(data.shape[1:], slopes, x.dtype))

    def at(factor: float) -> Array:
        return jnp.asarray(factor * scale, x.dtype)

    primitives = (
        linear(),
        linear(),
        RBF(at(1 / 6)),
        RBF(at(2 / 3)),
        RationalQuadratic(at(1 / 3), mixture=0.1),
        RationalQuadratic(at(1 / 3), mixture=1.0),
    )
    return _network(primitives, x, key, variance)


def nkn_time_series(
    x: Float[Array, "N D"],
    y: ArrayLike | None = None,
    *,
    key: PRNGKeyArray,
    variance: ArrayLike = 1.0,
) -> NeuralKernelNetwork:
    """Return the network for extrapolating series: 8 primitives, of which 2 are periodic.

    Args:
        x: times (N, 1), better standardised: the linear primitives are 0 at 0.
        y: values (N,). Periods start at the strongest two that they show beside a parabola, each
            at least three times; as published where they show none, or are not given.
        key: of the weights.
        variance: mean prior variance over `x` at the start.

    Returns:
        A `NeuralKernelNetwork` of degree 4: a polynomial of 495 terms. As published, periods start
        at the median distance of times and a quarter of it, from where a likelihood of many maxima
        seldom leads to those of the data: give `y`, or set them where you know better.

    Raises:
        ValueError: if `x` is not (N, 1) with N >= 2, `y` is not (N,), or one is not finite.

    Reference: Sun et al. (2018), section 5.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.kernels import nkn_time_series
        >>> k = nkn_time_series(jnp.linspace(-1.0, 1.0, 144)[:, None], key=jax.random.key(0))
        >>> k.names[1]
        'Periodic_1'
    """
    data = _checked(x, one_column=True)
    length = float(_lengthscale(data)[0])
    slopes = _slope_variance(data)
    periods = _periods(data, y, (length, length / 4))
    primitives = (
        Linear(slopes),
        Periodic(2 * length, period=periods[0]),
        RBF(length / 4),
        RationalQuadratic(2 * length, mixture=0.2),
        Linear(slopes),
        RationalQuadratic(length, mixture=0.1),
        RBF(length),
        Periodic(length / 2, period=periods[1]),
    )
    return _network(primitives, x, key, variance)


def nkn_texture(
    x: Float[Array, "N D"],
    y: ArrayLike | None = None,
    *,
    key: PRNGKeyArray,
    variance: ArrayLike = 1.0,
) -> NeuralKernelNetwork:
    """Return the network for one axis of a picture; the kernel of the picture is a product of two.

    Args:
        x: positions of rows or of columns (N, 1), in units of the picture's side.
        y: a profile along the axis (N,), such as a singular vector of the picture. The period
            starts at the strongest that it shows, as for `nkn_time_series`.
        key: of the weights.
        variance: mean prior variance over `x` at the start.

    Returns:
        A `NeuralKernelNetwork` of RBF, linear, RQ and periodic (period 0.1) primitives.

    Raises:
        ValueError: if `x` is not (N, 1) with N >= 2, `y` is not (N,), or one is not finite.

    Reference: Sun et al. (2018), section 5.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.kernels import nkn_texture
        >>> k1, k2 = jax.random.split(jax.random.key(0))
        >>> axis = jnp.arange(224.0)[:, None] / 224
        >>> k = nkn_texture(axis, key=k1).on(0) * nkn_texture(axis, key=k2).on(1)
        >>> k.gram(jnp.zeros((5, 2))).shape
        (5, 5)
    """
    data = _checked(x, one_column=True)
    length = float(_lengthscale(data)[0])
    (period,) = _periods(data, y, (0.1,))
    primitives = (
        RBF(length, 0.1),
        Linear(0.1 * _slope_variance(data)),
        RationalQuadratic(length, 0.1, mixture=1.0),
        Periodic(2 * length, 0.1, period=period),
    )
    return _network(primitives, x, key, variance)


def nkn_bayesian_optimisation(
    num_dims: int, *, key: PRNGKeyArray, lengthscale: ArrayLike = 0.3, variance: ArrayLike = 1.0
) -> NeuralKernelNetwork:
    """Return the network for functions that are sums over groups of coordinates.

    One RBF for each coordinate; sums and products of them find the groups.

    Args:
        num_dims: number of coordinates.
        key: of the weights.
        lengthscale: of every coordinate; 0.3 as published.
        variance: prior variance at the start.

    Returns:
        A `NeuralKernelNetwork` of degree 4: for 10 coordinates a polynomial of 1001 terms.

    Raises:
        ValueError: if `num_dims` is below 1.

    Reference: Sun et al. (2018), section 5.

    Example:
        >>> import jax
        >>> from implicitppl.kernels import nkn_bayesian_optimisation
        >>> nkn_bayesian_optimisation(3, key=jax.random.key(0)).names
        ('RBF[0]', 'RBF[1]', 'RBF[2]')
    """
    if num_dims < 1:
        raise ValueError(f"`num_dims` must be at least 1; got {num_dims}.")
    primitives = tuple(RBF(lengthscale).on(d) for d in range(num_dims))
    return _network(primitives, jnp.zeros((1, num_dims)), key, variance)


def _network(
    primitives: tuple[Kernel, ...], x: Array, key: PRNGKeyArray, variance: ArrayLike
) -> NeuralKernelNetwork:
    network = NeuralKernelNetwork.from_widths(primitives, WIDTHS, key=key)
    return network.with_variance(x, variance)


def _checked(x: Array, *, one_column: bool = False) -> np.ndarray:
    """Return the inputs as numbers of the host."""
    data = np.asarray(x, np.float64)
    if data.ndim != 2 or len(data) < 2 or (one_column and data.shape[1] != 1):
        columns = "1" if one_column else "D"
        raise ValueError(f"`x` must be (N, {columns}) with N >= 2; got shape {data.shape}.")
    if not np.all(np.isfinite(data)):
        raise ValueError(f"`x` must be finite; {np.sum(~np.isfinite(data))} values are not.")
    return data


def _periods(times: np.ndarray, y: ArrayLike | None, usual: tuple[float, ...]) -> list[float]:
    """Return the strongest periods that values show, then the usual ones: as many as there are."""
    if y is None:
        return list(usual)
    values = np.asarray(y, np.float64)
    if values.shape != times.shape[:1] or not np.all(np.isfinite(values)):
        raise ValueError(f"`y` must be finite and ({len(times)},); got shape {values.shape}.")
    found = _shown_periods(times, values)[: len(usual)]
    return [*found, *usual[len(found) :]]


def _shown_periods(times: np.ndarray, values: np.ndarray) -> list[float]:
    """Return the periods that values show beside a parabola, the strongest first."""
    if len(np.unique(times)) < 4:
        return []
    centred = (times[:, 0] - times.mean()) / np.ptp(times)
    rest = values - np.polyval(np.polyfit(centred, values, 2), centred)
    if np.std(rest) <= 1e-9 * np.max(np.abs(values)):
        return []
    span = float(np.ptp(times))
    found: list[float] = []
    for frequency in strongest_frequencies(times, rest, NUM_SINUSOIDS, None)[:, 0].tolist():
        is_new = all(abs(frequency - other) * span > MIN_WIDTHS for other in found)
        if frequency * span >= MIN_CYCLES and is_new:
            found.append(frequency)
    return [1 / frequency for frequency in found]


def _lengthscale(data: np.ndarray) -> np.ndarray:
    """Return sqrt(D) times the median distance of two rows in each column, (D,).

    A column of which more than half the pairs coincide gets its standard deviation, and one that
    is constant gets 1.
    """
    rows = np.linspace(0, len(data) - 1, min(len(data), MAX_ROWS)).round().astype(int)
    first, second = np.triu_indices(len(rows), 1)
    columns = data[rows].T
    medians = np.array([np.median(np.abs(column[first] - column[second])) for column in columns])
    length = np.sqrt(data.shape[1]) * medians
    spread = _spread(data)
    return np.where(length < 1e-6 * spread, spread, length)


def _spread(data: np.ndarray) -> np.ndarray:
    """Return the standard deviation of every column, 1 where it is rounding of a constant."""
    deviation = np.std(data, axis=0)
    is_constant = deviation <= 1e-12 * np.max(np.abs(data), axis=0)
    return np.where(is_constant, 1.0, deviation)


def _slope_variance(data: np.ndarray) -> float:
    """Return the variance at which a linear kernel is 1 on average over the data.

    It is 1/D where all columns are standardised; constant columns of 0 leave it finite.
    """
    mean_square = float(np.mean(np.sum(np.square(data), axis=1)))
    return 1 / mean_square if mean_square > 0 else 1 / data.shape[1]
