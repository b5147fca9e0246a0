"""Pictures of a guide beside its reference: pair plot, forest plot, loss trace.

Drawn with matplotlib from draws in any form (dict, `InferenceData`, `DataTree`), so that both ArviZ
lines give the same picture. Figures are made without pyplot: no global state, any backend.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from implicitppl.diagnostics._draws import paired_columns

_REFERENCE = "#3b6fb6"  # blue and vermilion: distinct in print and for colour-blind readers
_GUIDE = "#d1560f"
_GREY = "#555555"
_MASS = (0.9, 0.5)


def plot_pair(
    reference: Any,
    guide: Any,
    var_names: Sequence[str] | None = None,
    *,
    max_vars: int = 6,
    labels: tuple[str, str] = ("NUTS", "guide"),
    max_points: int = 1500,
    title: str | None = None,
) -> Any:
    """Pair plot of guide draws over reference draws: 50% and 90% contours, points, marginals.

    Args:
        reference: dict of draws or an ArviZ object; fixes the axes.
        guide: the same for the guide.
        var_names: sites to show; default all common ones.
        max_vars: scalars shown at most, the first ones.
        labels: names in the legend.
        max_points: points drawn per cloud.
        title: of the figure.

    Returns:
        A matplotlib `Figure`; `figure.savefig(path)` writes it.

    Raises:
        ValueError: no common site, or fewer than one scalar.

    Reference:
        Contours are highest-density regions of a Gaussian kernel density estimate.

    Example:
        >>> import numpy as np
        >>> from implicitppl.diagnostics import plot_pair
        >>> rng = np.random.default_rng(0)
        >>> x = {"a": rng.normal(size=100), "b": rng.normal(size=100)}
        >>> len(plot_pair(x, x).axes)
        3
    """
    from matplotlib.figure import Figure

    names, x, y = paired_columns(reference, guide, var_names)
    p = min(len(names), max_vars)
    side = max(4.2, 1.9 * p + 0.6)
    figure = Figure(figsize=(side, side), layout="constrained")
    grid = figure.subplots(p, p, squeeze=False)
    limits = [_limits(x[:, i], y[:, i]) for i in range(p)]
    for row in range(p):
        for col in range(p):
            axis = grid[row][col]
            if col > row:
                axis.remove()
                continue
            if row == col:
                _marginal(axis, x[:, row], y[:, row], limits[row])
            else:
                _cloud(
                    axis, x[:, [col, row]], y[:, [col, row]], limits[col], limits[row], max_points
                )
            _dress(axis, names, row, col, p)
    _legend(figure, labels, p)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _limits(x: Any, y: Any) -> tuple[float, float]:
    """Range of the reference's 0.5% to 99.5% and the guide's 2.5% to 97.5%, with a margin."""
    low = float(min(np.quantile(x, 0.005), np.quantile(y, 0.025)))
    high = float(max(np.quantile(x, 0.995), np.quantile(y, 0.975)))
    margin = 0.06 * (high - low) or 1.0
    positive = min(x.min(), y.min()) >= 0 and low < margin
    return 0.0 if positive else low - margin, high + margin


def _density(points: Any, grid: Any, limits: list[tuple[float, float]]) -> Any:
    """Kernel density estimate of `(n, d)` points on a `(d, g)` grid; None for degenerate points.

    A positive quantity that reaches down to zero (its axis starts there) is reflected at zero, so
    that the estimate does not leak mass to negative values.
    """
    from scipy.stats import gaussian_kde

    if np.linalg.matrix_rank(np.atleast_2d(np.cov(points.T))) < points.shape[1]:
        return None
    estimate = gaussian_kde(points.T)
    total = estimate(grid)
    for axis, (low, _) in enumerate(limits):
        if low == 0.0:
            mirrored = grid.copy()
            mirrored[axis] *= -1
            total = total + estimate(mirrored)
    return total


def _marginal(axis: Any, x: Any, y: Any, limits: tuple[float, float]) -> None:
    grid = np.linspace(*limits, 200)
    for values, colour in ((x, _REFERENCE), (y, _GUIDE)):
        height = _density(values[:, None], grid[None], [limits])
        if height is None:
            axis.axvline(values[0], color=colour, lw=1.6)
            continue
        axis.plot(grid, height, color=colour, lw=1.6)
        axis.fill_between(grid, height, color=colour, alpha=0.12, lw=0)
    axis.set_xlim(*limits)
    axis.set_ylim(bottom=0)
    axis.set_yticks([])


def _cloud(
    axis: Any, x: Any, y: Any, xlim: tuple[float, float], ylim: tuple[float, float], max_points: int
) -> None:
    for points, colour, order in ((x, _REFERENCE, 1), (y, _GUIDE, 2)):
        thin = points[:: max(1, math.ceil(len(points) / max_points))]
        axis.plot(
            *thin.T, ".", color=colour, ms=2.6, alpha=0.3, zorder=order, mew=0, rasterized=True
        )
        _contours(axis, points, colour, xlim, ylim, order + 2)
    axis.set_xlim(*xlim)
    axis.set_ylim(*ylim)


def _contours(
    axis: Any,
    points: Any,
    colour: str,
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    order: int,
) -> None:
    points = points[:: max(1, math.ceil(len(points) / 2000))]
    own = _density(points, points.T, [xlim, ylim])
    if own is None:
        return
    levels = [np.quantile(own, 1 - mass) for mass in _MASS]
    if levels[0] < levels[1]:
        gx, gy = np.meshgrid(np.linspace(*xlim, 70), np.linspace(*ylim, 70))
        heights = _density(points, np.stack([gx.ravel(), gy.ravel()]), [xlim, ylim])
        axis.contour(
            gx,
            gy,
            heights.reshape(gx.shape),
            levels=levels,
            colors=[colour],
            linewidths=[1.0, 1.6],
            zorder=order,
        )


def _dress(axis: Any, names: Sequence[str], row: int, col: int, p: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.tick_params(labelsize=8, color=_GREY, labelcolor=_GREY, length=3)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    if row != col:
        axis.yaxis.set_major_locator(MaxNLocator(3))
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)
    if row == p - 1:
        axis.set_xlabel(names[col], fontsize=10)
    else:
        axis.set_xticklabels([])
    if col == 0 and row > 0:
        axis.set_ylabel(names[row], fontsize=10)
    elif col > 0:
        axis.set_yticklabels([])


def _legend(figure: Any, labels: Any, p: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, lw=2) for c in (_REFERENCE, _GUIDE)]
    if p == 1:
        figure.legend(
            handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=10
        )
        return
    # the triangle above the diagonal is empty
    anchor = {"loc": "upper right", "bbox_to_anchor": (0.98, 0.97)}
    legend = figure.legend(handles, labels, frameon=False, fontsize=11, **anchor)
    legend.set_title("50% and 90% regions", prop={"size": 9})


def plot_forest(
    reference: Any,
    guide: Any,
    var_names: Sequence[str] | None = None,
    *,
    labels: tuple[str, str] = ("NUTS", "guide"),
    standardise: bool = False,
    max_vars: int = 40,
    title: str | None = None,
) -> Any:
    """Forest plot: median, 50% and 90% intervals of every scalar, reference above guide.

    Args:
        reference: dict of draws or an ArviZ object.
        guide: the same for the guide.
        var_names: sites to show; default all common ones.
        labels: names in the legend.
        standardise: measure every scalar in its reference sd from its reference mean; for scalars
            of different size.
        max_vars: scalars shown at most, the first ones.
        title: of the figure.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: no common site.

    Reference:
        Equal-tailed intervals.

    Example:
        >>> import numpy as np
        >>> from implicitppl.diagnostics import plot_forest
        >>> x = {"a": np.random.default_rng(0).normal(size=(100, 3))}
        >>> [t.get_text() for t in plot_forest(x, x).axes[0].get_yticklabels()]
        ['a[0]', 'a[1]', 'a[2]']
    """
    from matplotlib.figure import Figure

    names, x, y = paired_columns(reference, guide, var_names)
    names, x, y = names[:max_vars], x[:, :max_vars], y[:, :max_vars]
    if standardise:
        mean, sd = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
        x, y = (x - mean) / sd, (y - mean) / sd
    figure = Figure(figsize=(6.4, 1.3 + 0.36 * len(names)), layout="constrained")
    axis = figure.subplots()
    rows = np.arange(len(names))
    for table, colour, offset, label in (
        (x, _REFERENCE, -0.16, labels[0]),
        (y, _GUIDE, 0.16, labels[1]),
    ):
        _intervals(axis, table, rows + offset, colour, label)
    axis.set_yticks(rows, names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", labelsize=9, color=_GREY, labelcolor=_GREY)
    axis.grid(axis="x", color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)
    axis.set_xlabel("reference sd from reference mean" if standardise else "value", fontsize=9)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    return figure


def _intervals(axis: Any, table: Any, positions: Any, colour: str, label: str) -> None:
    low, q1, middle, q3, high = np.quantile(table, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    axis.hlines(positions, low, high, color=colour, lw=1.2)
    axis.hlines(positions, q1, q3, color=colour, lw=3.4)
    axis.plot(middle, positions, "o", color="white", mec=colour, mew=1.4, ms=5, label=label)


def plot_loss(
    losses: Any, *, window: int | None = None, ylabel: str = "loss", title: str | None = None
) -> Any:
    """Loss trace with its running median; the axis shows the later part, where it converges.

    Args:
        losses: one loss per step; NaN (rejected steps) leave gaps.
        window: steps of the running median; default a fiftieth of the trace.
        ylabel: what the number is. A surrogate loss is not a bound: say so here.
        title: of the figure.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: not a vector, or no finite loss.

    Reference:
        None.

    Example:
        >>> import numpy as np
        >>> from implicitppl.diagnostics import plot_loss
        >>> plot_loss(1 / np.arange(1, 100)).axes[0].get_xlabel()
        'step'
    """
    from matplotlib.figure import Figure

    y = np.asarray(losses, dtype=float)
    if y.ndim != 1 or not np.isfinite(y).any():
        raise ValueError(f"`losses` must be a vector with a finite entry; got shape {y.shape}.")
    y = np.where(np.isfinite(y), y, np.nan)
    window = max(1, len(y) // 50) if window is None else window
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    steps = np.arange(1, len(y) + 1)
    axis.plot(steps, y, color=_REFERENCE, lw=0.7, alpha=0.35, label="every step")
    centres, medians = _running_median(y, window)
    axis.plot(centres, medians, color=_GUIDE, lw=1.8, label=f"median of {window} steps")
    axis.set_ylim(*_loss_limits(y))
    axis.set_xlim(1, max(2, len(y)))
    axis.set_xlabel("step", fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.tick_params(labelsize=9, color=_GREY, labelcolor=_GREY)
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)
    axis.legend(fontsize=9, loc="upper right", framealpha=0.9, edgecolor="none")
    if title:
        axis.set_title(title, fontsize=11, loc="left")
    return figure


def _running_median(y: Any, window: int) -> tuple[np.ndarray, np.ndarray]:
    size = len(y) // window * window
    blocks = y[:size].reshape(-1, window)
    good = np.isfinite(blocks).any(1)
    centres = (np.arange(len(blocks)) + 0.5) * window + 0.5
    return centres[good], np.nanmedian(blocks[good], axis=1)


def _loss_limits(y: Any) -> tuple[float, float]:
    """Range of the last nine tenths of the trace: the first steps would hide the rest."""
    late = y[len(y) // 10 :]
    late = late[np.isfinite(late)] if np.isfinite(late).any() else y[np.isfinite(y)]
    low, high = map(float, np.quantile(late, [0.002, 0.998]))
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin
