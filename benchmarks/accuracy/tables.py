"""Turns a result file into the Markdown tables of the docs.

    python -m benchmarks.accuracy.tables          (writes them between the markers of the page)
    python -m benchmarks.accuracy.tables --check  (fails where the page differs)
    python -m benchmarks.accuracy.tables --print  (prints them)

Figures are the worst over seeds for deviations (the limits hold for every seed), and the median
over seeds for distances and seconds. A figure beyond its limit is in italics.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.metrics import EXCESS_FACTOR, LIMITS
from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read

PAGE = DOCS / "accuracy.md"
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
BASELINE = "AutoMultivariateNormal"
RUN_AWAY = 1e4
Rows = list[dict[str, Any]]


def grouped(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Return the rows of each (posterior, method), in the order of the file."""
    groups: dict[tuple[str, str], Rows] = {}
    for row in rows:
        groups.setdefault((row["posterior"], row["method"]), []).append(row)
    return groups


def worst(rows: Rows, key: str) -> float:
    return max(row[key] for row in rows)


def median(rows: Rows, key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def figure(value: float, digits: int) -> str:
    """Return the figure with so many decimals; what has run away in two significant digits."""
    return f"{value:.{digits}f}" if abs(value) < RUN_AWAY else f"{value:.2g}"


def flagged(value: float, limit: float, digits: int = 3) -> str:
    """Return the figure, in italics where it exceeds its limit."""
    text = figure(value, digits)
    return text if value <= limit else f"*{text}*"


def detail_line(posterior: str, method: str, rows: Rows, baseline: float | None) -> str:
    """Return one line of the table of deviations."""
    finite = [row for row in rows if "error" not in row]
    if not finite:
        return f"| {posterior} | {method} | {rows[0]['error']} | | | | | | |"
    low, high = min(r["sd_ratio_low"] for r in finite), worst(finite, "sd_ratio_high")
    off = max(1 - low, high - 1)
    ratio = f"{figure(low, 2)} to {figure(high, 2)}"
    excess = median(finite, "excess")
    limit = np.inf if baseline is None or method in (BASELINE, "NUTS") else baseline
    cells = [
        posterior,
        method,
        flagged(worst(finite, "mean_shift"), LIMITS["mean_shift"]),
        flagged(worst(finite, "quantile_shift"), LIMITS["quantile_shift"]),
        ratio if off <= LIMITS["sd_ratio"] else f"*{ratio}*",
        flagged(worst(finite, "correlation"), LIMITS["correlation"]),
        flagged(excess, limit, digits=4),
        f"{median(finite, 'seconds'):.1f}",
        f"{sum(all(r['passes'].values()) for r in finite)}/{len(rows)}",
    ]
    return "| " + " | ".join(cells) + " |"


def detail_table(rows: Rows, keep: Callable[[dict[str, Any]], bool]) -> list[str]:
    """Return the table of deviations over the rows that are kept."""
    groups = grouped([row for row in rows if keep(row)])
    lines = [
        "| posterior | guide | mean shift | quantile shift | sd ratio | correlation"
        " | SW - floor | CPU s | within limits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (posterior, method), group in groups.items():
        base = [r for r in groups.get((posterior, BASELINE), []) if "error" not in r]
        bar = None if not base or group[0]["gaussian"] else _half_excess(base)
        lines.append(detail_line(posterior, method, group, bar))
    return lines


def _half_excess(base: Rows) -> float:
    return EXCESS_FACTOR * median(base, "excess")


def medians(rows: Rows, key: str) -> dict[str, dict[str, float]]:
    """Return posterior -> method -> median over seeds, of the runs with a finite figure."""
    out: dict[str, dict[str, float]] = {}
    finite = [row for row in rows if np.isfinite(row.get(key, np.nan))]
    for (posterior, method), group in grouped(finite).items():
        out.setdefault(posterior, {})[method] = median(group, key)
    return out


def best_of(values: dict[str, float]) -> str:
    """Return the guide with the smallest figure; NUTS is no guide."""
    return min((m for m in values if m != "NUTS"), key=lambda m: values[m])


def matrix(values: dict[str, dict[str, float]], first: dict[str, float], title: str) -> list[str]:
    """Return posteriors by methods, after a first column; the smallest guide's in bold."""
    methods = list(dict.fromkeys(m for row in values.values() for m in row))
    lines = [
        f"| posterior | {title} | " + " | ".join(methods) + " |",
        "|---" * (len(methods) + 2) + "|",
    ]
    for posterior, row in values.items():
        cells = [figure(row[m], 4) if m in row else "" for m in methods]
        bold = methods.index(best_of(row))
        cells[bold] = f"**{cells[bold]}**"
        lines.append(f"| {posterior} | {first[posterior]:.4f} | " + " | ".join(cells) + " |")
    return lines


def distance_table(rows: Rows) -> list[str]:
    """Return median SW - floor, with the floor of the guides' sample size."""
    guides = [row for row in rows if row["method"] != "NUTS" and "floor" in row]
    floors = {row["posterior"]: row["floor"] for row in guides}
    return matrix(medians(rows, "excess"), floors, "floor")


def loss_table(rows: Rows) -> list[str]:
    """Return median negative ELBOs above the smallest of them, with that one in nats."""
    values = medians(rows, "loss")
    least = {posterior: min(row.values()) for posterior, row in values.items()}
    above = {p: {m: v - least[p] for m, v in row.items()} for p, row in values.items()}
    return matrix(above, least, "smallest")


def summary_table(rows: Rows) -> list[str]:
    """Return, for each method, how many runs keep every limit and how often it is the best."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    distances, losses = medians(rows, "excess"), medians(rows, "loss")
    lines = [
        "| guide | real posteriors: runs within limits | others: runs within limits"
        " | smallest distance | smallest loss | CPU s, median |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        cells = [_within(own, True), _within(own, False)]
        for table in (distances, losses):
            count = sum(best_of(row) == method for row in table.values())
            cells.append("" if method == "NUTS" else f"{count} of {len(table)}")
        cells.append(f"{median([row for row in own if 'seconds' in row], 'seconds'):.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _within(rows: Rows, published: bool) -> str:
    own = [row for row in rows if (row["reference"] == "posteriordb") == published]
    return f"{sum(all(row.get('passes', {'': False}).values()) for row in own)}/{len(own)}"


def render(rows: Rows) -> str:
    """Return the whole text between the markers."""
    dates = sorted({row["date"] for row in rows})
    versions = ", ".join(f"{k} {v}" for k, v in rows[-1]["versions"].items())
    seeds = len({row["seed"] for row in rows})
    parts = [
        f"Measured {dates[0]} to {dates[-1]} with {versions}, seeds: {seeds}, one CPU thread, "
        f"{sum(row.get('cpu_seconds', 0.0) for row in rows) / 3600:.2f} CPU hours in all.",
        "### Summary\n\n" + "\n".join(summary_table(rows)),
        "### Sliced Wasserstein distance beyond that of two reference runs\n\n"
        + "\n".join(distance_table(rows)),
        "### Loss at the end, nats above the best\n\n" + "\n".join(loss_table(rows)),
        "### Real posteriors with published reference draws\n\n"
        + "\n".join(detail_table(rows, lambda r: r["reference"] == "posteriordb")),
        "### Targets on which a Gaussian fails\n\n"
        + "\n".join(detail_table(rows, lambda r: r["reference"] != "posteriordb")),
    ]
    return "\n\n".join(parts)


def insert(page: str, text: str) -> str:
    """Return the page with the text between its markers.

    Raises:
        ValueError: when the page lacks the markers.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page must contain {BEGIN!r} and {END!r}.")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "accuracy.jsonl")
    parser.add_argument("--docs", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    parser.add_argument("--print", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    rows = read(args.results)
    if not rows:
        raise ValueError(f"`--results` must name a file with rows; got {args.results}.")
    text = render(rows)
    if args.print:
        print(text)
        return
    page = args.docs.read_text()
    if args.check and insert(page, text) != page:
        sys.exit(
            f"{args.docs.name} differs from its result file: "
            "run python -m benchmarks.accuracy.tables"
        )
    args.docs.write_text(insert(page, text))


if __name__ == "__main__":
    main()
