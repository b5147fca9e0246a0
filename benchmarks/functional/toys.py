"""Trains networks under priors over functions on toy problems, and appends a row for each fit.

    python -m benchmarks.functional.toys          (all problems, one thread)
    python -m benchmarks.functional.toys --quick  (the cubic alone, 20 steps)
    python -m benchmarks.functional.toys_tables   (writes the table of docs/functional.md)
    python -m benchmarks.functional.figure        (writes docs/pictures/functional-toys.png)

Every posterior is compared with the exact one on a grid. Targets are our own, and
`functional_toys_tables` prints which are reached: on the cubic the mean within .25 exact deviations
and deviations within .7 to 1.3 of the exact ones inside [-4, 4], within .5 to 2 at the ends; under
a periodic prior the mean within .25 two periods beyond the data; under an RBF prior the deviation
at the ends within 20% of the prior's; of pieces, at least twice as many small increments in the gap
as under an RBF prior.
The network is in float32, the divergence in float64.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.functional.problems import KERNEL_STEPS, PROBLEMS, Problem
from implicitppl.divergences import GaussianKL, ScoreKL, UniformBox
from implicitppl.infer import FunctionalELBO, function_posterior, predict
from implicitppl.processes import Process

KEY = ("problem", "method", "seed")
DRAWS, SHOWN = 500, 8
PIECES, GAP, SMALL, STRIDE = (0, 1), (0.2, 0.8), 0.02, 8
"""Small increments: where, below what, and between which points, a twentieth of the range apart."""


class Setting(NamedTuple):
    """How a network is trained.

    Attributes:
        form: "moments", or "scores" in addition.
        noise: of the divergence, in deviations of the prior.
        num_points: measured besides the data.
        num_particles: S.
        num_steps: of Adam.
        learning_rate: falls to 0 as a cosine.
    """

    form: str
    noise: float = 0.01
    num_points: int = 20
    num_particles: int = 100
    num_steps: int = 2000
    learning_rate: float = 0.01

    @property
    def divergence(self) -> GaussianKL | ScoreKL:
        """The divergence of that form."""
        return GaussianKL(self.noise) if self.form == "moments" else ScoreKL(noise=self.noise)


SETTINGS: dict[str, list[Setting]] = {
    "cubic": [Setting("moments", num_steps=3000, learning_rate=0.03)],
    "sine, periodic prior": [Setting("moments")],
    "sine, RBF prior": [Setting("moments", num_points=40, num_particles=120)],
    "pieces, constant prior": [
        Setting("moments", 0.1, num_steps=1500, learning_rate=0.03),
        Setting("scores", 0.1, num_steps=1500, learning_rate=0.03),
    ],
    "pieces, RBF prior": [Setting("moments", 0.02, num_steps=1500, learning_rate=0.03)],
    "pieces, linear prior": [Setting("moments", 0.1, num_steps=1500, learning_rate=0.03)],
}


def train(problem: Problem, setting: Setting, seed: int) -> tuple[Process, np.ndarray]:
    """Return the guide's process after training, and the losses."""
    x = jnp.asarray(problem.x, jnp.float32)[:, None]
    y = jnp.asarray(problem.y, jnp.float32)
    key, run_key = jax.random.split(jax.random.key(seed))
    network = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf,
        problem.network(key),
    )

    def model(x: Any, y: Any) -> None:
        f = numpyro.sample("f", problem.prior(x))
        numpyro.sample("y", dist.Normal(f, problem.noise).to_event(1), obs=y)

    def guide(x: Any, y: Any) -> None:
        numpyro.sample("f", eqx_module("q", network)(x))

    box = UniformBox(setting.num_points, problem.low, problem.high)
    loss = FunctionalELBO(box, setting.divergence, num_particles=setting.num_particles)
    decay = optax.cosine_decay_schedule(setting.learning_rate, setting.num_steps)
    svi = SVI(model, guide, optax.adam(decay), loss)
    found = svi.run(run_key, setting.num_steps, x, y, progress_bar=False)
    return function_posterior(guide, found.params, x, y)["f"], np.asarray(found.losses)


def figures(problem: Problem, draws: np.ndarray) -> dict[str, Any]:
    """Return how draws on the grid, (S, G), differ from the exact posterior."""
    grid, deviation = problem.grid, draws.std(axis=0, ddof=1)
    found: dict[str, Any] = {}
    if problem.exact is not None:
        mean, exact = problem.exact
        gap, ratio = np.abs(draws.mean(axis=0) - mean) / exact, deviation / exact
        inner = np.abs(grid) <= problem.inner
        found = {
            "mean_gap": float(gap[inner].max()),
            "ratio_low": float(ratio[inner].min()),
            "ratio_high": float(ratio[inner].max()),
            "mean_gap_anywhere": float(gap.max()),
            "ratio_at_ends": [float(ratio[0]), float(ratio[-1])],
        }
    ends = deviation[[0, -1]] / problem.prior_deviation
    found["share_of_prior_at_ends"] = [float(value) for value in ends]
    if (problem.low, problem.high) != PIECES:
        return found
    found["small_increments"] = small_increments(problem, draws)
    if problem.exact_draws is not None:
        found["small_increments_exact"] = small_increments(problem, problem.exact_draws)
    return found


def small_increments(problem: Problem, draws: np.ndarray) -> float:
    """Return the share of increments below .02 between every eighth point of the gap (.2, .8).

    Neighbours of the grid itself lie so close that a smooth curve has small increments only.
    """
    grid, values = problem.grid[::STRIDE], draws[:, ::STRIDE]
    inside = (grid > GAP[0]) & (grid < GAP[1])
    return float(np.mean(np.abs(np.diff(values[:, inside], axis=1)) < SMALL))


def run(problem: Problem, setting: Setting, seed: int) -> dict[str, Any]:
    """Return the row of one fit; CPU seconds include compilation."""
    begin = time.process_time()
    process, losses = train(problem, setting, seed)
    seconds = time.process_time() - begin
    points = jnp.asarray(problem.grid, jnp.float32)[:, None]
    draws = np.asarray(predict(process, jax.random.key(seed), points, DRAWS).values, float)
    return {
        **setting._asdict(),
        "loss": float(losses[-100:].mean()),
        "loss_half_way": float(losses[: len(losses) // 2][-100:].mean()),
        "log_evidence": None if math.isnan(problem.log_evidence) else problem.log_evidence,
        **figures(problem, draws),
        "mean": short(draws.mean(axis=0)),
        "deviation": short(draws.std(axis=0, ddof=1)),
        "draws": [short(draw) for draw in draws[:SHOWN]],
        "cpu_seconds": seconds,
    }


def short(values: np.ndarray) -> list[float]:
    """Return numbers with four digits."""
    return [float(f"{value:.4g}") for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--only", action="append", default=[], help="only these problems")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 steps, the cubic")
    args = parser.parse_args()
    out = args.out or RESULTS / f"functional-toys{'-quick' if args.quick else ''}.jsonl"
    done = {tuple(row[k] for k in KEY) for row in read(out)}
    chosen = ["cubic"] if args.quick else args.only or list(PROBLEMS)
    with jax.enable_x64(True):
        for name in chosen:
            problem = PROBLEMS[name](20 if args.quick else KERNEL_STEPS)
            for setting, seed in [(s, i) for s in SETTINGS[name] for i in range(args.seeds)]:
                if (name, setting.form, seed) in done:
                    continue
                if args.quick:
                    setting = setting._replace(num_steps=20)
                head = dict(zip(KEY, (name, setting.form, seed), strict=True))
                row = head | run(problem, setting, seed) | provenance()
                append(out, row)
                told = ("mean_gap", "ratio_low", "ratio_high", "small_increments", "cpu_seconds")
                shown = {k: round(row[k], 3) for k in told if k in row}
                print(name, setting.form, seed, shown, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
