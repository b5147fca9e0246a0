"""Score estimators against peers, on samples whose score is known: errors, times, memory.

    python -m benchmarks.score.run --data FOLDER --peer numpy=PYTHON --peer torch=PYTHON \
        --peer npse=PYTHON                     (several CPU hours; needs the peers' environments)
    python -m benchmarks.score.run --quick  (densities, M = 100, 3 seeds)
    python -m benchmarks.score.tables       (writes the tables of docs/scores.md)

A cell is a problem at a size; twenty seeds a cell, and every estimator sees the same samples and
the same 1,000 fresh queries. The error is mean |s_hat - s|^2 / D; nothing is tuned with the truth,
except in the row that says so. Times are CPU milliseconds on one thread after compilation, of the
first seed; a peer that cannot keep its fit refits for every call. Peers run in processes of their
own: see benchmarks/peers.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.score.problems import (
    DENSITIES,
    NAMES,
    Problem,
    density,
    posterior,
    posterior_dimension,
)

SIZES, DIMENSIONS, SEEDS = (100, 500, 2000), (2, 10, 50), 20
TUNED, TUNED_SEEDS = "tuned with the truth", 5
SCRIPTS = {"numpy": "ssge_numpy.py", "torch": "ssge_torch.py", "npse": "npse.py"}
PEER_ROWS = {
    "numpy": {"SSGE NumPy .99", "SSGE NumPy J=6"},
    "torch": {"SSGE PyTorch"},
    "npse": {"npse SSGE"},  # and, at M = 100, "npse Stein"
}
Cell = tuple[str, int, int]
Fit = Callable[[jax.Array], Any]


def estimators() -> dict[str, Fit]:
    """Return the fits of this library, with their defaults, by the name of their row."""
    from implicitppl.score import (
        KDE,
        KEF,
        SSGE,
        Gaussian,
        Landweber,
        NuMethod,
        SpectralCutoff,
        Stein,
        Tikhonov,
        select,
    )

    return {
        "select": lambda x: select(x, key=jax.random.key(0)),
        "Gaussian": Gaussian().fit,
        "SSGE": SSGE().fit,
        "SSGE, Gaussian reference": SSGE(reference="gaussian").fit,
        "Stein": Stein().fit,
        "Stein, Gaussian reference": Stein(reference="gaussian").fit,
        "Tikhonov": Tikhonov().fit,
        "SpectralCutoff": SpectralCutoff().fit,
        "Landweber": Landweber().fit,
        "NuMethod": NuMethod().fit,
        "KEF": KEF().fit,
        "KEF, Gaussian reference": KEF(reference="gaussian").fit,
        "KDE": KDE().fit,
    }


def cells(data: Path | None, sizes: tuple[int, ...]) -> Iterator[Cell]:
    """Return problem, size and dimension of every cell."""
    for name, size, dim in itertools.product(DENSITIES, sizes, DIMENSIONS):
        yield name, size, dim
    if data is not None:
        for name, size in itertools.product(NAMES, sizes):
            yield name, size, posterior_dimension(name, data)


def problem(cell: Cell, seed: int, data: Path | None) -> Problem:
    """Return the samples, queries and true scores of one seed of a cell."""
    name, size, dim = cell
    if name in DENSITIES:
        return density(name, size, dim, seed)
    assert data is not None
    return posterior(name, size, seed, data)


def figures(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return squared error per dimension, relative error and mean cosine."""
    error = float(np.mean((found - truth) ** 2))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
    return {
        "mse": error,
        "relative": float(np.sqrt(error / np.mean(truth**2))),
        "cosine": float(np.mean(np.sum(found * truth, axis=1) / np.maximum(norms, 1e-30))),
    }


def run_ours(cell: Cell, fit: Fit, seeds: int, data: Path | None) -> dict[str, Any]:
    """Return the figures of one estimator in one cell."""
    compiled = jax.jit(fit)
    query = jax.jit(lambda fitted, x: fitted(x))
    rows, times = [], {}
    for seed in range(seeds):
        p = problem(cell, seed, data)
        x, q = jnp.asarray(p.samples, jnp.float32), jnp.asarray(p.queries, jnp.float32)
        fitted = jax.block_until_ready(compiled(x))
        rows.append(figures(np.asarray(query(fitted, q)), p.truth))
        if seed == 0:
            jax.block_until_ready(query(fitted, q[:1]))
            times = {
                "fit_ms": cpu_ms(lambda x=x: compiled(x)),
                "one_ms": cpu_ms(lambda f=fitted, q=q: query(f, q[:1])),
                "all_ms": cpu_ms(lambda f=fitted, q=q: query(f, q)),
            }
    return _columns(rows) | times


def run_tuned(cell: Cell, data: Path | None) -> dict[str, Any]:
    """Return the figures of the best of 144 SSGE and Tikhonov settings for each sample."""
    from implicitppl.score import KernelEstimator
    from implicitppl.score._spectral.filters import RelativeRidge

    settings = [
        KernelEstimator(
            # Arrays, not numbers: a number is a constant of the program and compiles again.
            RelativeRidge(jnp.asarray(10.0**level), jnp.asarray(power)),
            lengthscale_factor=jnp.asarray(factor),
            metric=metric,
            reference=reference,
        )
        for metric in ("isotropic", "whitened")
        for reference in (None, "gaussian")
        for power in (1.0, 2.0)
        for factor in (1.0, 2.0, 4.0)
        for level in (-1.0, -2.0, -3.0, -4.0, -5.0, -6.0)
    ]
    rows = []
    for seed in range(TUNED_SEEDS):
        p = problem(cell, seed, data)
        x, q = jnp.asarray(p.samples, jnp.float32), jnp.asarray(p.queries, jnp.float32)
        tried = [figures(np.asarray(e.fit(x)(q)), p.truth) for e in settings]
        rows.append(min(tried, key=lambda row: row["mse"]))
    return _columns(rows)


def run_peer(peer: str, python: str, todo: list[Cell], seeds: int, data: Path | None) -> list[dict]:
    """Return the rows of a peer, from a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, cell in enumerate(todo):
            for seed in range(seeds):
                p = problem(cell, seed, data)
                np.savez(folder / f"{index}-{seed}.npz", samples=p.samples, queries=p.queries)
        script = PEERS / SCRIPTS[peer]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONPATH", None)
        subprocess.run([python, str(script), str(folder)], check=True, env=environment)
        out = []
        for index, cell in enumerate(todo):
            rows = sorted({f.name.split(".", 1)[1] for f in folder.glob(f"{index}-0.*.out.npz")})
            for row in rows:
                answers = [np.load(folder / f"{index}-{s}.{row}") for s in range(seeds)]
                found = [
                    figures(a["scores"], problem(cell, s, data).truth)
                    for s, a in enumerate(answers)
                ]
                times = {k: float(answers[0][k]) for k in ("one_ms", "all_ms")}
                head = dict(zip(KEY, (*cell, row.removesuffix(".out.npz")), strict=True))
                out.append(head | _columns(found) | times)
        return out


def cpu_ms(call: Callable[[], Any]) -> float:
    """Return the CPU milliseconds of the faster of two calls that are compiled already."""
    times = []
    for _ in range(2):
        start = time.process_time()
        jax.block_until_ready(call())
        times.append(time.process_time() - start)
    return 1000 * min(times)


def kde_scott(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the score of scikit-learn's KDE with its `scott` bandwidth, in closed form."""
    from sklearn.neighbors import KernelDensity

    h = KernelDensity(bandwidth="scott").fit(x).bandwidth_
    squared = (q * q).sum(1)[:, None] + (x * x).sum(1)[None] - 2 * q @ x.T
    logits = -squared / (2 * h**2)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return (share @ x - q) / h**2


def run_kde(cell: Cell, seeds: int, data: Path | None) -> dict[str, Any]:
    """Return the figures of the kernel density estimate."""
    rows = []
    for seed in range(seeds):
        p = problem(cell, seed, data)
        rows.append(figures(kde_scott(p.samples, p.queries), p.truth))
    return _columns(rows)


def _columns(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return lists over seeds, to four digits."""
    return {k: [float(f"{row[k]:.4g}") for row in rows] for k in rows[0]}


KEY = ("problem", "size", "dim", "estimator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds posteriordb/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument(
        "--peer", action="append", default=[], help="NAME=PYTHON, of numpy|torch|npse"
    )
    parser.add_argument("--only", action="append", default=[], help="only these rows of ours")
    parser.add_argument("--problem", action="append", default=[], help="only these problems")
    parser.add_argument("--dims", type=int, nargs="+", help="only these dimensions")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="M = 100, three seeds, no posteriors")
    args = parser.parse_args()
    out = args.out or RESULTS / ("score-quick.jsonl" if args.quick else "score.jsonl")
    if args.quick:
        args.sizes, args.seeds, args.data = [100], 3, None
    jobs: dict[str, Callable[[Cell], dict[str, Any] | None]] = {
        name: (lambda cell, fit=fit: run_ours(cell, fit, args.seeds, args.data))
        for name, fit in estimators().items()
    }
    jobs["sklearn KDE"] = lambda cell: run_kde(cell, args.seeds, args.data)
    jobs[TUNED] = lambda cell: run_tuned(cell, args.data)
    done = {tuple(r[k] for k in KEY) for r in read(out)}
    every = [
        (problem_name, size, dim)
        for problem_name, size, dim in cells(args.data, tuple(args.sizes))
        if (not args.problem or problem_name in args.problem)
        and (args.dims is None or dim in args.dims)
    ]
    for name, job in jobs.items():
        if args.only and name not in args.only:
            continue
        for cell in every:
            if (*cell, name) in done:
                continue
            row = job(cell)
            jax.clear_caches()  # each cell has shapes of its own
            if row is not None:
                append(out, dict(zip(KEY, (*cell, name), strict=True)) | row | provenance())
                print(*cell, name, np.mean(row["mse"]).round(4), file=sys.stderr, flush=True)
    for peer, python in (pair.split("=", 1) for pair in args.peer):
        for cell in every:
            if all((*cell, name) in done for name in PEER_ROWS[peer]):
                continue
            for row in run_peer(peer, python, [cell], args.seeds, args.data):
                if tuple(row[k] for k in KEY) not in done:
                    append(out, row | provenance())
                    print(*cell, row["estimator"], np.mean(row["mse"]).round(4), file=sys.stderr)


if __name__ == "__main__":
    main()
