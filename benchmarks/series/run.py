"""Extrapolates the last 30% of three series with four kernels, and appends a row for each run.

    python -m benchmarks.series.run --data FOLDER     (FOLDER holds series/airline-pass.txt)
    python -m benchmarks.series.run --quick           (60 years of sunspots)
    python -m benchmarks.series.tables                (writes the table of docs/series.md)
    python -m benchmarks.series.figure --data FOLDER  (writes docs/pictures/series.png)

Every method starts `--restarts` times, first from its default, and keeps the fit whose evidence, of
the fitted part alone, is highest. A seed decides the other starts, and the weights of networks; the
split is always the same. float64, one thread.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.series.problems import Series, Start, airline, co2, cut, figures, kernels, sunspots
from implicitppl.gp import GaussianProcess, ProcessFitResult, best_fit
from implicitppl.kernels import NeuralKernelNetwork, Periodic

KEY = ("series", "method", "seed")
RESTARTS, SEEDS, STEPS = 3, 3, 300
LEARNING_RATE, NOISE = 0.05, 0.1
MIN_SHARE = 0.02
"""Terms of the learned kernel that a row tells: those of at least this part of its variance."""


def learn(
    s: Series, start: Start, seed: int, restarts: int, num_steps: int
) -> tuple[ProcessFitResult, list[float]]:
    """Return the fit of the highest evidence, and the evidence of every start."""
    x, y = jnp.asarray(s.x[: s.num_fitted]), jnp.asarray(s.y[: s.num_fitted])
    keys = jax.random.split(jax.random.key(seed), restarts)
    starts = [GaussianProcess(start(key, i == 0)) for i, key in enumerate(keys)]
    options = {"num_steps": num_steps, "learning_rate": LEARNING_RATE}
    found, evidence = best_fit(starts, x, y, NOISE, **options)
    return found, [round(float(value), 3) for value in evidence]


def measure(s: Series, found: ProcessFitResult) -> dict[str, Any]:
    """Return figures of the last 30%, and the prediction itself in the units of the values."""
    x, y = jnp.asarray(s.x), jnp.asarray(s.y)
    num = s.num_fitted
    posterior = found.process.condition(x[:num], y[:num], found.noise_scale)
    ahead = posterior(x[num:], found.noise_scale)
    mean, covariance = np.asarray(ahead.mean), np.asarray(ahead.covariance_matrix)
    deviation = np.sqrt(np.diagonal(covariance))
    kernel = found.process.kernel
    learned: dict[str, Any] = {}
    if isinstance(kernel, NeuralKernelNetwork):
        periods = [k.period for k in kernel.primitives if isinstance(k, Periodic)]
        learned["periods"] = [round(float(np.asarray(p)) / s.year, 4) for p in periods]
        learned["formula"] = str(kernel.formula(x[:num, None], min_share=MIN_SHARE))
    return {
        **figures(s.y[num:], mean, covariance),
        "mean": [float(f"{v:.6g}") for v in s.centre + s.scale * mean],
        "deviation": [float(f"{v:.4g}") for v in s.scale * deviation],
        "noise_scale": float(found.noise_scale),
        "num_failed": int(found.num_skipped),
        **learned,
    }


def run(s: Series, start: Start, seed: int, restarts: int, num_steps: int) -> dict[str, Any]:
    """Return the row of one method and seed; CPU seconds include compilation."""
    begin = time.process_time()
    found, evidences = learn(s, start, seed, restarts, num_steps)
    return {
        "log_evidence": max(evidences),
        "evidences": evidences,
        **measure(s, found),
        "num_steps": num_steps,
        "cpu_seconds": time.process_time() - begin,
    }


def problems(data: Path | None, quick: bool) -> dict[str, Series]:
    """Return the series; those of other packages only, without a folder of data."""
    if quick:
        return {"sunspots": cut(sunspots(), 60)}
    found = {"sunspots": sunspots(), "co2": co2()}
    return found if data is None else {"airline": airline(data), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds series/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--only", action="append", default=[], help="only these series")
    parser.add_argument("--method", action="append", default=[], help="only these methods")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--restarts", type=int, default=RESTARTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="60 years, 2 starts, 20 steps")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.restarts, args.steps = 1, 2, 20
    out = args.out or RESULTS / ("series-quick.jsonl" if args.quick else "series.jsonl")
    done = {tuple(row[k] for k in KEY) for row in read(out)}
    with jax.enable_x64(True):
        jobs = [
            (name, s, method, start)
            for name, s in problems(args.data, args.quick).items()
            for method, start in kernels(name, s).items()
            if (not args.only or name in args.only) and (not args.method or method in args.method)
        ]
        for seed, (name, s, method, start) in itertools.product(range(args.seeds), jobs):
            if (name, method, seed) in done:
                continue
            row = run(s, start, seed, args.restarts, args.steps)
            append(out, dict(zip(KEY, (name, method, seed), strict=True)) | row | provenance())
            told = {k: round(row[k], 3) for k in TOLD}
            print(name, method, seed, told, file=sys.stderr, flush=True)


TOLD = ("log_evidence", "log_density", "joint", "rmse", "coverage", "cpu_seconds")

if __name__ == "__main__":
    main()
