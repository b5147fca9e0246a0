"""Picture of what `implicitppl.score.select` compared: the criterion of every candidate."""

from typing import Any

import numpy as np

from implicitppl.score import FittedScore
from implicitppl.score._selection.info import SelectionInfo

_COLOURS = {"isotropic": "#3b6fb6", "diagonal": "#3a923a", "whitened": "#d1560f"}
_STYLES = {1.0: "-", 2.0: "--"}


def plot_selection(fitted: FittedScore, *, title: str | None = None) -> Any:
    """Held-out loss of every candidate of `select`, relative to the Gaussian plug-in.

    Args:
        fitted: what `implicitppl.score.select` returned for one problem.
        title: of the figure.

    Returns:
        A matplotlib `Figure`: a panel for each kernel and reference, the loss difference plus the
        charged standard errors over the level of regularisation, a line for each width, solid for
        Tikhonov and dashed for the ridge of SSGE. Candidates below the zero line are better
        than the Gaussian beyond the standard errors that they are charged; circles are the kernel
        members of the stack, which may lie above it where averaging makes them useful.

    Raises:
        ValueError: for a score that was not made by `select`, for several problems at once, and
            for fewer samples than `select` compares candidates on.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics import plot_selection
        >>> from implicitppl.score import select
        >>> samples = jax.random.normal(jax.random.key(0), (60, 1))
        >>> len(plot_selection(select(samples, key=jax.random.key(1))).axes)
        4
    """
    from matplotlib.figure import Figure

    info = fitted.info
    if not isinstance(info, SelectionInfo) or info.all_gains.ndim != 2:
        raise ValueError("`fitted` must be one score made by `implicitppl.score.select`.")
    if info.num_judged == 0:
        raise ValueError(
            f"`fitted` has no candidates to show: {info.num_samples} samples are too few to hold "
            "any out."
        )
    from implicitppl.score._selection.grid import KERNELS, REFERENCES

    criterion = np.asarray(info.all_gains + info.num_errors * info.all_errors)
    grid, filters = np.asarray(info.grid), np.asarray(info.filters)
    best = np.nanmin(np.where(np.isfinite(criterion), criterion, np.nan))
    low = min(1.3 * best, -0.02)
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(len(KERNELS), len(REFERENCES), sharex=True, sharey=True)
    for (kernel, reference), axis in np.ndenumerate(axes):
        for config in np.flatnonzero(grid[:, 0] == kernel):
            name = info.metrics[int(grid[config, 1])]
            for power, style in _STYLES.items():
                rows = (filters[:, 0] == reference) & np.isclose(filters[:, 1], power)
                values = np.minimum(criterion[config, rows], -2 * low)
                axis.plot(filters[rows, 2], values, style, color=_COLOURS[name], lw=0.8, alpha=0.6)
        axis.axhline(0, color="black", lw=1)
        axis.set(xscale="log", ylim=(low, -low))
        axis.set_title(f"{KERNELS[int(kernel)]}, reference {REFERENCES[int(reference)]}")
    shares = np.asarray(info.weights)
    charged = np.asarray(info.gain + info.num_errors * info.error)
    for r in np.flatnonzero(shares > 0):
        axis = axes[int(info.kernel[r]), int(info.reference[r])]
        area = 30 + 300 * shares[r]
        axis.scatter(float(info.level[r]), charged[r], s=area, fc="none", ec="black", zorder=3)
    for name in info.metrics:
        axes[0, 0].plot([], [], color=_COLOURS[name], label=name)
    axes[0, 0].legend(frameon=False)
    figure.supxlabel("regularisation, as a share of the largest eigenvalue")
    figure.supylabel(f"loss - loss of the Gaussian, + {float(info.num_errors):g} standard errors")
    if title is not None:
        figure.suptitle(title)
    return figure
