"""Checks of what was inferred, and its way into ArviZ.

For guides without a density: kernel Stein discrepancy, Stein slopes, Pareto k-hat from density
bounds, drift under NUTS, spread over restarts, simulation-based calibration, and one `report` that
says what each number cannot see. For runs of `ScoreHMC`: `surrogate_report`. ArviZ and matplotlib
are imported when a function that needs them is called.
"""

from implicitppl._core.faces import show_at
from implicitppl.diagnostics._arviz.containers import to_arviz
from implicitppl.diagnostics._guide_report.compare import compare
from implicitppl.diagnostics._guide_report.report import Report, report
from implicitppl.diagnostics._plots.guides import plot_forest, plot_loss, plot_pair
from implicitppl.diagnostics._plots.selection import plot_selection
from implicitppl.diagnostics._plots.surrogate import plot_surrogate
from implicitppl.diagnostics._statistics.calibration import Calibration, calibration
from implicitppl.diagnostics._statistics.drift import nuts_drift
from implicitppl.diagnostics._statistics.ksd import kernel_stein_discrepancy
from implicitppl.diagnostics._statistics.psis import pareto_smooth
from implicitppl.diagnostics._statistics.restarts import restart_spread
from implicitppl.diagnostics._statistics.slopes import stein_slopes
from implicitppl.diagnostics._surrogate_report.report import SurrogateReport, surrogate_report

__all__ = [
    "Calibration",
    "Report",
    "SurrogateReport",
    "calibration",
    "compare",
    "kernel_stein_discrepancy",
    "nuts_drift",
    "pareto_smooth",
    "plot_forest",
    "plot_loss",
    "plot_pair",
    "plot_selection",
    "plot_surrogate",
    "report",
    "restart_spread",
    "stein_slopes",
    "surrogate_report",
    "to_arviz",
]

show_at(globals())
