"""Draws error over the number of samples from the result file of benchmarks/score/run.py.

    python -m benchmarks.score.figure  (writes docs/pictures/score_error_over_m.png)

A line for each dimension and density; the slope in the legend is that of log error over log M.
"""

import numpy as np

from benchmarks.common.paths import PICTURES, RESULTS
from benchmarks.common.rows import read
from benchmarks.score.problems import DENSITIES

PAGE = PICTURES / "score_error_over_m.png"
COLOURS = {2: "#3b6fb6", 10: "#3a923a", 50: "#d1560f"}


def main() -> None:
    from matplotlib.figure import Figure

    rows = [r for r in read(RESULTS / "score.jsonl") if r["problem"] in DENSITIES]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(DENSITIES), sharey=True)
    for axis, density in zip(axes, DENSITIES, strict=True):
        for name, style in (("select", "o-"), ("Gaussian", "x:")):
            for dim, colour in COLOURS.items():
                found = sorted(
                    (r["size"], np.mean(r["mse"]))
                    for r in rows
                    if (r["problem"], r["estimator"], r["dim"]) == (density, name, dim)
                )
                if len(found) < 2:
                    continue
                size, error = np.array(found).T
                slope = np.polyfit(np.log(size), np.log(error), 1)[0]
                label = f"D = {dim}: slope {slope:.2f}" if name == "select" else None
                axis.plot(size, error, style, color=colour, label=label, lw=1.2)
        axis.set(xscale="log", yscale="log", title=density, xlabel="samples M")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("mean squared error per dimension")
    figure.suptitle("select (circles) and the Gaussian plug-in (dotted), 20 seeds")
    figure.savefig(PAGE, dpi=110)


if __name__ == "__main__":
    main()
