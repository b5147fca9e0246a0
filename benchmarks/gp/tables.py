"""Turns the result files of gp/run.py and gp/speed.py into the tables of a docs page.

    python -m benchmarks.gp.tables          (writes them between the markers of the page)
    python -m benchmarks.gp.tables --check  (fails where the page differs)
    python -m benchmarks.gp.tables --print  (prints them; `--rows FILE` for another file)

Standard errors are those of a mean over splits. Differences to RBF-ARD are paired: taken split by
split. The published figures are those of step 19,900 in the logs that the authors keep beside their
code, mean and standard error over the same ten seeds.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import DOCS, RESULTS
from benchmarks.common.rows import read
from benchmarks.gp.methods import KERNELS
from benchmarks.gp.peers import SCRIPTS

PAGE = DOCS / "gp-benchmarks.md"
BEGIN, END = "<!-- gp:begin -->", "<!-- gp:end -->"
BASE, NETWORK = "RBF-ARD", "NKN"
METHODS = (*KERNELS, *SCRIPTS)
PUBLISHED = {  # data -> figure -> mean, standard error over 10 splits
    "yacht": {"rmse": (0.3369, 0.0667), "ll": (0.2849, 0.1446)},
    "energy": {"rmse": (0.2533, 0.0204), "ll": (-0.1397, 0.1576)},
    "concrete": {"rmse": (3.6689, 0.2555), "ll": (-2.8163, 0.2421)},
}
PUBLISHED_STEPS = 20_000
Rows = list[dict[str, Any]]


def by_method(rows: Rows, name: str) -> dict[str, Rows]:
    """Return the good rows of a data set for each method, in the order of the methods."""
    good = [row for row in rows if row["data"] == name and "error" not in row]
    found = {m: [row for row in good if row["method"] == m] for m in METHODS}
    return {m: group for m, group in found.items() if group}


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and its standard error; infinite for one value."""
    array = np.asarray(list(values), float)
    spread = np.std(array, ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.inf
    return float(np.mean(array)), float(spread)


def paired(group: Rows, base: Rows, figure: str) -> tuple[float, float] | None:
    """Return mean and standard error of a method less another, over the splits of both."""
    others = {row["split"]: row[figure] for row in base}
    common = [row[figure] - others[row["split"]] for row in group if row["split"] in others]
    return mean_se(common) if common else None


def with_se(found: tuple[float, float] | None, digits: int, *, signed: bool = False) -> str:
    """Return `mean (standard error)`, a dash for nothing."""
    if found is None:
        return "-"
    mean, error = found
    spread = f" ({error:.{digits}f})" if np.isfinite(error) else ""
    return f"{mean:{'+' if signed else ''}.{digits}f}{spread}"


def accuracy(rows: Rows, figure: str) -> str:
    """Return data sets by methods, with the published figures of the network last."""
    lines = [f"| data | splits | {' | '.join(METHODS)} | NKN, authors' logs |"]
    lines.append("|---" * (len(METHODS) + 3) + "|")
    for name in names(rows):
        found = by_method(rows, name)
        most = max(map(len, found.values()), default=0)
        cells = [cell(found.get(method, []), figure, most) for method in METHODS]
        logged = with_se(PUBLISHED.get(name, {}).get(figure), 3)
        lines.append(f"| {name} | {most} | {' | '.join(cells)} | {logged} |")
    return "\n".join(lines)


def cell(group: Rows, figure: str, most: int) -> str:
    """Return mean and standard error, with the number of splits where it is not `most`."""
    if not group:
        return "-"
    few = "" if len(group) == most else f", {len(group)} splits only"
    return with_se(mean_se(row[figure] for row in group), 3) + few


def differences(rows: Rows) -> str:
    """Return paired differences of our other kernels to RBF-ARD, and how many errors they are."""
    lines = [
        "| data | kernel | splits | RMSE | in s.e. | log likelihood | in s.e. | log evidence |",
        "|---" * 8 + "|",
    ]
    for name in names(rows):
        found = by_method(rows, name)
        for method in (m for m in KERNELS if m in found and m != BASE and BASE in found):
            both = {r["split"] for r in found[method]} & {r["split"] for r in found[BASE]}
            cells = [name, method, str(len(both))]
            for figure in ("rmse", "ll"):
                change = paired(found[method], found[BASE], figure)
                cells += [with_se(change, 3, signed=True), ratio(change)]
            cells.append(
                with_se(paired(found[method], found[BASE], "log_evidence"), 1, signed=True)
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(change: tuple[float, float] | None) -> str:
    if change is None or not np.isfinite(change[1]) or change[1] == 0:
        return "-"
    return f"{change[0] / change[1]:+.1f}"


def against_logs(rows: Rows) -> str:
    """Return ours less the authors' network, in standard errors of the two means together."""
    lines = [
        "| data | steps, ours of theirs | RMSE, ours less theirs | in s.e. "
        "| log likelihood, ours less theirs | in s.e. |",
        "|---" * 6 + "|",
    ]
    for name in (n for n in names(rows) if n in PUBLISHED and NETWORK in by_method(rows, n)):
        group = by_method(rows, name)[NETWORK]
        cells = [name, f"{group[0]['num_steps']:,} of {PUBLISHED_STEPS:,}"]
        for figure in ("rmse", "ll"):
            (mean, error), (theirs, other) = (
                mean_se(r[figure] for r in group),
                PUBLISHED[name][figure],
            )
            change = (mean - theirs, float(np.hypot(error, other)))
            cells += [with_se(change, 3, signed=True), ratio(change)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(rows: Rows) -> str:
    """Return how far the peers' RBF-ARD is from ours, at worst."""
    parts = []
    for peer in SCRIPTS:
        gaps: list[tuple[float, float]] = []
        for name in names(rows):
            found = by_method(rows, name)
            ours = {row["split"]: row for row in found.get(BASE, [])}
            gaps += [
                (
                    abs(row["log_evidence"] - ours[row["split"]]["log_evidence"]),
                    abs(row["rmse"] / ours[row["split"]]["rmse"] - 1),
                )
                for row in found.get(peer, [])
                if row["split"] in ours and row["num_steps"] == ours[row["split"]]["num_steps"]
            ]
        if gaps:
            nats, share = np.max(gaps, axis=0)
            parts.append(
                f"{peer}'s log evidence is within {max(nats, 1e-5):.1g} nats of ours and its RMSE "
                f"within {max(100 * share, 1e-3):.1g}%, in {len(gaps)} fits"
            )
    return "; ".join(parts) + "." if parts else ""


def cost(rows: Rows) -> str:
    """Return steps and CPU seconds of a fit; compilation is the first fit less the others."""
    lines = [
        "| data | N | method | steps | rate | training, s | compiling, s |",
        "|---" * 7 + "|",
    ]
    for name in names(rows):
        for method, group in by_method(rows, name).items():
            warm = [r["train_seconds"] for r in group if not r["is_first"]]
            first = [r["train_seconds"] for r in group if r["is_first"]]
            training = float(np.median(warm or first))
            extra = float(np.median(first)) - training if warm and first else 0.0
            compiling = f"{extra:.1f}" if extra > 0 else "-"  # lost in what fits differ by
            row = group[-1]
            inducing = f", {row['num_inducing']} inducing" if "num_inducing" in row else ""
            lines.append(
                f"| {name} | {row['num_train']:,}{inducing} | {method} | {row['num_steps']:,} "
                f"| {row['learning_rate']:g} | {training:.1f} | {compiling} |"
            )
    return "\n".join(lines)


def speed(rows: Rows) -> str:
    """Return milliseconds of a step and of a prediction, and ours over the best peer's."""
    lines = [
        "| data | N | method | step, CPU ms (range) | over RBF-ARD | prediction, CPU ms "
        "| programs compiled by a second fit |",
        "|---" * 7 + "|",
    ]
    for name in names(rows):
        group = [row for row in rows if row["data"] == name]
        base = next((r["step_ms"] for r in group if r["method"] == BASE), None)
        for row in group:
            over = f"{row['step_ms'] / base:.2f}" if base else "-"
            again = row.get("compilations_of_second_fit", "-")
            lines.append(
                f"| {name} | {row['num_train']} | {row['method']} | {row['step_ms']:.1f} "
                f"({row['step_low_ms']:.1f}-{row['step_high_ms']:.1f}) | {over} "
                f"| {row['predict_ms']:.2f} | {again} |"
            )
    return "\n".join(lines)


def names(rows: Rows) -> list[str]:
    """Return the data sets in the order of the file."""
    return list(dict.fromkeys(row["data"] for row in rows))


def measured(rows: Rows) -> str:
    """Return one sentence on when, with what and for how long."""
    dates = sorted(row["date"] for row in rows)
    packages: dict[str, str] = {}
    for row in rows:
        packages |= row["versions"]
    versions = ", ".join(f"{k} {v}" for k, v in packages.items())
    hours = sum(row.get("cpu_seconds", 0.0) for row in rows) / 3600
    spent = f", {hours:.2f} CPU hours in all" if hours else ""
    return f"Measured {dates[0]} to {dates[-1]} with {versions}, one CPU thread{spent}."


def tables(rows: Rows, speed_rows: Rows) -> str:
    """Return all tables with their captions."""
    sections: list[tuple[str, Callable[[], Sequence[str]]]] = [
        ("Test RMSE (s.e.)", lambda: [accuracy(rows, "rmse")]),
        ("Test log likelihood per point (s.e.)", lambda: [accuracy(rows, "ll"), agreement(rows)]),
        ("Kernel less RBF-ARD, paired over splits (s.e.)", lambda: [differences(rows)]),
        ("NKN against the authors' logs", lambda: [against_logs(rows)]),
        ("Cost of a fit, in CPU time", lambda: [cost(rows)]),
    ]
    parts = [measured(rows)]
    for head, content in sections:
        parts += [f"### {head}", *filter(None, content())]
    if speed_rows:
        parts += [
            "### A step and a prediction, in one run",
            measured(speed_rows),
            speed(speed_rows),
        ]
    failed = [
        f"{r['data']} {r['split']}, {r['method']}: {r['error']}" for r in rows if "error" in r
    ]
    return "\n\n".join(parts + (["Failed: " + "; ".join(failed) + "."] if failed else []))


def insert(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the page with the text between its markers."""
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must contain {begin} and {end} once each.")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    parser.add_argument("--print", action="store_true", help="print, and leave the page alone")
    parser.add_argument("--rows", type=Path, default=RESULTS / "gp.jsonl", help="result file")
    parser.add_argument("--speed", type=Path, default=RESULTS / "gp-speed.jsonl", help="its times")
    args = parser.parse_args(arguments)
    text = tables(read(args.rows), read(args.speed))
    if args.print:
        print(text)
        return
    page = PAGE.read_text()
    text = insert(page, text)
    if args.check and text != page:
        sys.exit(f"{PAGE.name} differs from its result files: run python -m benchmarks.gp.tables")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
