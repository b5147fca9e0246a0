"""Accuracy and time of score estimators on three densities with a known score.

    python -m benchmarks.score              (result file; not timed yet)
    python -m benchmarks.score --quick      (one seed, 100 samples, half a CPU minute)
    python -m benchmarks.score --table      (prints the Markdown table of the result file)

| density | definition |
|---|---|
| normal | N(0, I) |
| banana | x_1 ~ N(0, V), x_2 = z + b (x_1^2 - V), b = .03, V = 100, the rest N(0, 1) |
| mixture | half N(-2 e_1, I), half N(2 e_1, I) |

MSE per dimension is mean |s_hat(x) - s(x)|^2 / D in raw coordinates, on 1,000 fresh queries and on
the sample itself. The cosine is the mean over fresh queries. Times are CPU milliseconds of compiled
calls; only times of one run compare.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.accuracy import RESULTS, append, provenance, read

SIZES = ((100, 2), (100, 10), (500, 2), (500, 10), (2000, 10))
QUICK_SIZES = SIZES[:2]
NUM_QUERIES, REPEATS = 1000, 5
BEND, VARIANCE, MODE = 0.03, 100.0, 2.0
Density = tuple[
    Callable[[np.random.Generator, int, int], np.ndarray],
    Callable[[Float[Array, " D"]], Float[Array, ""]],
]


def draw_normal(rng: np.random.Generator, size: int, dim: int) -> np.ndarray:
    return rng.normal(size=(size, dim))


def draw_banana(rng: np.random.Generator, size: int, dim: int) -> np.ndarray:
    x = rng.normal(size=(size, dim))
    x[:, 0] *= np.sqrt(VARIANCE)
    x[:, 1] += BEND * (x[:, 0] ** 2 - VARIANCE)
    return x


def draw_mixture(rng: np.random.Generator, size: int, dim: int) -> np.ndarray:
    x = rng.normal(size=(size, dim))
    x[:, 0] += rng.choice([-MODE, MODE], size=size)
    return x


def log_normal(x: Float[Array, " D"]) -> Float[Array, ""]:
    return -0.5 * jnp.sum(x**2)


def log_banana(x: Float[Array, " D"]) -> Float[Array, ""]:
    z = x[1] - BEND * (x[0] ** 2 - VARIANCE)
    return -0.5 * (x[0] ** 2 / VARIANCE + z**2 + jnp.sum(x[2:] ** 2))


def log_mixture(x: Float[Array, " D"]) -> Float[Array, ""]:
    return log_normal(x) + jnp.logaddexp(MODE * x[0], -MODE * x[0])


DENSITIES: dict[str, Density] = {
    "normal": (draw_normal, log_normal),
    "banana": (draw_banana, log_banana),
    "mixture": (draw_mixture, log_mixture),
}


def estimators() -> dict[str, Any]:
    """Return the estimators to be compared, by the name of their row."""
    from implicitppl.score import SSGE, Gaussian, Stein

    return {
        "Gaussian": Gaussian(),
        "SSGE": SSGE(),
        "SSGE J=6": SSGE(num_eigenfunctions=6),
        "SSGE, Gaussian reference": SSGE(reference="gaussian"),
        "SSGE, whitened, Gaussian reference": SSGE(metric="whitened", reference="gaussian"),
        "SSGE, 95% mass, Gaussian reference": SSGE(explained=0.95, reference="gaussian"),
        "Stein": Stein(),
        "Stein, Gaussian reference": Stein(reference="gaussian"),
    }


def compiled_steps(estimator: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return jitted fit and query."""
    return jax.jit(lambda x: estimator.fit(x)), jax.jit(lambda fitted, x: fitted(x))


def cpu_ms(call: Callable[[], Any]) -> float:
    """Return the median CPU milliseconds of a call that is compiled already."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        jax.block_until_ready(call())
        times.append(time.process_time() - start)
    return 1000 * float(np.median(times))


def mse(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the squared error per dimension, averaged over points."""
    return float(np.mean((found - truth) ** 2))


def cosine(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean cosine between estimated and true scores."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
    return float(np.mean(np.sum(found * truth, axis=1) / np.maximum(norms, 1e-30)))


def run_one(steps: Any, density: str, size: int, dim: int, seed: int) -> dict[str, Any]:
    """Return the figures of one estimator on one sample."""
    fit, query = steps
    draw, log_density = DENSITIES[density]
    rng = np.random.default_rng([seed, size, dim])
    samples = jnp.asarray(draw(rng, size, dim), jnp.float32)
    fresh = jnp.asarray(draw(rng, NUM_QUERIES, dim), jnp.float32)
    score = jax.vmap(jax.grad(log_density))
    fitted = jax.block_until_ready(fit(samples))
    found, truth = np.asarray(query(fitted, fresh)), np.asarray(score(fresh))
    return {
        "mse": mse(found, truth),
        "cosine": cosine(found, truth),
        "slope": float(np.sum(found * truth) / np.sum(truth**2)),
        "mse_in_sample": mse(np.asarray(query(fitted, samples)), np.asarray(score(samples))),
        "fit_ms": cpu_ms(lambda: fit(samples)),
        "query_ms": cpu_ms(lambda: query(fitted, fresh)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table: mean over seeds of fresh MSE, cosine, in-sample MSE and times."""
    lines = [
        "| samples, dimension | estimator | normal | banana | mixture | fit ms | 1000 queries ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, dim, name in dict.fromkeys((r["size"], r["dim"], r["estimator"]) for r in rows):
        group = [r for r in rows if (r["size"], r["dim"], r["estimator"]) == (size, dim, name)]
        cells = [_figures([r for r in group if r["density"] == d]) for d in DENSITIES]
        times = [f"{np.median([r[k] for r in group]):.2f}" for k in ("fit_ms", "query_ms")]
        lines.append(f"| {size}, {dim} | {name} | " + " | ".join(cells + times) + " |")
    return "\n".join(lines)


def _figures(rows: list[dict[str, Any]]) -> str:
    """Return fresh MSE / in-sample MSE / cosine, means over seeds."""
    means = [np.mean([r[key] for r in rows]) for key in ("mse", "mse_in_sample", "cosine")]
    return "{:.3f} / {:.3f} / {:.2f}".format(*means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, 100 samples")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    args = parser.parse_args()
    out = args.out or RESULTS / ("score-quick.jsonl" if args.quick else "score.jsonl")
    if args.table:
        print(table(read(out)))
        return
    done = {json.dumps([r[k] for k in KEY]) for r in read(out)}
    for name, estimator in estimators().items():
        steps = compiled_steps(estimator)
        for size, dim in QUICK_SIZES if args.quick else SIZES:
            for seed in range(1 if args.quick else args.seeds):
                for density in DENSITIES:
                    head = dict(zip(KEY, (name, density, size, dim, seed), strict=True))
                    if json.dumps(list(head.values())) not in done:
                        row = head | run_one(steps, density, size, dim, seed) | provenance()
                        append(out, row)
    print(table(read(out)))


KEY = ("estimator", "density", "size", "dim", "seed")


if __name__ == "__main__":
    main()
