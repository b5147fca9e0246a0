"""Frequencies that data show: the Lomb-Scargle periodogram of unevenly spaced values.

The power at frequency f is the part of sum_n y_n^2 that the best sinusoid a cos(2 pi f x) +
b sin(2 pi f x) explains, by least squares. Taking the best sinusoid away before the next is sought
keeps the side lobes of a strong one from being taken for others.

NumPy in float64: this chooses where learning starts, on the host and once.

Scargle (1982), Studies in astronomical time series analysis II, equation (10).
"""

import math

import numpy as np

_MAX_FREQUENCIES = 20_000
_OVERSAMPLING = 4  # frequencies for each width 1 / range of a peak
_BLOCK = 2**20


def spans(inputs: np.ndarray) -> np.ndarray:
    """Return the range of each coordinate, (D,).

    Raises:
        ValueError: if a coordinate is constant.
    """
    ranges = np.ptp(inputs, axis=0)
    if not np.all(ranges > 0):
        column = int(np.argmin(ranges))
        raise ValueError(f"`x` must vary in every coordinate; got a constant column {column}.")
    return ranges


def strongest_frequencies(
    inputs: np.ndarray, values: np.ndarray, num: int, seed: list[int] | None
) -> np.ndarray:
    """Return (num, D): for each coordinate the frequencies of the sinusoids taken from `values`.

    Args:
        inputs: points (N, D).
        values: values (N,).
        num: how many frequencies.
        seed: if given, frequencies are drawn in proportion to power; the highest is taken if not.
    """
    random = None if seed is None else np.random.default_rng(seed)
    columns = zip(inputs.T, spans(inputs), strict=True)
    found = np.empty((num, inputs.shape[1]))
    for d, (x, span) in enumerate(columns):
        grid = _grid(x, span, inputs.shape)
        rest = values - values.mean()
        for q in range(num):
            power, cosines, sines = _periodogram(x - x.mean(), rest, grid)
            total = power.sum()
            if random is None or not total > 0:
                best = int(np.argmax(power))
            else:
                best = int(random.choice(len(grid), p=power / total))
            angle = 2 * math.pi * grid[best] * (x - x.mean())
            rest = rest - cosines[best] * np.cos(angle) - sines[best] * np.sin(angle)
            found[q, d] = grid[best]
    return found


def _grid(x: np.ndarray, span: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return frequencies from half a cycle over the range to below the Nyquist frequency."""
    num, size = shape
    spacing = float(np.median(np.diff(np.unique(x))))
    if size > 1:  # projections of N points in a box lie closer than the points
        spacing = max(spacing, span * num ** (-1 / size))
    lowest, nyquist = 0.5 / span, 0.5 / spacing
    count = math.ceil((nyquist - lowest) * _OVERSAMPLING * span)
    return np.linspace(lowest, max(nyquist, lowest), min(max(count, 1), _MAX_FREQUENCIES), False)


def _periodogram(
    x: np.ndarray, y: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the power at every frequency, and the coefficients of cosine and sine there."""
    parts = []
    rows = max(1, _BLOCK // len(x))
    for start in range(0, len(grid), rows):
        angle = 2 * math.pi * grid[start : start + rows, None] * x[None, :]
        cosine, sine = np.cos(angle), np.sin(angle)
        cc, ss, cs = (cosine**2).sum(1), (sine**2).sum(1), (cosine * sine).sum(1)
        yc, ys = cosine @ y, sine @ y
        # Damped a little: near the Nyquist frequency of an even grid the sines may all vanish.
        cc, ss = cc + 1e-6 * len(x), ss + 1e-6 * len(x)
        determinant = cc * ss - cs**2
        a, b = (ss * yc - cs * ys) / determinant, (cc * ys - cs * yc) / determinant
        parts.append((np.maximum(a * yc + b * ys, 0), a, b))
    power, a, b = (np.concatenate(part) for part in zip(*parts, strict=True))
    return power, a, b
