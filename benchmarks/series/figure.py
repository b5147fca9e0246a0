"""Draws the extrapolations of the result file of benchmarks/series/run.py.

    python -m benchmarks.series.figure --data FOLDER  (writes docs/pictures/series.png)

A row for each series, a panel for each kernel: what was fitted in grey, what followed in black,
the prediction with its 95% interval in colour, of the seed with the highest evidence.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.common.paths import PICTURES, RESULTS
from benchmarks.common.rows import read
from benchmarks.series.problems import NORMAL_95
from benchmarks.series.run import problems

PICTURE = PICTURES / "series.png"
COLOURS = {
    "RBF": "#777777",
    "spectral mixture": "#3a923a",
    "hand-made": "#3b6fb6",
    "NKN": "#d1560f",
}


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds series/")
    parser.add_argument("--results", type=Path, default=RESULTS / "series.jsonl")
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    rows, shown = read(args.results), problems(args.data, False)
    figure = Figure(figsize=(13, 2.6 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(COLOURS), squeeze=False, sharey="row")
    for line, (name, s) in zip(grid, shown.items(), strict=True):
        num, years, values = s.num_fitted, s.years, s.values
        first = years[num] - 0.6 * (years[-1] - years[num])
        shown_values = values[years >= first]
        margin = 0.35 * np.ptp(shown_values)
        for axis, (method, colour) in zip(line, COLOURS.items(), strict=True):
            axis.plot(years[:num], values[:num], color="0.6", lw=0.8)
            axis.plot(years[num:], values[num:], color="black", lw=0.8)
            own = [r for r in rows if (r["series"], r["method"]) == (name, method)]
            axis.axvline(years[num], color="0.8", lw=0.8, zorder=0)
            axis.set(xlim=(first, years[-1]))
            axis.set(ylim=(shown_values.min() - margin, shown_values.max() + margin))
            if own:
                best = max(own, key=lambda row: row["log_evidence"])
                mean, deviation = np.array(best["mean"]), np.array(best["deviation"])
                low, high = mean - NORMAL_95 * deviation, mean + NORMAL_95 * deviation
                axis.fill_between(years[num:], low, high, color=colour, alpha=0.25, lw=0)
                axis.plot(years[num:], mean, color=colour, lw=1.2)
                told = f"log density {best['log_density']:.2f}, coverage {best['coverage']:.2f}"
                axis.set_title(f"{method}\n{told}", fontsize=9)
        line[0].set_ylabel(s.unit)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
