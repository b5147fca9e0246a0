"""Runs methods on posteriors and appends one line per run to a result file.

    python -m benchmarks.accuracy.run --data FOLDER --seeds 5  (all)
    python -m benchmarks.accuracy.run --quick                  (bundled data, one seed)
    python -m benchmarks.accuracy.tables                       (the tables of docs/accuracy.md)

Without `--data` only the bundled targets run. Rows that the result file has are skipped, so an
interrupted run continues. NumPyro's guides get as many CPU seconds as our guide took on the same
posterior and seed, compilation apart on both sides (`--seconds` where it has no row). Use one
thread for times that compare. Every row has its `cpu_seconds`, compilation and sampling included;
the tables state their sum. One seed of one guide costs 10 to 60 CPU seconds at 3 seconds of
running; the committed rows, one seed, took 0.39 CPU hours. NUTS references come on top.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accuracy import posteriors, targets
from benchmarks.accuracy.methods import METHODS, Budget
from benchmarks.accuracy.posteriors import Posterior
from benchmarks.accuracy.references import Reference, reference
from benchmarks.common.metrics import accuracy
from benchmarks.common.paths import CACHE, RESULTS
from benchmarks.common.rows import append, provenance, read

OURS = "AutoImplicit"
QUICK_TARGETS = ("eight_schools", "skewed", "banana", "product", "bimodal")
QUICK_METHODS = (OURS, "AutoMultivariateNormal")
QUICK_SECONDS = 5.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds posteriordb/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all")
    parser.add_argument("--posteriors", nargs="+", help="default: all that have data")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--seconds", type=float, help="CPU seconds where ours has no row")
    parser.add_argument("--steps", type=int, help="a number of steps in place of seconds")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of NUTS references")
    parser.add_argument("--quick", action="store_true", help="bundled data, under five minutes")
    args = parser.parse_args()
    args.out = args.out or RESULTS / ("accuracy-quick.jsonl" if args.quick else "accuracy.jsonl")
    args.methods = args.methods or (QUICK_METHODS if args.quick else list(METHODS))
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else Budget.seconds)
    args.posteriors = args.posteriors or available(args)
    return args


def available(args: argparse.Namespace) -> list[str]:
    """Return the names of the posteriors that can run."""
    if args.quick:
        return list(QUICK_TARGETS)
    return list(targets.TARGETS) + (list(posteriors.NAMES) if args.data else [])


def find(name: str, data: Path | None) -> Posterior:
    """Return the posterior of that name."""
    if name in targets.TARGETS:
        return targets.TARGETS[name]
    if data is None:
        raise ValueError(f"`--data` must name the folder of posteriordb to run {name!r}; got None.")
    return posteriors.load(data, name)


def equal_budget(rows: list[dict[str, Any]], name: str, seed: int, args: Any) -> Budget:
    """Return the seconds that ours took on this posterior and seed, or the default."""
    ours = [r for r in rows if (r["posterior"], r["method"], r["seed"]) == (name, OURS, seed)]
    return Budget(ours[0]["seconds"] if ours else args.seconds, args.steps)


def run_one(
    posterior: Posterior, truth: Reference, method: str, seed: int, budget: Budget
) -> dict[str, Any]:
    """Return the row of one run; a method that raises has its error in the row."""
    row: dict[str, Any] = {
        "posterior": posterior.name,
        "method": method,
        "seed": seed,
        "gaussian": posterior.gaussian,
        "reference": truth.source,
    }
    start = time.process_time()
    try:
        draws, info = METHODS[method](posterior, seed, budget)
        columns = posterior.to_reference(draws)
        stacked = np.stack([columns[name] for name in truth.names], axis=1)
        row |= info | accuracy(stacked, truth.draws, truth.names).as_dict()
    except Exception as error:  # one method's failure is a result of the comparison
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row | {"cpu_seconds": time.process_time() - start} | provenance()


def summary(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    head = f"{row['posterior']:40s} {row['method']:24s} seed {row['seed']}"
    if "error" in row:
        return f"{head}  {row['error']}"
    return (
        f"{head}  mean {row['mean_shift']:.3f}  quantile {row['quantile_shift']:.3f}"
        f"  sd {row['sd_ratio_low']:.2f}-{row['sd_ratio_high']:.2f}  corr {row['correlation']:.3f}"
        f"  SW-floor {row['excess']:.4f}  {row['seconds']:.1f} s"
    )


def main() -> None:
    args = parse()
    # Seeds share their programs: `compile_seconds` is that of the first one that ran.
    jax.config.update("jax_compilation_cache_dir", str(args.cache / "programs"))
    for name in args.posteriors:
        posterior = find(name, args.data)
        truth = None
        for seed in range(args.seeds):
            for method in args.methods:
                rows = read(args.out)
                if any(
                    (r["posterior"], r["method"], r["seed"]) == (name, method, seed) for r in rows
                ):
                    continue
                truth = truth or reference(posterior, args.cache)
                budget = equal_budget(rows, name, seed, args)
                row = run_one(posterior, truth, method, seed, budget)
                append(args.out, row)
                print(summary(row), flush=True)
        jax.clear_caches()  # a process may map only so many compiled programs


if __name__ == "__main__":
    main()
