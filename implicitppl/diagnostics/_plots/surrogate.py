"""Picture of a surrogate report: acceptance by place, the tails of the weights, and runs."""

from typing import Any

import numpy as np

from implicitppl.diagnostics._surrogate_report.parts import Groups
from implicitppl.diagnostics._surrogate_report.report import SurrogateReport
from implicitppl.diagnostics._surrogate_report.tail import FAR
from implicitppl.diagnostics._surrogate_report.warnings import LOW_GROUP

_BLUE, _ORANGE, _GREY = "#3b6fb6", "#d1560f", "#555555"


def plot_surrogate(report: SurrogateReport, *, title: str | None = None) -> Any:
    """Four panels: acceptance by energy and by distance from evaluations, gaps, runs of rejections.

    Orange is what the surrogate costs: groups below a quarter of the overall acceptance, draws
    with more than ten times the median weight, runs beyond the 1% limit.

    Args:
        report: what `surrogate_report` or `surrogate_checks` returned.
        title: of the figure.

    Returns:
        A matplotlib `Figure`; `figure.savefig(path)` writes it.

    Reference:
        None.

    Example:
        >>> import numpy as np
        >>> import implicitppl as ip
        >>> from implicitppl.diagnostics import plot_surrogate
        >>> from implicitppl.diagnostics._surrogate_report.report import surrogate_checks
        >>> x = np.random.default_rng(0).normal(size=(2, 100))
        >>> names = ("accept_prob", "diverging", "num_evaluations", "surrogate_error",
        ...     "integration_error", "surrogate_gap", "evaluation_distance", "potential_energy")
        >>> fields = {k: abs(x) for k in names}
        >>> fields |= {"move": np.zeros((2, 100), int), "num_failures": np.zeros((2, 100, 3))}
        >>> report = surrogate_checks({"x": x}, fields, moves=ip.infer.ScoreHMC.moves)
        >>> len(plot_surrogate(report).axes)
        4
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    (energy, distance), (gaps, runs) = figure.subplots(2, 2)
    overall = report.acceptance
    _places(energy, report.energy, overall, "true potential before the move, to quantile")
    _places(
        distance,
        report.distance,
        overall,
        "distance to the evaluations before the move, to quantile",
    )
    _gaps(gaps, report)
    _runs(runs, report)
    for axis in (energy, distance, gaps, runs):
        _dress(axis)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _places(axis: Any, groups: Groups, overall: float, label: str) -> None:
    """Bars of acceptance; groups are quantiles, so the ticks say where they end."""
    places = np.arange(len(groups.num_moves))
    low = groups.acceptance < LOW_GROUP * overall
    colours = np.where(low, _ORANGE, _BLUE)
    axis.bar(places, np.nan_to_num(groups.acceptance), width=0.8, color=colours)
    axis.axhline(overall, color=_GREY, lw=1, label=f"overall {overall:.2f}")
    axis.axhline(LOW_GROUP * overall, color=_GREY, lw=1, ls=":", label="a quarter of it")
    axis.set_xticks(places, [f"{x:.3g}" for x in groups.upper])
    axis.set_ylim(0, 1.25 * max(overall, np.nanmax(groups.acceptance, initial=0.01)))  # legend
    axis.set_xlabel(label, fontsize=9)
    axis.set_ylabel("acceptance", fontsize=9)
    axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")


def _gaps(axis: Any, report: SurrogateReport) -> None:
    """Histogram of the log weights, `U~ - U`, with the tail in which chains stick to the right."""
    values = -report.gap[np.isfinite(report.gap)].astype(float)
    axis.set_xlabel(r"$\tilde U - U$ minus its median (log weight)", fontsize=9)
    axis.set_ylabel("draws", fontsize=9)
    if not values.size:
        return
    values = values - np.median(values)
    edges = np.histogram_bin_edges(values, 60)
    for part, colour in ((values <= FAR, _BLUE), (values > FAR, _ORANGE)):
        axis.hist(values[part], edges, color=colour)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)
    if values.max() > FAR:
        axis.axvline(FAR, color=_GREY, lw=1, ls=":")
    tail = report.tail
    text = f"Pareto k-hat {tail.k_hat:.2f} (good up to {tail.limit:.2f})"
    axis.set_title(f"{text}, overlap {tail.overlap:.2f}", fontsize=9, loc="left")


def _runs(axis: Any, report: SurrogateReport) -> None:
    """The longest run of each chain, between what is expected and what is rare."""
    runs, places = report.runs, np.arange(report.num_chains)
    beyond = runs.longest >= runs.limit
    axis.vlines(places, runs.expected, runs.limit, color=_GREY, lw=4, alpha=0.35)
    axis.plot(places, runs.limit, "_", color=_GREY, ms=12, label="1% limit")
    axis.plot(places, runs.expected, "_", color=_GREY, ms=7, label="expected")
    for part, colour in ((~beyond, _BLUE), (beyond, _ORANGE)):
        axis.plot(places[part], runs.longest[part], "o", color=colour, ms=6)
    axis.set_ylim(0, 1.25 * max(runs.longest.max(), runs.limit.max()))
    axis.set_xlim(-0.6, report.num_chains - 0.4)
    if report.num_chains <= 20:
        axis.set_xticks(places)
    axis.set_xlabel("chain", fontsize=9)
    axis.set_ylabel("longest run of rejections", fontsize=9)
    axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")


def _dress(axis: Any) -> None:
    axis.tick_params(labelsize=8, color=_GREY, labelcolor=_GREY)
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)
