"""Turns the result file of gpu/run.py into the tables of docs/gpu.md.

python -m benchmarks.gpu.tables          (writes them between the page's markers)
python -m benchmarks.gpu.tables --check  (fails where the page differs)
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read
from benchmarks.functional.tables import table
from benchmarks.gp.tables import insert

PAGE = DOCS / "gpu.md"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
OURS, PEER = "GP, RBF", "GPyTorch, RBF"
Row = dict[str, Any]
Key = tuple[str, int, str]


def by_key(rows: list[Row], platform: str) -> dict[Key, Row]:
    """Return the rows of a platform by case, size and precision."""
    return {
        (r["case"], r["size"], r["precision"]): r
        for r in rows
        if (r["platform"] == "cpu") == (platform == "cpu")
    }


def milliseconds(row: Row | None) -> str:
    if row is None or "seconds" not in row:
        return row["error"] if row and "error" in row else "-"
    value = 1000 * row["seconds"]
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def ratio(above: Row | None, below: Row | None) -> str:
    """Return the quotient of two times, where both were measured."""
    if not above or not below or "seconds" not in above or "seconds" not in below:
        return "-"
    value = above["seconds"] / below["seconds"]
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def devices(rows: list[Row]) -> str:
    """Return the table of both devices."""
    on_cpu, on_gpu = by_key(rows, "cpu"), by_key(rows, "gpu")
    keys = [k for k in dict.fromkeys([*on_cpu, *on_gpu]) if k[0] != PEER]
    lines = []
    for key in sorted(keys, key=lambda k: [c for c, *_ in keys].index(k[0])):
        cpu, gpu = on_cpu.get(key), on_gpu.get(key, {})
        difference = f"{gpu['difference']:.0e}" if "difference" in gpu else "-"
        memory = f"{gpu['temporary_mb']:,.0f}" if "temporary_mb" in gpu else "-"
        name, size, precision = key
        times = [milliseconds(cpu), milliseconds(gpu), ratio(cpu, gpu)]
        lines.append([name, f"{size:,}", precision, *times, difference, memory])
    head = ["program", "size", "precision", "CPU, ms", "GPU, ms", "times faster"]
    return table([*head, "difference", "GPU memory, MB"], lines)


def peers(rows: list[Row]) -> str:
    """Return the table of a training step beside GPyTorch's, on one card."""
    on_gpu = by_key(rows, "gpu")
    lines = []
    for name, size, precision in on_gpu:
        if name == PEER:
            ours, theirs = on_gpu.get((OURS, size, precision)), on_gpu[name, size, precision]
            figures = [milliseconds(ours), milliseconds(theirs), ratio(theirs, ours)]
            lines.append([f"{size:,}", precision, *figures])
    return table(["N", "precision", "ours, ms", "GPyTorch, ms", "times faster"], lines)


def provenance(rows: list[Row]) -> str:
    """Return card, dates and versions in a sentence."""
    gpu = [r for r in rows if r["platform"] != "cpu"]
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row["versions"].items():
            found.setdefault(name, set()).add(version)
    cores = ", ".join(sorted(found.pop("cores", set())))
    cards, dates = ({r[k] for r in gpu} for k in ("device", "date"))
    listed = ", ".join(f"{n} {'/'.join(sorted(v))}" for n, v in found.items())
    return f"{', '.join(cards)} beside {cores} CPU cores, {', '.join(sorted(dates))}; {listed}."


def tables(rows: list[Row]) -> str:
    return "\n\n".join([provenance(rows), devices(rows), peers(rows)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    parser.add_argument("--rows", type=Path, default=RESULTS / "gpu.jsonl")
    args = parser.parse_args(arguments)
    page = PAGE.read_text()
    text = insert(page, tables(read(args.rows)), BEGIN, END)
    if args.check and text != page:
        sys.exit(f"{PAGE.name} differs from its results: run python -m benchmarks.gpu.tables")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
