"""Kernels side by side on regression tables, by the protocol of the Neural Kernel Network paper.

    python -m benchmarks.gp.run --data FOLDER --peers PYTHON  (all; FOLDER/uci/*.data)
    python -m benchmarks.gp.run --data FOLDER --sets yacht --methods RBF-ARD NKN --splits 10
    python -m benchmarks.gp.run --quick                       (bundled data, two splits)
    python -m benchmarks.gp.tables                            (docs/gp-benchmarks.md)

One row for each data set, split and method; rows that the result file has are skipped. PYTHON is an
interpreter of an environment with gpytorch, torch and gpjax; without it the peers are left out.
Beyond 2,000 rows everything has 200 inducing points, the peers too. `--steps N` and `--rate R`
replace the settings of a data set. Everything is float64; use one thread for times that compare.

Splits, standardisation and figures are those of Sun et al. (2018), arXiv 1806.04326, and of the
authors' code: 90/10 splits of seeds 1 to 10, RMSE and mean test log likelihood in the data's units.
They took 20,000 steps of Adam at a rate of 1e-3.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.gp.data import BUNDLED, Split, scores, split
from benchmarks.gp.methods import KERNELS, Run, Settings, run_ours, run_peer
from benchmarks.gp.peers import SCRIPTS, Peer

KEY = ("data", "split", "method")
SETTINGS = {
    "yacht": Settings(1000, 0.05),
    "energy": Settings(300, 0.1),
    "concrete": Settings(200, 0.1),
    "kin8nm": Settings(300, 0.1),
    BUNDLED: Settings(60, 0.1),
}
QUICK_SPLITS = 2
OUT = RESULTS / "gp.jsonl"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds uci/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=[*KERNELS, *SCRIPTS], help="default: all")
    parser.add_argument("--splits", type=int, default=10, help="number of splits, from seed 1")
    parser.add_argument("--peers", help="interpreter of an environment with GPyTorch and GPJax")
    parser.add_argument("--steps", type=int, help="steps of Adam")
    parser.add_argument("--rate", type=float, help="learning rate at the first step")
    parser.add_argument("--quick", action="store_true", help="bundled data, two splits")
    args = parser.parse_args(arguments)
    args.out = args.out or (RESULTS / "gp-quick.jsonl" if args.quick else OUT)
    args.splits = QUICK_SPLITS if args.quick else args.splits
    args.sets = args.sets or (
        [BUNDLED] if args.quick else [name for name in SETTINGS if name != BUNDLED]
    )
    args.methods = args.methods or [*KERNELS, *(SCRIPTS if args.peers else ())]
    if not args.peers and set(args.methods) & set(SCRIPTS):
        parser.error("peers need `--peers PYTHON`")
    return args


def settings_of(args: argparse.Namespace, name: str) -> Settings:
    """Return steps and rate for a data set, as asked for or its own."""
    own = SETTINGS[name]
    return Settings(args.steps or own.num_steps, args.rate or own.learning_rate)


def row_of(
    method: str, found: Split, settings: Settings, run: Callable[[], Run], is_first: bool
) -> dict[str, Any]:
    """Return the row of one run; a method that raises has its error in the row."""
    row: dict[str, Any] = dict(zip(KEY, (found.name, found.seed, method), strict=True))
    row |= {"num_train": len(found.y), **settings._asdict(), "is_first": is_first}
    begin = time.process_time()
    try:
        result = run()
        row |= scores(found, result.mean, result.variance) | result.info
    except Exception as error:  # one method's failure is a result of the comparison
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    row.setdefault("cpu_seconds", time.process_time() - begin)
    if method in SCRIPTS and "error" not in row:
        row["cpu_seconds"] = row["train_seconds"] + row["predict_first_seconds"]
    return row


def summary(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    head = f"{row['data']:9s} {row['split']:2d} {row['method']:9s}"
    if "error" in row:
        return f"{head} {row['error']}"
    return (
        f"{head} RMSE {row['rmse']:8.4f}  LL {row['ll']:8.4f}  log evidence "
        f"{row['log_evidence']:9.2f}  {row['train_seconds']:.1f} s"
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    with jax.enable_x64(True):
        for method in args.methods:
            run_method(args, method)
            jax.clear_caches()  # a process may map only so many compiled programs


def run_method(args: argparse.Namespace, method: str) -> None:
    """Append the rows of one method on all data sets."""
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer(method, args.peers)) if method in SCRIPTS else None
        versions = peer.versions() if peer else {}
        for name in args.sets:
            run_set(args, name, method, peer, versions)


def run_set(
    args: argparse.Namespace, name: str, method: str, peer: Peer | None, versions: dict[str, str]
) -> None:
    """Append the rows of one method on one data set."""
    done = {tuple(row[k] for k in KEY) for row in read(args.out)}
    settings, is_first = settings_of(args, name), True
    for seed in range(1, args.splits + 1):
        if (name, seed, method) in done:
            continue
        found = split(name, seed, args.data)

        def run(found: Split = found) -> Run:
            if peer:
                return run_peer(peer, found, settings)
            return run_ours(method, found, settings)

        row = row_of(method, found, settings, run, is_first) | provenance()
        row["versions"] |= versions
        append(args.out, row)
        print(summary(row), flush=True)
        is_first = False


if __name__ == "__main__":
    main()
