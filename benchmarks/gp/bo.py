"""Bayesian optimisation with learned kernels: expected improvement over 10 coordinates.

    python -m benchmarks.gp.bo           (3 CPU minutes)
    python -m benchmarks.gp.bo --quick   (seconds; one seed, few steps)
    python -m benchmarks.gp.bo --table   (the table of the rows on file)
    python -m benchmarks.gp.bo --figure  (docs/pictures/bo.png)

Styblinski-Tang is a sum over coordinates, and so is Michalewicz, whose valleys are steep. The
kernels: an RBF with a lengthscale for each coordinate; a neural kernel network of ten
one-dimensional RBFs, which has to find the sum; and the oracle, told it: a weighted sum of them.

10 random points, then 100 by the largest expected improvement over 10,000 uniform candidates. The
kernel is refitted every 5 steps, from where the last fit ended, by 60 steps of Adam. Data are
padded to one shape, so each kernel is compiled once. The published protocol (Sun et al. 2018)
takes 200 steps and refits from scratch by 5,000 steps of Adam at each.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from benchmarks.common.paths import PICTURES, RESULTS
from benchmarks.common.rows import provenance, read
from implicitppl.gp import GaussianProcess, fit
from implicitppl.kernels import (
    RBF,
    Kernel,
    NeuralKernelNetwork,
    nkn_bayesian_optimisation,
)

FILE = RESULTS / "bo.jsonl"
PICTURE = PICTURES / "bo.png"
DIMS = 10
NUM_RANDOM = 10
CANDIDATES = 10_000
EVERY = 5
FIT_STEPS = 60


class Problem(NamedTuple):
    """A function on a box of which the minimum is known."""

    function: Callable[[np.ndarray], float]
    low: float
    high: float
    minimum: float


def styblinski_tang(x: np.ndarray) -> float:
    """Return 1/2 sum x^4 - 16 x^2 + 5 x; Jamil and Yang, arXiv 1308.4008, function 144."""
    return float(0.5 * np.sum(x**4 - 16 * x**2 + 5 * x))


def michalewicz(x: np.ndarray, steepness: int = 10) -> float:
    """Return -sum sin(x_i) sin(i x_i^2 / pi)^(2 m)."""
    position = np.arange(1, len(x) + 1)
    return float(-np.sum(np.sin(x) * np.sin(position * x**2 / np.pi) ** (2 * steepness)))


PROBLEMS = {
    "styblinski_tang": Problem(styblinski_tang, -4.0, 4.0, -391.6617),
    "michalewicz": Problem(michalewicz, 0.0, float(np.pi), -9.6602),
}


def _oracle(key: Any) -> Kernel:
    each = tuple(RBF(0.3).on(d) for d in range(DIMS))
    return NeuralKernelNetwork.from_widths(each, (), key=key).with_variance(jnp.zeros((1, DIMS)))


KERNELS: dict[str, Callable[[Any], Kernel]] = {
    "rbf": lambda key: RBF(jnp.full(DIMS, 0.3 * np.sqrt(DIMS))),
    "nkn": lambda key: nkn_bayesian_optimisation(DIMS, key=key),
    "oracle": _oracle,
}
HEADS = {"rbf": "RBF-ARD", "nkn": "NKN", "oracle": "sum of RBFs (told)"}


@eqx.filter_jit
def _improvement(process: Any, x: Any, y: Any, scale: Any, observed: Any, candidates: Any) -> Any:
    """Return the expected improvement over the lowest observed value."""
    posterior = process.condition(x, y, scale, observed=observed)
    mean, variance = posterior.moments(candidates)
    spread = jnp.sqrt(jnp.maximum(variance, 1e-12))
    z = (jnp.min(jnp.where(observed, y, jnp.inf)) - mean) / spread
    return spread * (norm.pdf(z) + z * norm.cdf(z))


def optimise(problem: Problem, make: Callable[[Any], Kernel], seed: int, steps: int) -> list[float]:
    """Return the lowest value met after each evaluation."""
    rng = np.random.default_rng(seed)
    size = NUM_RANDOM + steps
    x = rng.uniform(size=(size, DIMS))  # rows beyond those observed are padding
    values = np.zeros(size)
    process, scale = GaussianProcess(make(jax.random.key(seed)), 0.0), jnp.asarray(0.1)

    def evaluate(i: int) -> None:
        values[i] = problem.function(problem.low + (problem.high - problem.low) * x[i])

    for i in range(NUM_RANDOM):
        evaluate(i)
    for i in range(NUM_RANDOM, size):
        observed = np.arange(size) < i
        y = (values - values[:i].mean()) / values[:i].std()
        if (i - NUM_RANDOM) % EVERY == 0:
            found = fit(process, x, y, scale, observed=observed, num_steps=FIT_STEPS)
            process, scale = found.process, jnp.maximum(found.noise_scale, 1e-3)
        candidates = rng.uniform(size=(CANDIDATES, DIMS))
        gain = _improvement(process, x, y, scale, jnp.asarray(observed), candidates)
        x[i] = candidates[int(jnp.argmax(gain))]
        evaluate(i)
    return np.minimum.accumulate(values).tolist()


def row(problem: str, kernel: str, seed: int, steps: int) -> dict[str, Any]:
    """Return one run as a row of the result file."""
    start = time.process_time()
    best = optimise(PROBLEMS[problem], KERNELS[kernel], seed, steps)
    seconds = time.process_time() - start
    return {
        "problem": problem,
        "kernel": kernel,
        "seed": seed,
        "best": best,
        "cpu_seconds": seconds,
        **provenance(),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return what is left to the minimum after 10, 50, 100 and all evaluations."""
    shown = [NUM_RANDOM, 50, 80, len(rows[0]["best"])]
    shown = sorted({n for n in shown if n <= len(rows[0]["best"])})
    lines = [
        "| function | kernel | " + " | ".join(f"after {n}" for n in shown) + " | CPU s |",
        "|---|---|" + "--:|" * (len(shown) + 1),
    ]
    for problem, kernel in dict.fromkeys((r["problem"], r["kernel"]) for r in rows):
        mine = [r for r in rows if (r["problem"], r["kernel"]) == (problem, kernel)]
        regret = np.array([r["best"] for r in mine]) - PROBLEMS[problem].minimum
        cells = []
        for n in shown:
            left = regret[:, n - 1]
            error = left.std(ddof=1) / np.sqrt(len(left)) if len(left) > 1 else np.nan
            cells.append(f"{left.mean():.3g} ({error:.2g})")
        seconds = np.median([r["cpu_seconds"] for r in mine])
        lines.append(f"| {problem} | {HEADS[kernel]} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write what is left to the minimum against evaluations; bands are the range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(PROBLEMS))
    colours = {"rbf": "0.45", "nkn": "#d1560f", "oracle": "#3b6fb6"}
    for axis, (problem, known) in zip(axes, PROBLEMS.items(), strict=True):
        for kernel, colour in colours.items():
            mine = [r["best"] for r in rows if (r["problem"], r["kernel"]) == (problem, kernel)]
            if not mine:
                continue
            left = np.array(mine)[:, NUM_RANDOM - 1 :] - known.minimum
            steps = np.arange(NUM_RANDOM, NUM_RANDOM + left.shape[1])
            axis.plot(steps, left.mean(0), color=colour, label=HEADS[kernel])
            axis.fill_between(steps, left.min(0), left.max(0), color=colour, alpha=0.15, lw=0)
        axis.set(title=problem.replace("_", "-"), xlabel="evaluations", ylabel="above the minimum")
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is asked for and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=FILE)
    for name in ("quick", "table", "figure"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.out)))
        return
    if options.figure:
        draw(read(options.out), PICTURE)
        return
    seeds, steps = (1, 6) if options.quick else (options.seeds, options.steps)
    jax.config.update("jax_enable_x64", True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for problem in options.problems:
            for kernel in options.kernels:
                found = row(problem, kernel, seed, steps)
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(f"{problem} {kernel} {seed}: {found['best'][-1]:.4g}", flush=True)


if __name__ == "__main__":
    main()
