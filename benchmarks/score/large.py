"""Memory of a fit, and large samples: every fit in a process of its own, compilation included.

    python -m benchmarks.score.large --peer numpy=PYTHON --peer torch=PYTHON --peer npse=PYTHON
                                   (a quarter of an hour; peers as in benchmarks.score.run)
    python -m benchmarks.score.large --quick (the first cell, ours only)

One seed: with thousands of samples and 1,000 queries its noise is small against the differences.
Error as in benchmarks.score.run; CPU seconds and growth of the peak memory of the process from
before the fit to after 1,000 queries.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common.paths import PEERS, RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.score.problems import density
from benchmarks.score.run import KEY, PEER_ROWS, SCRIPTS, estimators, figures

SMALL = ("normal", 2000, 10)
LARGE = [
    ("banana", 20_000, 10),
    ("banana", 100_000, 10),
    ("mixture", 20_000, 50),
    ("mixture", 100_000, 50),
]
WIDE = ("normal", 2000, 1000)
SCALABLE = ("select", "Gaussian", "SSGE", "Tikhonov", *("sliced network", "denoising network"))


def rows(cell: tuple[str, int, int]) -> list[str]:
    """Return the estimators of ours that are measured in a cell."""
    if cell == SMALL:
        return [*estimators(), "sliced network", "denoising network"]
    return ["select", "Gaussian"] if cell == WIDE else list(SCALABLE)


def measure(name: str, cell: tuple[str, int, int], seed: int) -> dict[str, float]:
    """Return error, CPU seconds and memory of one fit; call it in a fresh process."""
    import jax
    import jax.numpy as jnp

    from implicitppl.score import DenoisingScoreMatching, SlicedScoreMatching

    fits = estimators() | {
        "sliced network": lambda x: SlicedScoreMatching().fit(x, key=jax.random.key(0)),
        "denoising network": lambda x: DenoisingScoreMatching().fit(x, key=jax.random.key(0)),
    }
    problem = density(*cell, seed)
    x, q = jnp.asarray(problem.samples, jnp.float32), jnp.asarray(problem.queries, jnp.float32)
    jax.block_until_ready(jnp.linalg.cholesky(jnp.eye(4)) @ jnp.ones(4))  # libraries are loaded
    before, start = peak_mb(), time.process_time()
    fitted = jax.block_until_ready(fits[name](x))
    fit_s = time.process_time() - start
    found = np.asarray(fitted(q))
    return figures(found, problem.truth) | {"fit_s": fit_s, "peak_mb": peak_mb() - before}


def peak_mb() -> float:
    """Return the largest resident memory of this process so far (Linux).

    Not `ru_maxrss`, which begins at the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run(name: str, cell: tuple[str, int, int], seeds: int = 1) -> dict[str, list[float]]:
    """Return the figures over seeds, each from a process of its own."""
    found = []
    for seed in range(seeds):
        arguments = json.dumps([name, cell, seed])
        command = [sys.executable, "-m", "benchmarks.score.large", "--one", arguments]
        # A cache of compiled programs would hide what compilation costs.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        )
        found.append(json.loads(output.stdout.splitlines()[-1]))
    return {k: [float(f"{row[k]:.4g}") for row in found] for k in found[0]}


def run_peer(peer: str, python: str, row: str) -> dict[str, list[float]]:
    """Return error, CPU seconds and memory of one row of a peer in the small cell."""
    problem = density(*SMALL, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "0-1.npz", samples=problem.samples, queries=problem.queries)
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONPATH", None)
        command = [python, str(PEERS / SCRIPTS[peer]), str(folder), row]
        subprocess.run(command, check=True, env=environment)
        answer = np.load(folder / f"0-1.{row}.out.npz")
        found = figures(answer["scores"], problem.truth)
        found |= {"fit_s": float(answer["first_s"]), "peak_mb": float(answer["peak_mb"])}
        return {k: [float(f"{v:.4g}")] for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON")
    parser.add_argument("--quick", action="store_true", help="the first cell, ours only")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, cell, seed = json.loads(args.one)
        print(json.dumps(measure(name, tuple(cell), seed)))
        return
    out = args.out or RESULTS / ("score-large-quick.jsonl" if args.quick else "score-large.jsonl")
    done = {tuple(r[k] for k in KEY) for r in read(out)}

    def record(cell: tuple[str, int, int], name: str, row: dict[str, list[float]]) -> None:
        append(out, dict(zip(KEY, (*cell, name), strict=True)) | row | provenance())
        means = {k: float(np.mean(row[k])) for k in ("mse", "fit_s", "peak_mb")}
        print(*cell, name, means, file=sys.stderr, flush=True)

    for cell in [SMALL] if args.quick else [SMALL, WIDE, *LARGE]:
        for name in rows(cell):
            if (*cell, name) not in done:
                record(cell, name, run(name, cell))
    for peer, python in (pair.split("=", 1) for pair in args.peer):
        for name in sorted(PEER_ROWS[peer]):
            if (*SMALL, name) not in done:
                record(SMALL, name, run_peer(peer, python, name))


if __name__ == "__main__":
    main()
