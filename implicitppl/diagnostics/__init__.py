"""Checks of what was inferred, and its way into ArviZ.

For guides without a density: kernel Stein discrepancy, Stein slopes, Pareto k-hat from density
bounds, drift under NUTS, spread over restarts, simulation-based calibration, and one `report` that
says what each number cannot see. For runs of `ScoreHMC`: `surrogate_report`. ArviZ and matplotlib
are imported when a function that needs them is called.
"""

from implicitppl.diagnostics._arviz.containers import to_arviz
from implicitppl.diagnostics._guide_draws import GuideDraws, guide_draws
from implicitppl.diagnostics._guide_report.compare import Comparison, compare
from implicitppl.diagnostics._guide_report.report import Report, Row, report
from implicitppl.diagnostics._plots.guides import plot_forest, plot_loss, plot_pair
from implicitppl.diagnostics._plots.selection import plot_selection
from implicitppl.diagnostics._plots.surrogate import plot_surrogate
from implicitppl.diagnostics._statistics.calibration import (
    Calibration,
    calibration,
    symmetry_p_value,
)
from implicitppl.diagnostics._statistics.drift import NutsDrift, nuts_drift
from implicitppl.diagnostics._statistics.ksd import KSDResult, kernel_stein_discrepancy
from implicitppl.diagnostics._statistics.psis import ParetoSmoothed, k_hat_limit, pareto_smooth
from implicitppl.diagnostics._statistics.restarts import RestartSpread, restart_spread
from implicitppl.diagnostics._statistics.slopes import (
    ScoreSlope,
    SteinSlopes,
    score_slope,
    stein_slopes,
)
from implicitppl.diagnostics._surrogate_report.parts import run_limit
from implicitppl.diagnostics._surrogate_report.report import (
    SurrogateReport,
    surrogate_checks,
    surrogate_report,
)

__all__ = [
    "Calibration",
    "Comparison",
    "GuideDraws",
    "KSDResult",
    "NutsDrift",
    "ParetoSmoothed",
    "Report",
    "RestartSpread",
    "Row",
    "ScoreSlope",
    "SteinSlopes",
    "SurrogateReport",
    "calibration",
    "compare",
    "guide_draws",
    "k_hat_limit",
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
    "run_limit",
    "score_slope",
    "stein_slopes",
    "surrogate_checks",
    "surrogate_report",
    "symmetry_p_value",
    "to_arviz",
]
