"""The table and the picture of benchmarks/hmc/calibration.py, from its rows alone."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import PICTURES
from benchmarks.common.rank_tests import band, chi_square, counts_below, ecdf_test, holm

NUM_RANKS = 100
PICTURE = PICTURES / "hmc_calibration.png"
COLOURS = {False: "#3b6fb6", True: "#d1560f"}
LABELS = {False: "ScoreHMC", True: "wrong on purpose"}
Rows = list[dict[str, Any]]


def ranks_of(rows: Rows) -> dict[str, np.ndarray]:
    """Return the ranks of each quantity."""
    return {name: np.array([row["ranks"][name] for row in rows]) for name in rows[0]["ranks"]}


def table(rows: Rows) -> str:
    """Return p-values of each quantity; those of the bands adjusted for the number of them."""
    ranks = ranks_of(rows)
    bands = [float(ecdf_test(r, NUM_RANKS)) for r in ranks.values()]
    lines = [
        "| quantity | mean rank (49.5) | chi-square p | band p | band p, Holm |",
        "|---|---|---|---|---|",
    ]
    for (name, found), p, adjusted in zip(ranks.items(), bands, holm(bands), strict=True):
        chi = chi_square(found, NUM_RANKS)
        lines.append(f"| {name} | {found.mean():.1f} | {chi:.2g} | {p:.2g} | {adjusted:.2g} |")
    return "\n".join(lines)


def failures(rows: Rows) -> str:
    """Return one sentence on runs that did not mix; all of them are in the tests."""
    rhat, bulk, tail, thin = (
        np.array([row[k] for row in rows]) for k in ("rhat", "ess_bulk", "ess_tail", "ess_thinned")
    )
    least = np.minimum(bulk, tail)
    return (
        f"R-hat above 1.01 in {np.sum(~(rhat <= 1.01))} and above 1.05 in {np.sum(~(rhat <= 1.05))}"
        f" of {len(rows)} runs, fewer than 400 effective draws (bulk and tail) in "
        f"{np.sum(~(least >= 400))}, fewer than 100 in {np.sum(~(least >= 100))}; median bulk "
        f"{np.median(bulk):.0f}, of the {NUM_RANKS} thinned draws {np.median(thin):.0f} "
        f"(least {thin.min():.0f}). All are kept."
    )


def report(rows: Rows) -> str:
    """Return tables, failures and costs, the wrong sampler apart."""
    parts = []
    for wrong in (False, True):
        group = [row for row in rows if row["wrong"] == wrong]
        if group:
            hours = sum(row["cpu_seconds"] for row in group) / 3600
            calls = np.median([row["evaluations"] for row in group])
            parts += [
                f"{LABELS[wrong]}: {len(group)} data sets, {calls:,.0f} evaluations each, "
                f"{hours:.2f} CPU hours.",
                table(group),
                failures(group),
            ]
    return "\n\n".join(parts)


def draw(rows: Rows, path: Path) -> None:
    """Write the differences of the ranks' distribution from uniform, within simultaneous bands."""
    from matplotlib.figure import Figure

    names = list(rows[0]["ranks"])
    figure = Figure(figsize=(2.4 * len(names), 2.8), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for wrong in (False, True):
            found = np.array([row["ranks"][name] for row in rows if row["wrong"] == wrong])
            if len(found):
                _difference(axis, found, wrong)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("rank / 100")
        axis.set_xticks([0, 0.5, 1])
    axes[0].set_ylabel("ECDF minus uniform")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _difference(axis: Any, ranks: np.ndarray, wrong: bool) -> None:
    share, n = np.arange(1, NUM_RANKS) / NUM_RANKS, len(ranks)
    if not wrong:
        low, high = band(n, NUM_RANKS)
        axis.fill_between(share, low / n - share, high / n - share, color="0.88", label="95% band")
    difference = counts_below(ranks, NUM_RANKS) / n - share
    axis.step(share, difference, where="post", color=COLOURS[wrong], label=LABELS[wrong], lw=1.2)
