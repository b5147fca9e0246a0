"""Turns the result files of benchmarks/series/run.py and series/texture.py into Markdown tables.

    python -m benchmarks.series.tables          (writes them between the markers of the page)
    python -m benchmarks.series.tables --check  (fails where the page differs)

Figures are means over seeds, with the smallest and largest in brackets where they differ; CPU
seconds are the least, which holds no compilation.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read

PAGE = DOCS / "series.md"
SERIES = {
    "log_density": "log density",
    "joint": "joint",
    "rmse": "RMSE",
    "coverage": "coverage",
    "log_evidence": "evidence",
    "cpu_seconds": "CPU s",
}
TEXTURE = {
    "rmse": "RMSE in the hole",
    "log_density": "log density",
    "coverage": "coverage",
    "log_evidence": "evidence",
    "cpu_seconds": "CPU s",
}
DIGITS = {"log_evidence": 0, "cpu_seconds": 0, "coverage": 2}
Rows = Sequence[dict[str, Any]]


def figure(rows: Rows, key: str) -> str:
    """Return the mean, and the range in brackets where it shows."""
    values = [row[key] for row in rows]
    digits = DIGITS.get(key, 3)
    mean, low, high = (
        f"{v:.{digits}f}" for v in (sum(values) / len(values), min(values), max(values))
    )
    if key == "cpu_seconds":
        return low
    return mean if low == high else f"{mean} ({low}, {high})"


def table(rows: Rows, first: str, columns: Mapping[str, str]) -> str:
    """Return a line for each problem and method, in the order of the file."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row[first], row["method"]), []).append(row)
    lines = [f"| {first} | kernel | {' | '.join(columns.values())} |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for (name, method), group in sorted(groups.items(), key=lambda item: item[0][0]):
        cells = [name, method, *(figure(group, key) for key in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def formulas(rows: Rows) -> str:
    """Return what the network of the highest evidence learned on each series."""
    parts = []
    for name in sorted({row["series"] for row in rows}):
        own = [row for row in rows if row["series"] == name and row["method"] == "NKN"]
        best = max(own, key=lambda row: row["log_evidence"])
        periods = ", ".join(f"{period:.2f}" for period in best["periods"])
        parts.append(f"{name}, periods in years {periods}:\n\n```text\n{best['formula']}\n```")
    return "\n\n".join(parts)


def provenance(rows: Rows) -> str:
    dates = sorted({row["date"] for row in rows})
    versions = ", ".join(f"{k} {v}" for k, v in rows[-1]["versions"].items())
    return f"Measured {dates[0]} to {dates[-1]}; {versions}."


def parts() -> dict[str, str]:
    """Return the text between each pair of markers."""
    series, texture = read(RESULTS / "series.jsonl"), read(RESULTS / "texture.jsonl")
    return {
        "series": table(series, "series", SERIES) + "\n\n" + provenance(series),
        "formulas": formulas(series),
        "texture": table(texture, "texture", TEXTURE) + "\n\n" + provenance(texture),
    }


def insert(page: str, name: str, text: str) -> str:
    """Return the page with the text between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page must contain {begin!r} and {end!r}.")
    return f"{page.split(begin)[0]}{begin}\n\n{text}\n\n{end}{page.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    args = parser.parse_args()
    old = page = PAGE.read_text()
    for name, text in parts().items():
        page = insert(page, name, text)
    if args.check and page != old:
        sys.exit(
            f"{PAGE.name} differs from its result files: run python -m benchmarks.series.tables"
        )
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
