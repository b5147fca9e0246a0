"""Turns the result file of benchmarks/functional/toys.py into the table of docs/functional.md.

python -m benchmarks.functional.toys_tables          (writes it between the markers of the page)
python -m benchmarks.functional.toys_tables --check  (fails where the page differs)
"""

import argparse
import sys
from typing import Any

from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read

PAGE = DOCS / "functional.md"
BEGIN, END = "<!-- toys:begin -->\n", "<!-- toys:end -->"
HEAD = (
    "problem, prior",
    "divergence",
    "mean off by",
    "sd ratio inside",
    "sd ratio at the ends",
    "small increments (exact)",
    "loss (minus log evidence)",
    "CPU s",
)


def cells(row: dict[str, Any]) -> list[str]:
    """Return what the table says of a fit; a dash where there is no exact posterior."""
    has_exact, has_gap = "mean_gap" in row, "small_increments" in row
    ends = row.get("ratio_at_ends", [])
    known = f" ({row['small_increments_exact']:.2f})" if "small_increments_exact" in row else ""
    evidence = row["log_evidence"]
    return [
        row["problem"],
        row["method"],
        f"{row['mean_gap']:.2f}" if has_exact else "-",
        f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if has_exact else "-",
        ", ".join(f"{value:.2f}" for value in ends) or "-",
        f"{row['small_increments']:.2f}{known}" if has_gap else "-",
        f"{row['loss']:.1f}" + (f" ({-evidence:.1f})" if evidence is not None else ""),
        f"{row['cpu_seconds']:.0f}",
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each row of the file, by problem."""
    lines = [HEAD, ["---"] * len(HEAD), *map(cells, sorted(rows, key=lambda r: r["problem"]))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def targets(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Return which targets of benchmarks/functional/toys.py the rows reach."""
    of = {(row["problem"], row["method"]): row for row in rows}
    cubic, wave = of["cubic", "moments"], of["sine, periodic prior", "moments"]
    free, rbf = of["sine, RBF prior", "moments"], of["pieces, RBF prior", "moments"]
    found = {
        "cubic: mean within .25 inside": cubic["mean_gap"] <= 0.25,
        "cubic: sd ratio .7 to 1.3 inside": _within(cubic, 0.7, 1.3),
        "cubic: sd ratio .5 to 2 at the ends": all(0.5 <= v <= 2 for v in cubic["ratio_at_ends"]),
        "periodic: mean within .25 anywhere": wave["mean_gap_anywhere"] <= 0.25,
        "periodic: sd ratio .5 to 2 at the ends": all(0.5 <= v <= 2 for v in wave["ratio_at_ends"]),
        "RBF: sd within 20% of the prior's at the ends": all(
            0.8 <= v <= 1.2 for v in free["share_of_prior_at_ends"]
        ),
    }
    for method in ("moments", "scores"):
        steps = of["pieces, constant prior", method]
        found[f"steps, {method}: twice the small increments of an RBF prior"] = (
            steps["small_increments"] >= 2 * rbf["small_increments"]
        )
        found[f"steps, {method}: sd ratio .5 to 2"] = _within(steps, 0.5, 2)
    return found


def _within(row: dict[str, Any], low: float, high: float) -> bool:
    return bool(low <= row["ratio_low"] and row["ratio_high"] <= high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    args = parser.parse_args()
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    rows = read(RESULTS / "functional-toys.jsonl")
    new = f"{head}{BEGIN}\n{table(rows)}\n\n{END}{tail}"
    if args.check and new != text:
        sys.exit("docs/functional.md differs: run `python -m benchmarks.functional.toys_tables`")
    PAGE.write_text(new)
    for target, is_reached in targets(rows).items():
        print(f"{'reached' if is_reached else 'not reached':12s} {target}")


if __name__ == "__main__":
    main()
