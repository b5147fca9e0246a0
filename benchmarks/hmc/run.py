"""Gradient-free samplers side by side: effective draws per evaluation, and whether they are right.

    python -m benchmarks.hmc.run --data FOLDER --seeds 5 --shares 0.25 1  (all)
    python -m benchmarks.hmc.run --targets banana_2 gaussian_10 --methods adaptive_metropolis sa
    python -m benchmarks.hmc.run --quick        (bundled data, short runs, one seed)
    python -m benchmarks.hmc.run --check-counts (stated evaluations against a count)
    python -m benchmarks.hmc.tables             (the tables of docs/hmc.md)

One row for each target, method, share of the warm-up and seed; rows that the result file has are
skipped. Every method gets as many evaluations, all chains together: 10,000 for the warm-up and
30,000 for draws, beyond 20 dimensions 100,000 and 120,000; NUTS gets 1,000 + 1,000 iterations. How
long a warm-up must be differs between methods, so `--shares 0.25 1` runs each with a quarter of it
and with all of it, and the tables take the better one. Chains of equal seeds start at equal points.
`NAME:key=value,...` gives a method options; `num_warmup`, `num_samples` and `num_chains` among them
replace the budget. Methods named `score_hmc` call `benchmarks/hmc/score_hmc.py`; those named
`blackjax_` need blackjax, which the project does not depend on: run them in another environment
that has both.

Effective sample sizes and R-hat are ArviZ's rank-normalised ones, the worst over unconstrained
coordinates; errors are the worst over the scalars of the truth, in its standard deviations; z is
an error over its Monte Carlo standard error, which the truth's own error is part of.
"""

import argparse
import ast
import dataclasses
import importlib
import itertools
import sys
import time
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common.paths import CACHE, RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.hmc.blackjax_kernels import import_blackjax
from benchmarks.hmc.methods import METHODS, NUM_CHAINS, Method
from benchmarks.hmc.runs import Counter, Run
from benchmarks.hmc.targets import PROBABILITIES, Target, Truth, find, names

BUDGET, LARGE, LARGE_BUDGET = (10_000, 30_000), 20, (100_000, 120_000)
QUICK = 10
WANTED = 400.0
PLUGIN, PLUGIN_MODULE = "score_hmc", "benchmarks.hmc.score_hmc"
QUANTILE_ERRORS = ("q05_error", "q50_error", "q95_error")
ERRORS = ("mean_error", "sd_ratio_low", "sd_ratio_high", *QUANTILE_ERRORS, "z")
SIZES = ("num_warmup", "num_samples", "num_chains")
KEY = ("target", "method", "share", "seed")


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of `NAME:key=value,...`; values are Python literals or text.

    Raises:
        ValueError: when the name is unknown or an option has no value.
    """
    name, _, rest = text.partition(":")
    if name not in METHODS and not name.startswith(PLUGIN):
        raise ValueError(f"`method` must be one of {(*METHODS, PLUGIN)}; got {name!r}.")
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"an option of a method must be key=value; got {pair!r}.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


def find_method(name: str) -> Method:
    """Return the method of that name; the plugin's is imported here.

    Raises:
        ImportError: when the plugin's module, or blackjax, is not there.
    """
    if name.startswith("blackjax"):
        import_blackjax()
    if name in METHODS:
        return METHODS[name]
    try:
        return Method(importlib.import_module(PLUGIN_MODULE).score_hmc)
    except ModuleNotFoundError as error:
        if error.name != PLUGIN_MODULE:
            raise
        raise ImportError(
            f"{name!r} needs `score_hmc(target, key, num_warmup, num_samples, num_chains, "
            f"**options) -> Run` in {PLUGIN_MODULE}, which does not exist."
        ) from error


def run_method(
    text: str, target: Target, share: float, seed: int, budget: tuple[int, int]
) -> tuple[Run, dict[str, int]]:
    """Return the run of a method on a target, and its numbers of iterations and chains."""
    name, options = parse_method(text)
    method = find_method(name)
    sizes = dict(zip(SIZES, method.sizes(target.dimension, *budget, share), strict=True))
    sizes |= {k: options.pop(k) for k in SIZES if k in options}
    start = time.process_time()
    run = method.run(target, jax.random.key(seed), **sizes, **options)
    if not run.cpu_seconds:
        run = dataclasses.replace(run, cpu_seconds=time.process_time() - start)
    return run, sizes


def budget_of(target: Target, quick: bool) -> tuple[int, int]:
    """Return the evaluations of warm-up and sampling."""
    warmup, sampling = LARGE_BUDGET if target.dimension > LARGE else BUDGET
    return (warmup // QUICK, sampling // QUICK) if quick else (warmup, sampling)


def stuck(draws: np.ndarray) -> int:
    """Return how many chains `(C, N, D)` hold a coordinate that never moves, or is not finite."""
    moved = np.ptp(draws, axis=1) > 0
    return int(np.sum(~np.all(moved & np.isfinite(draws).all(axis=1), axis=1)))


def dataset(draws: np.ndarray) -> Any:
    """Return draws `(C, N, D)` as ArviZ takes them."""
    import xarray

    return xarray.Dataset({"x": (("chain", "draw", "coordinate"), draws.astype(float))})


def grouped(draws: np.ndarray) -> np.ndarray:
    """Return many walkers as four chains, each a quarter of them side by side in time.

    R-hat exceeds 1 by about half the inverse of the effective draws in a chain: over fifty short
    walkers it would reject what it accepts over four chains of as many draws in all.
    """
    num_chains, num_draws, dimension = draws.shape
    if num_chains <= NUM_CHAINS or num_chains % NUM_CHAINS:
        return draws
    parts = draws.reshape(NUM_CHAINS, -1, num_draws, dimension).swapaxes(1, 2)
    return parts.reshape(NUM_CHAINS, -1, dimension)


def mixing(draws: np.ndarray) -> dict[str, float]:
    """Return the least effective sample sizes and the largest R-hat; zero where a chain stands."""
    import arviz as az

    if stuck(draws):
        return {"ess_bulk": 0.0, "ess_tail": 0.0, "rhat": float("inf")}
    data = dataset(draws)
    bulk, tail = (np.asarray(az.ess(data, method=kind)["x"]) for kind in ("bulk", "tail"))
    rhat = np.asarray(az.rhat(dataset(grouped(draws)))["x"])
    return {
        "ess_bulk": float(bulk.min()),
        "ess_tail": float(tail.min()),
        "rhat": float(rhat.max()),
    }


def errors(draws: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return the worst deviations of scalars `(C, N, P)` from the truth, in its sds.

    All are infinite where a scalar is not finite (a failure, never a pass).
    """
    import arviz as az

    if not np.all(np.isfinite(draws)):
        return dict.fromkeys(ERRORS, float("inf"))
    pooled = draws.reshape(-1, draws.shape[-1]).astype(float)
    data = dataset(draws)
    own = np.asarray(az.mcse(data, method="mean")["x"])
    shift = pooled.mean(axis=0) - truth.mean
    quantiles = (np.quantile(pooled, PROBABILITIES, axis=0) - truth.quantiles) / truth.sd
    ratio = pooled.std(axis=0) / truth.sd
    worst = np.abs(quantiles).max(axis=1).tolist()
    return {
        "mean_error": float(np.max(np.abs(shift) / truth.sd)),
        "sd_ratio_low": float(ratio.min()),
        "sd_ratio_high": float(ratio.max()),
        **dict(zip(QUANTILE_ERRORS, worst, strict=True)),
        "z": float(np.max(np.abs(shift) / np.hypot(own, truth.error))),
    }


def efficiency(run: Run, found: dict[str, float]) -> dict[str, Any]:
    """Return effective draws per evaluation, and the evaluations until 400 of both kinds.

    That number is warm-up plus 400 divided by the smaller rate: where the run itself holds fewer
    (`reached_400` is false), it is extrapolated.
    """
    least = min(found["ess_bulk"], found["ess_tail"])

    def until(warmup: int, sampling: int) -> float:
        return warmup + WANTED * sampling / least if least > 0 else float("inf")

    row = {
        "bulk_per_evaluation": found["ess_bulk"] / run.evaluations_sampling,
        "tail_per_evaluation": found["ess_tail"] / run.evaluations_sampling,
        "evaluations_to_400": until(run.evaluations_warmup, run.evaluations_sampling),
        "reached_400": bool(least >= WANTED),
    }
    if run.necessary_sampling is not None and run.necessary_warmup is not None:
        row |= {
            "necessary_warmup": run.necessary_warmup,
            "necessary_sampling": run.necessary_sampling,
            "necessary_to_400": until(run.necessary_warmup, run.necessary_sampling),
        }
    return row


def row_of(
    text: str, target: Target, share: float, seed: int, budget: tuple[int, int]
) -> dict[str, Any]:
    """Return the row of one run; a method that raises has its error in the row."""
    row: dict[str, Any] = dict(zip(KEY, (target.name, text, share, seed), strict=True))
    row |= {"dimension": target.dimension}
    try:
        run, sizes = run_method(text, target, share, seed, budget)
        found = mixing(run.draws)
        row |= sizes | {
            "evaluations_warmup": run.evaluations_warmup,
            "evaluations_sampling": run.evaluations_sampling,
            "gradients": run.gradients,
            "stuck_chains": stuck(run.draws),
        }
        row |= found | efficiency(run, found) | {"cpu_seconds": run.cpu_seconds}
        scalars = target.scalars(run.draws.reshape(-1, target.dimension))
        truth = target.truth()
        shape = (*run.draws.shape[:2], len(truth.names))
        row |= errors(scalars.reshape(shape), truth) | {"truth": truth.source}
    except Exception as error:  # one method's failure is a result of the comparison
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row | versions(text)


def versions(text: str) -> dict[str, Any]:
    """Return date and versions, with that of blackjax where it ran."""
    found = provenance()
    if text.startswith("blackjax"):
        found["versions"] |= {"blackjax": metadata.version("blackjax")}
    return found


def count(text: str, target: Target, sizes: tuple[int, int]) -> tuple[int, int]:
    """Return the evaluations that a method states for a tiny run, and those counted on the host."""
    name, options = parse_method(text)
    method, counter = find_method(name), Counter()
    chains = options.pop("num_chains", method.chains(target.dimension))
    options = {k: v for k, v in options.items() if k not in SIZES}
    watched = dataclasses.replace(target, log_density=counter.wrap(target.log_density))
    watched.starts(jax.random.key(0), chains)
    search = counter.read()  # of finite starts, the same for every method and not counted
    run = method.run(watched, jax.random.key(0), *sizes, chains, **options)
    return run.evaluations_warmup + run.evaluations_sampling, counter.read() - search


def check_counts(methods: list[str]) -> None:
    """Print stated and counted evaluations; exit 1 where they differ."""
    target, wrong = find("gaussian_10"), []
    for text in methods:
        stated, counted = count(text, target, (60, 20))
        print(f"{text:28s} stated {stated:7d}  counted {counted:7d}", flush=True)
        wrong += [text] if stated != counted else []
    if wrong:
        sys.exit(f"the stated number of evaluations is wrong: {', '.join(wrong)}")


def available() -> list[str]:
    """Return the methods that can run here, the plugin aside."""
    has_blackjax = util.find_spec("blackjax") is not None
    return [name for name in METHODS if has_blackjax or not name.startswith("blackjax")]


def summary(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    head = f"{row['target'][:24]:24s} {row['method']:26s} {row['share']:g} {row['seed']}"
    if "error" in row:
        return f"{head}  {row['error']}"
    return (
        f"{head}  bulk/1000 {1000 * row['bulk_per_evaluation']:8.2f}"
        f"  to 400 {row['evaluations_to_400']:9.0f}{'' if row['reached_400'] else '*'}"
        f"  R-hat {row['rhat']:.3f}  mean {row['mean_error']:.3f}  z {row['z']:.1f}"
        f"  sd {row['sd_ratio_low']:.2f}-{row['sd_ratio_high']:.2f}  {row['cpu_seconds']:.1f} s"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds posteriordb/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--targets", nargs="+", help="default: all that have data")
    parser.add_argument("--methods", nargs="+", help="NAME[:key=value,...]; default: all peers")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0], help="of the warm-up")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of NUTS references")
    parser.add_argument("--quick", action="store_true", help="a tenth of the evaluations")
    parser.add_argument("--check-counts", action="store_true", help="check the stated numbers")
    args = parser.parse_args()
    args.out = args.out or RESULTS / ("hmc-quick.jsonl" if args.quick else "hmc.jsonl")
    args.methods = args.methods or available()
    args.targets = args.targets or names(None if args.quick else args.data)
    for text in args.methods:
        find_method(parse_method(text)[0])
    return args


def main(log: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
    args = parse()
    if args.check_counts:
        return check_counts(args.methods)
    # Seeds share their programs: only the first one compiles.
    jax.config.update("jax_compilation_cache_dir", str(args.cache / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    done = {tuple(row[k] for k in KEY) for row in read(args.out)}
    for name in args.targets:
        target = find(name, args.data, args.cache)
        budget = budget_of(target, args.quick)
        runs = itertools.product(args.methods, args.shares, range(args.seeds))
        for text, share, seed in runs:
            if (name, text, share, seed) not in done:
                row = row_of(text, target, share, seed, budget)
                append(args.out, row)
                log(summary(row))
        jax.clear_caches()  # a process may map only so many compiled programs


if __name__ == "__main__":
    main()
