"""Draws evaluations to 400 effective draws from the result file of benchmarks/hmc/run.py.

    python -m benchmarks.hmc.figure  (writes docs/pictures/hmc_evaluations.png)

A row for each target, a mark for each method; hollow where the run is not sound, as hmc/tables.py
judges it.
"""

from benchmarks.common.paths import PICTURES, RESULTS
from benchmarks.common.rows import read
from benchmarks.hmc.tables import HEADS, best, sound

PICTURE = PICTURES / "hmc_evaluations.png"
STYLES = {
    "score_hmc": ("o", "#d1560f"),
    "adaptive_metropolis": ("s", "0.55"),
    "sa_large": ("^", "#3b6fb6"),
    "kmc_lite": ("v", "#3a923a"),
    "kmc_finite": ("P", "#7a5195"),
    "nuts_dense": ("D", "black"),
}
FARTHEST = 1e6  # what needs more is not drawn


def main() -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    cells = best(read(RESULTS / "hmc.jsonl"))
    targets = list(dict.fromkeys(target for target, _ in cells))[::-1]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    for method, (marker, colour) in STYLES.items():
        drawn = [(y, cells[t, method]) for y, t in enumerate(targets) if (t, method) in cells]
        for good in (True, False):
            points = [(c["evaluations_to_400"], y) for y, c in drawn if sound(c) == good]
            points = [p for p in points if p[0] < FARTHEST]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            face = colour if good else "none"
            label = HEADS[method] if good else None
            axis.scatter(x, y, s=44, marker=marker, ec=colour, fc=face, label=label, zorder=3)
    axis.set_yticks(range(len(targets)), [t.split("-")[0] for t in targets])
    axis.set(xscale="log", xlabel="evaluations (of gradients for NUTS) to 400 effective draws")
    axis.grid(axis="y", color="0.9")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
