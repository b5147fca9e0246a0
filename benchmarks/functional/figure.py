"""Draws the posteriors of the result file of benchmarks/functional/toys.py.

    python -m benchmarks.functional.figure  (writes docs/pictures/functional-toys.png)

A panel for each fit of seed 0: the network's mean, 95% interval and functions in colour, the exact
mean and interval in black where they are known, the data as dots.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from benchmarks.common.paths import PICTURES, RESULTS
from benchmarks.common.rows import read
from benchmarks.functional.problems import KERNEL_STEPS, PROBLEMS

PICTURE = PICTURES / "functional-toys.png"
COLUMNS, NORMAL_95 = 2, 1.96
COLOURS = {"moments": "#3b6fb6", "scores": "#d1560f"}


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "functional-toys.jsonl")
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    rows = [row for row in read(args.results) if row["seed"] == 0]
    height = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(5.6 * COLUMNS, 2.7 * height), layout="constrained")
    axes = figure.subplots(height, COLUMNS, squeeze=False).ravel()
    with jax.enable_x64(True):
        problems = {name: PROBLEMS[name](KERNEL_STEPS) for name in {row["problem"] for row in rows}}
    for axis, row in zip(axes, rows, strict=False):
        problem, colour = problems[row["problem"]], COLOURS[row["method"]]
        grid, mean = problem.grid, np.array(row["mean"])
        spread = NORMAL_95 * np.array(row["deviation"])
        axis.fill_between(grid, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        axis.plot(grid, np.array(row["draws"]).T, color=colour, lw=0.5, alpha=0.8)
        axis.plot(grid, mean, color=colour, lw=1.6)
        if problem.exact is not None:
            centre, deviation = problem.exact
            axis.plot(grid, centre, color="black", lw=1)
            for side in (-NORMAL_95, NORMAL_95):
                axis.plot(grid, centre + side * deviation, color="black", lw=0.7, ls="--")
        axis.plot(problem.x, problem.y, ".", color="black", ms=4)
        axis.set_title(f"{row['problem']}: {row['method']}", fontsize=9)
        reach = np.ptp(problem.y)
        axis.set(xlim=(problem.low, problem.high))
        axis.set(ylim=(problem.y.min() - reach, problem.y.max() + reach))
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
