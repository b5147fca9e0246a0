"""Rows of the smaller benchmarks of gradient-free HMC, and their tables: medians over seeds.

python -m benchmarks.hmc.rows FILE  (the table of rows that hmc/run.py wrote)
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.rows import provenance, read
from benchmarks.hmc.run import efficiency, errors, mixing
from benchmarks.hmc.runs import Run
from benchmarks.hmc.targets import Truth

Row = dict[str, Any]
Show = Callable[[Row], str]
FIGURES: dict[str, Show] = {
    "R-hat": lambda r: f"{r['rhat']:.3f}",
    "evaluations to 400": lambda r: f"{r['evaluations_to_400']:,.0f}",
    "bulk per 1,000": lambda r: f"{1000 * r['bulk_per_evaluation']:.3g}",
    "tail per 1,000": lambda r: f"{1000 * r['tail_per_evaluation']:.3g}",
    "mean error (s.e.)": lambda r: f"{r['mean_error']:.2f} ({r['z']:.1f})",
    "sd ratio": lambda r: f"{r['sd_ratio_low']:.2f}-{r['sd_ratio_high']:.2f}",
    "5/50/95%": lambda r: "/".join(f"{r[f'q{q}_error']:.2f}" for q in ("05", "50", "95")),
}
SECONDS: dict[str, Show] = {"CPU s": lambda r: f"{r['cpu_seconds']:.0f}"}


def measured(run: Run, true: Truth, sizes: tuple[int, int], seconds: float) -> Row:
    """Return what a row says of a run of `sizes` iterations of warm-up and sampling."""
    found = mixing(run.draws)
    return {
        "num_warmup": sizes[0],
        "num_samples": sizes[1],
        "evaluations_warmup": run.evaluations_warmup,
        "evaluations_sampling": run.evaluations_sampling,
        **found,
        **efficiency(run, found),
        **errors(run.draws, true),
        "cpu_seconds": seconds,
        **provenance(),
    }


def table(
    rows: Sequence[Row],
    keys: Mapping[str, str],
    heads: Mapping[str, str],
    more: Mapping[str, Show] | None = None,
) -> str:
    """Return medians over seeds for each setting.

    Args:
        rows: of the result file.
        keys: what makes a setting, and its name in the head of the table.
        heads: names of methods in the table.
        more: columns beside the usual ones.
    """
    columns = {**FIGURES, **(more or {}), **SECONDS}
    lines = [f"| {' | '.join(keys.values())} | seeds | {' | '.join(columns)} |"]
    lines.append("|---" * (len(keys) + 1 + len(columns)) + "|")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    for setting, group in groups.items():
        names = [k for k, v in group[0].items() if isinstance(v, float)]
        middle = {k: float(np.median([row[k] for row in group])) for k in names}
        cells = [str(heads.get(k, k)) for k in setting]
        shown = (show(middle) for show in columns.values())
        lines.append(f"| {' | '.join([*cells, str(len(group)), *shown])} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of a file; methods are shown by their first option."""
    rows = read(Path(sys.argv[1]))
    heads = {row["method"]: row["method"].partition(",")[0].partition("=")[2] for row in rows}
    keys = {"target": "target", "num_warmup": "warm-up", "method": "force"}
    print(table(rows, keys, heads))


if __name__ == "__main__":
    main()
