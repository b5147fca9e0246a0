"""Turns the result file of hmc/run.py into the tables of docs/hmc.md.

    python -m benchmarks.hmc.tables          (writes them between the markers of the page)
    python -m benchmarks.hmc.tables --check  (fails where the page differs)
    python -m benchmarks.hmc.tables --print  (prints them; `--rows FILE` for another file)

Every figure is a median over seeds; the largest R-hat of any seed stands beside that. Where a
method ran with several shares of the warm-up, its figures are those of the share that needs the
fewest evaluations among the sound ones. Sound means R-hat at most 1.01, every mean within 4 of its
standard errors, and every standard deviation within a fifth of the truth: a sampler that stays in a
part of the distribution has a fine R-hat, and effective draws of that part only.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read

PAGE = DOCS / "hmc.md"
BEGIN, END = "<!-- hmc:begin -->", "<!-- hmc:end -->"
MAX_RHAT, MAX_Z, SD_RATIOS = 1.01, 4.0, (0.8, 1.2)
HEADS = {
    "score_hmc": "ScoreHMC",
    "adaptive_metropolis": "Metropolis",
    "sa": "SA",
    "sa_large": "SA, 10 D",
    "aies": "AIES",
    "ess": "ESS",
    "blackjax_random_walk": "bj walk",
    "blackjax_slice": "bj slice",
    "blackjax_coordinate_slice": "bj Gibbs slice",
    "kmc_lite": "KMC lite",
    "kmc_finite": "KMC finite",
    "nuts": "NUTS",
    "nuts_dense": "NUTS dense",
}
SETTING = ("target", "method", "share")
FIGURES = (
    "bulk_per_evaluation",
    "tail_per_evaluation",
    "evaluations_to_400",
    "necessary_to_400",
    "rhat",
    "mean_error",
    "sd_ratio_low",
    "sd_ratio_high",
    "q05_error",
    "q50_error",
    "q95_error",
    "z",
    "cpu_seconds",
    "reached_400",
)
Rows = list[dict[str, Any]]
Cells = dict[tuple[str, str], dict[str, Any]]


def medians(rows: Rows) -> Rows:
    """Return one row for each target, method and share: medians over seeds, None after errors."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in SETTING), []).append(row)
    out = []
    for setting, group in groups.items():
        good = [row for row in group if "error" not in row]
        figures = {
            name: float(np.median([row[name] for row in good]))
            for name in FIGURES
            if good and all(name in row for row in good)
        }
        if "rhat" in figures:
            figures["largest_rhat"] = max(float(row["rhat"]) for row in good)
        head = dict(zip(SETTING, setting, strict=True))
        gradients = any(row.get("gradients", False) for row in group)
        out.append(head | figures | {"seeds": len(good), "gradients": gradients})
    return out


def sound(cell: dict[str, Any]) -> bool:
    """Return whether the chains agree, and with the truth, as far as they can tell."""
    low, high = SD_RATIOS
    spread = low <= cell["sd_ratio_low"] and cell["sd_ratio_high"] <= high
    return bool(cell["seeds"]) and cell["rhat"] <= MAX_RHAT and cell["z"] <= MAX_Z and spread


def best(rows: Rows) -> Cells:
    """Return the better share of each target and method; sound ones before others."""
    cells: Cells = {}
    for row in (r for r in medians(rows) if r["seeds"]):
        key = (row["target"], row["method"])
        rank = (not sound(row), row["evaluations_to_400"])
        old = cells.get(key)
        if old is None or rank < (not sound(old), old["evaluations_to_400"]):
            cells[key] = row
    return cells


def methods_of(rows: Rows) -> list[str]:
    """Return the methods in the order of the heads, others before them."""
    found = list(dict.fromkeys(row["method"] for row in rows))
    return [m for m in found if m not in HEADS] + [m for m in HEADS if m in found]


def table(rows: Rows, show: Callable[[dict[str, Any]], str], better: str | None = None) -> str:
    """Return targets by methods.

    What is not sound is in italics. With `better` naming a figure to be small (or large, after a
    minus sign), the best sound cell without gradients is bold.
    """
    cells, methods = best(rows), methods_of(rows)
    lines = [
        f"| target | {' | '.join(HEADS.get(m, m) for m in methods)} |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for target in dict.fromkeys(row["target"] for row in rows):
        found = {m: cells[target, m] for m in methods if (target, m) in cells}
        first = winner(found, better)
        marked = (mark(found.get(m), show, m == first) for m in methods)
        lines.append(f"| {target} | {' | '.join(marked)} |")
    return "\n".join(lines)


def winner(found: dict[str, dict[str, Any]], better: str | None) -> str | None:
    """Return the method of the best sound cell that used no gradients."""
    fair = {m: cell for m, cell in found.items() if sound(cell) and not cell["gradients"]}
    if better is None or not fair:
        return None
    sign, name = (-1, better[1:]) if better.startswith("-") else (1, better)
    return min(fair, key=lambda m: sign * fair[m][name])


def mark(cell: dict[str, Any] | None, show: Callable[[dict[str, Any]], str], first: bool) -> str:
    """Return a cell's text: a dash, in italics where not sound, bold where the best."""
    if cell is None:
        return "-"
    text = show(cell)
    return f"**{text}**" if first else text if sound(cell) else f"*{text}*"


def thousands(cell: dict[str, Any]) -> str:
    """Return the evaluations until 400 in thousands, with `+` where the run held fewer than 400."""
    value = cell["evaluations_to_400"] / 1000
    text = f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return f"{text}{'' if cell['reached_400'] else '+'}" if value < 1e4 else ">10,000"


def waste(rows: Rows) -> str:
    """Return one sentence on what the ensembles compute beyond what they need."""
    parts = []
    for name in ("aies", "ess"):
        ratios = [
            cell["evaluations_to_400"] / cell["necessary_to_400"]
            for (_, method), cell in best(rows).items()
            if method == name and np.isfinite(cell["evaluations_to_400"])
        ]
        if ratios:
            parts.append(f"{HEADS[name]} {np.median(ratios):.1f}")
    return (
        f"Evaluations are what was computed; those that the ensembles needed are fewer, by factors "
        f"of {' and '.join(parts)} (medians over targets)."
        if parts
        else ""
    )


def tables(rows: Rows) -> str:
    """Return all tables with their captions."""
    dates = sorted(row["date"] for row in rows)
    packages: dict[str, str] = {}
    for row in rows:
        packages |= row["versions"]
    versions = ", ".join(f"{k} {v}" for k, v in packages.items())
    seeds = len({row["seed"] for row in rows})
    hours = sum(row.get("cpu_seconds", 0.0) for row in rows) / 3600
    failed = [f"{r['target']}, {r['method']}: {r['error']}" for r in rows if "error" in r]
    parts = [
        f"Measured {dates[0]} to {dates[-1]} with {versions}, seeds: up to {seeds}, one CPU "
        f"thread, {hours:.2f} CPU hours in all.",
        "### Evaluations to 400 effective draws, in thousands",
        "Bulk and tail, of the worst coordinate, warm-up included; gradients for NUTS. `+`: "
        f"extrapolated, the run held fewer. {waste(rows)}",
        table(rows, thousands, "evaluations_to_400"),
        "### Effective draws per 1,000 evaluations after warm-up",
        "Bulk, of the worst coordinate.",
        table(rows, lambda c: f"{1000 * c['bulk_per_evaluation']:.3g}", "-bulk_per_evaluation"),
        "### Largest error of a mean, in standard deviations (in standard errors)",
        table(rows, lambda c: f"{c['mean_error']:.2f} ({c['z']:.1f})"),
        "### Range of standard deviations, in those of the truth",
        table(rows, lambda c: f"{c['sd_ratio_low']:.2f}-{c['sd_ratio_high']:.2f}"),
        "### Largest error of a 5, 50 and 95% quantile, in standard deviations",
        table(rows, lambda c: "/".join(f"{c[f'q{q}_error']:.2f}" for q in ("05", "50", "95"))),
        "### Largest R-hat over coordinates (of any seed)",
        table(rows, lambda c: f"{c['rhat']:.3f} ({c['largest_rhat']:.3f})"),
        "### CPU seconds, compilation included",
        table(rows, lambda c: f"{c['cpu_seconds']:.1f}"),
        *(["Failed: " + "; ".join(sorted(set(failed))) + "."] if failed else []),
    ]
    return "\n\n".join(parts)


def insert(page: str, text: str) -> str:
    """Return the page with the text between its markers."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must contain {BEGIN} and {END} once each.")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    parser.add_argument("--print", action="store_true", help="print, and leave the page alone")
    parser.add_argument("--rows", type=Path, default=RESULTS / "hmc.jsonl", help="result file")
    args = parser.parse_args()
    text = tables(read(args.rows))
    if args.print:
        print(text)
        return
    if not PAGE.exists():
        sys.exit(f"docs/hmc.md does not exist: write it, with {BEGIN} and {END}, or use --print")
    page = PAGE.read_text()
    text = insert(page, text)
    if args.check and text != page:
        sys.exit("docs/hmc.md differs from its result file: run python -m benchmarks.hmc.tables")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
