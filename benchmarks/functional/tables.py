"""Turns the result files of the functional benchmarks into the tables of a docs page.

    python -m benchmarks.functional.tables          (writes them between the page's markers)
    python -m benchmarks.functional.tables --check  (fails where the page differs)
    python -m benchmarks.functional.tables --print  (prints them; `--rows FILE` for another file)

Standard errors are those of a mean over splits or seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bandits.run import AGENTS
from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read
from benchmarks.functional.methods import METHODS
from benchmarks.gp.tables import insert, mean_se, measured, names, with_se

PAGE = DOCS / "functional-benchmarks.md"
BEGIN, END = "<!-- functional:begin -->", "<!-- functional:end -->"
OBJECTIVES = ("elbo", "objective_all_rows", "log_joint", "log_evidence")
OURS, OUR_AGENTS = "fBNN", ("functional", "functional, wide")
COMPARED = (OURS, "fBNN, 5 fits", "fBNN, sine", "GFSVI", "FSP-Laplace")
Rows = list[dict[str, Any]]


def select(rows: Rows, **values: Any) -> Rows:
    """Return the good rows that have these values."""
    return [r for r in rows if "error" not in r and all(r[k] == v for k, v in values.items())]


def methods(rows: Rows) -> list[str]:
    """Return the methods that have rows, in their order."""
    return [method for method in METHODS if select(rows, method=method)]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [f"| {' | '.join(line)} |" for line in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])


def cell(group: Rows, figure: str, most: int, digits: int = 3) -> str:
    """Return mean and standard error, with the number of splits where it is not `most`."""
    if not group:
        return "-"
    count = len(group)
    few = "" if count == most else f", {count} split{'s' if count > 1 else ''} only"
    return with_se(mean_se(r[figure] for r in group), digits) + few


def accuracy(rows: Rows, figure: str) -> str:
    """Return data sets and least noises by methods."""
    lines = []
    for name in names(rows):
        for floor in sorted({r["floor"] for r in rows if r["data"] == name}):
            found = [select(rows, data=name, floor=floor, method=m) for m in methods(rows)]
            most = max(map(len, found))
            cells = [cell(group, figure, most) for group in found]
            lines.append([name, f"{floor:g}", str(most), *cells])
    return table(["data", "least noise", "splits", *methods(rows)], lines)


def medians(rows: Rows) -> str:
    """Return median RMSE and log density over splits, RMSE first."""
    lines = []
    for name in names(rows):
        for floor in sorted({r["floor"] for r in rows if r["data"] == name}):
            found = [select(rows, data=name, floor=floor, method=m) for m in methods(rows)]
            lines.append([name, f"{floor:g}", *map(median_cell, found)])
    return table(["data", "least noise", *methods(rows)], lines)


def median_cell(group: Rows) -> str:
    if not group:
        return "-"
    return " / ".join(f"{np.median([r[k] for r in group]):.3f}" for k in ("rmse", "ll"))


def against(rows: Rows, ours: str = OURS) -> str:
    """Return how far a method is from each other one on the splits that both have."""
    others = [m for m in methods(rows) if m != ours]
    lines = []
    for name in names(rows):
        for floor in sorted({r["floor"] for r in select(rows, data=name, method=ours)}):
            mine = {r["split"]: r for r in select(rows, data=name, floor=floor, method=ours)}
            cells = []
            for other in others:
                group = select(rows, data=name, floor=floor, method=other)
                both = [(mine[r["split"]], r) for r in group if r["split"] in mine]
                if not both:
                    cells.append("-")
                    continue
                ratios = [100 * (a["rmse"] / b["rmse"] - 1) for a, b in both]
                gains = [a["ll"] - b["ll"] for a, b in both]
                one, two = with_se(mean_se(ratios), 1), with_se(mean_se(gains), 3)
                few = "" if len(both) == len(mine) else f", {len(both)} splits"
                cells.append(f"{one} / {two}{few}")
            lines.append([name, f"{floor:g}", str(len(mine)), *cells])
    return table(["data", "least noise", "splits", *(f"against {m}" for m in others)], lines)


def speed(rows: Rows) -> str:
    """Return what a step costs at each number of points and particles."""
    lines = [
        [
            *(str(r["n"]), str(r["particles"]), r["variant"], f"{1000 * r['step_s']:.1f}"),
            *(f"{r['ratio']:.2f}", f"{r['temporary_mb']:.0f}", f"{r['compile_s']:.1f}"),
            str(r["compilations_of_second_batch"]),
        ]
        for r in rows
    ]
    head = ["n", "S", "loss", "CPU ms a step", "times Trace_ELBO", "temporary MB"]
    return table([*head, "start and compilation, CPU s", "compilations of a second batch"], lines)


def cost(rows: Rows) -> str:
    """Return steps, noise and CPU seconds; those with compilation are left out where others are."""
    lines = []
    for name in names(rows):
        for method in METHODS:
            group = select(rows, data=name, method=method)
            if not group:
                continue
            warm = [r["train_seconds"] for r in group if not r["is_first"]]
            seconds = np.median(warm or [r["train_seconds"] for r in group])
            noises = []
            for floor in sorted({r["floor"] for r in group}):
                sd = np.median([r["noise_sd"] for r in select(group, floor=floor)])
                noises.append(f"{sd:.3f} ({floor:g})")
            cells = [name, f"{group[0]['num_train']:,}", method, f"{group[0]['num_steps']:,}"]
            lines.append([*cells, f"{seconds:.1f}", ", ".join(noises)])
    head = ["data", "N", "method", "steps", "training, CPU s", "noise sd (least noise)"]
    return table(head, lines)


def convergence(rows: Rows, longer: Rows) -> str:
    """Return what longer training changes on the same split: objective in nats, and figures."""
    lines = []
    for row in select(longer):
        base = select(rows, **{k: row[k] for k in ("data", "split", "method", "floor")})
        figure = next((k for k in OBJECTIVES if k in row), None)
        if not base or figure is None:
            continue
        pairs = [
            f"{base[0][k]:.{d}f} -> {row[k]:.{d}f}"
            for k, d in ((figure, 1), ("rmse", 3), ("ll", 3))
        ]
        steps = f"{base[0]['num_steps']:,} -> {row['num_steps']:,}"
        lines.append([row["data"], row["method"], steps, *pairs])
    return table(["data", "method", "steps", "ELBO or log joint", "RMSE", "log density"], lines)


def mixing(rows: Rows) -> str:
    """Return one sentence for NUTS on each data set: the ranges over splits."""
    found = []
    for name in names(rows):
        for floor in sorted({r["floor"] for r in rows}):
            group = select(rows, data=name, floor=floor, method="NUTS")
            if group:
                found.append(
                    f"NUTS on {name}, least noise {floor:g}, {len(group)} splits: R-hat of the "
                    f"function {spread(group, 'rhat_median', '.2f')} (median over test inputs), "
                    f"{spread(group, 'rhat_max', '.1f')} (largest); "
                    f"{spread(group, 'divergences', '.0f')} divergences, "
                    f"{spread(group, 'mean_leapfrogs', '.0f')} leapfrogs a draw, "
                    f"{spread(group, 'train_seconds', '.0f')} CPU s."
                )
    return " ".join(found)


def spread(group: Rows, figure: str, form: str) -> str:
    """Return least and largest of a figure, or one where they print alike."""
    ends = [format(end([r[figure] for r in group]), form) for end in (min, max)]
    return " to ".join(dict.fromkeys(ends))


def weights(rows: Rows) -> str:
    """Return fits at several weights of the divergence, on held-out training rows."""
    lines = []
    for r in rows:
        of_process = f"{r['process_rmse']:.3f} / {r['process_ll']:.3f}"
        cells = [r["data"], f"{r['batch_size']} of {r['num_train']}", r["rule"]]
        cells += [f"{r['weight']:.2f}", f"{r['rmse']:.3f} / {r['ll']:.3f}", of_process]
        lines.append([*cells, f"{r['posterior_sd']:.3f}", f"{r['noise_sd']:.3f}"])
    head = ["data", "batch", "rule", "weight", "RMSE / log density", "those of the process"]
    return table([*head, "sd of the function", "sd of the noise"], lines)


def bandits(rows: Rows) -> str:
    """Return regret in percent of uniform by bandit and agent."""
    lines = []
    for name in dict.fromkeys(r["bandit"] for r in rows):
        for agent in AGENTS:
            group = select(rows, bandit=name, agent=agent)
            if group:
                cells = [with_se(mean_se(r[k] for r in group), 1) for k in ("relative", "half")]
                median = f"{np.median([r['relative'] for r in group]):.1f}"
                seconds = f"{np.median([r['cpu_seconds'] for r in group]):.1f}"
                lines.append([name, agent, str(len(group)), cells[0], median, cells[1], seconds])
    head = ["bandit", "agent", "seeds", "regret, % of uniform", "median", "second half", "CPU s"]
    return table(head, lines)


def bandits_against(rows: Rows) -> str:
    """Return how much more regret ours have than each other agent on the seeds that both have."""
    others = [a for a in AGENTS if a not in OUR_AGENTS and select(rows, agent=a)]
    lines = []
    for name in dict.fromkeys(r["bandit"] for r in rows):
        for agent in OUR_AGENTS:
            mine = {r["seed"]: r["relative"] for r in select(rows, bandit=name, agent=agent)}
            cells = []
            for other in others:
                group = select(rows, bandit=name, agent=other)
                above = [mine[r["seed"]] - r["relative"] for r in group if r["seed"] in mine]
                cells.append(with_se(mean_se(above), 1) if above else "-")
            lines += [[name, agent, *cells]] if mine else []
    return table(["bandit", "agent", *(f"against {other}" for other in others)], lines)


def tables(
    rows: Rows,
    longer: Rows,
    bandit_rows: Rows,
    speed_rows: Rows | None = None,
    weight_rows: Rows | None = None,
) -> str:
    """Return all tables with their captions."""
    parts = []
    if rows:
        parts += [
            measured(rows + longer),
            *("### Test RMSE (s.e.)", accuracy(rows, "rmse")),
            *("### Test log density per point (s.e.)", accuracy(rows, "ll"), mixing(rows)),
            *("### Medians over splits, RMSE / log density", medians(rows)),
            *("### Cost of training, and the noise found", cost(rows)),
        ]
    for ours in (method for method in COMPARED if select(rows, method=method)):
        head = f"### {ours} on the same splits: RMSE in percent above / log density above (s.e.)"
        parts += [head, against(rows, ours)]
    if longer:
        parts += ["### Twice the steps, on one split", convergence(rows, longer)]
    if weight_rows:
        head = "### The weight of the divergence, on the held-out training rows of split 1"
        parts += [head, measured(weight_rows), weights(weight_rows)]
    if speed_rows:
        parts += ["### Cost of a step", measured(speed_rows), speed(speed_rows)]
    if bandit_rows:
        parts += ["### Bandits (s.e.)", measured(bandit_rows), bandits(bandit_rows)]
    if any(r["agent"] in OUR_AGENTS for r in bandit_rows):
        head = "### Functional agents on the same seeds: regret above, in % of uniform (s.e.)"
        parts += [head, bandits_against(bandit_rows)]
    failed = [
        f"{r['data']} {r['split']}, {r['method']}: {r['error']}" for r in rows if "error" in r
    ]
    parts += ["Failed: " + "; ".join(failed) + "."] if failed else []
    return "\n\n".join(filter(None, parts))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    parser.add_argument("--print", action="store_true", help="print, and leave the page alone")
    parser.add_argument("--rows", type=Path, default=RESULTS / "functional.jsonl")
    parser.add_argument("--longer", type=Path, default=RESULTS / "functional-steps.jsonl")
    parser.add_argument("--bandits", type=Path, default=RESULTS / "bandits.jsonl")
    parser.add_argument("--speed", type=Path, default=RESULTS / "functional-speed.jsonl")
    parser.add_argument("--weights", type=Path, default=RESULTS / "functional-weights.jsonl")
    args = parser.parse_args(arguments)
    files = (args.rows, args.longer, args.bandits, args.speed, args.weights)
    text = tables(*map(read, files))
    if args.print:
        print(text)
        return
    page = PAGE.read_text()
    text = insert(page, text, BEGIN, END)
    if args.check and text != page:
        sys.exit(
            f"{PAGE.name} differs from its results: run python -m benchmarks.functional.tables"
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
