"""Turns the result file of first_use/run.py into the tables of docs/first-use.md.

python -m benchmarks.first_use.tables          (writes them between the page's markers)
python -m benchmarks.first_use.tables --check  (fails where the page differs)
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read
from benchmarks.first_use.entries import GUIDES, REPORT
from benchmarks.functional.tables import table
from benchmarks.gp.tables import insert

PAGE = DOCS / "first-use.md"
BEGIN, END = "<!-- first-use:begin -->", "<!-- first-use:end -->"
OURS, FULL_RANK, FLOW = GUIDES
LABELS = ("before", "after")
Row = dict[str, Any]


def group(rows: list[Row], entry: str, problem: str, stage: str, label: str) -> list[Row]:
    """Return the repeated measurements of one stage, without those from a filled cache."""
    wanted = (entry, problem, stage, label, False)
    keys = ("entry", "problem", "stage", "label", "cached")
    return [row for row in rows if tuple(row[key] for key in keys) == wanted]


def median(rows: list[Row], key: str) -> float | None:
    return float(np.median([row[key] for row in rows])) if rows else None


def cells(rows: list[Row]) -> list[str]:
    """Return total (compiling + rest) and the number of programs."""
    if not rows:
        return ["-", "-"]
    total, compiling, rest = (
        median(rows, key) for key in ("seconds", "compile_seconds", "run_seconds")
    )
    return [f"{total:.1f} ({compiling:.1f} + {rest:.1f})", f"{median(rows, 'programs'):.0f}"]


def guides(rows: list[Row]) -> str:
    """Return the table of guides and reports, first and again, before and after."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows if row["problem"]):
        for entry in (*GUIDES, REPORT):
            for stage in ("first", "again"):
                found = [group(rows, entry, problem, stage, label) for label in LABELS]
                if any(found):
                    figures = [cell for one in found for cell in cells(one)]
                    lines.append([problem, entry, stage, *figures])
    head = ["posterior", "what", "data", "CPU s before", "programs", "CPU s now", "programs"]
    return table(head, lines)


def ratios(rows: list[Row]) -> str:
    """Return how first results compare: with the full-rank Gaussian, the flow, and the report."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows if row["problem"]):
        for label in LABELS:
            ours, gaussian, flow, report = (
                median(group(rows, entry, problem, "first", label), "seconds")
                for entry in (OURS, FULL_RANK, FLOW, REPORT)
            )
            figures = [ratio(ours, gaussian), ratio(ours, flow), ratio(report, ours)]
            lines.append([problem, label, *figures])
    head = ["posterior", "code", f"{OURS} / {FULL_RANK}", f"{OURS} / {FLOW}", "report / fit"]
    return table(head, lines)


def ratio(above: float | None, below: float | None) -> str:
    return "-" if above is None or below is None else f"{above / below:.2f}"


def others(rows: list[Row]) -> str:
    """Return the table of the entry points that are no guides."""
    names = [row["entry"] for row in rows if not row["problem"]]
    lines = []
    for entry in dict.fromkeys(names):
        for stage in ("first", "again"):
            found = [group(rows, entry, "", stage, label) for label in LABELS]
            if any(found):
                lines.append([entry, stage, *cells(found[-1] or found[0])])
    return table(["what", "data", "CPU s", "programs"], lines)


def cached(rows: list[Row]) -> str:
    """Return the table of runs with JAX's persistent cache: while it fills, and filled."""
    lines = [
        [row["problem"], row["entry"], row["label"], *cells([row])]
        for row in rows
        if row["cached"] and row["stage"] == "first"
    ]
    return table(["posterior", "what", "cache", "CPU s", "programs"], lines)


def provenance(rows: list[Row]) -> str:
    """Return dates and versions in a sentence."""
    versions = {f"{k} {v}" for row in rows for k, v in row["versions"].items()}
    dates = ", ".join(sorted({row["date"] for row in rows}))
    return f"Measured {dates} with {', '.join(sorted(versions))}."


def tables(rows: list[Row]) -> str:
    return "\n\n".join([provenance(rows), ratios(rows), guides(rows), others(rows), cached(rows)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    parser.add_argument("--rows", type=Path, default=RESULTS / "first-use.jsonl")
    args = parser.parse_args(arguments)
    page = PAGE.read_text()
    text = insert(page, tables(read(args.rows)), BEGIN, END)
    if args.check and text != page:
        sys.exit(f"{PAGE.name} differs from its results: run python -m benchmarks.first_use.tables")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
