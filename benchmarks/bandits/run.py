"""Contextual bandits with generated rewards: what Thompson sampling costs in regret.

    python -m benchmarks.bandits.run        (all: two bandits, ten seeds)
    python -m benchmarks.bandits.run --agents linear --seeds 2
    python -m benchmarks.functional.tables  (docs/functional-benchmarks.md)

- wheel (Riquelme et al. 2018, arXiv 1802.09127): contexts uniform in the unit disc, five arms with
  rewards of sd .05. Arm 0 has mean 1.2, the others 1; beyond a radius of .95 one of those, which
  one the quadrant says, pays N(50, .01^2).
- linear: contexts N(0, I) in 10 dimensions, 8 arms with rewards N(x' theta, .5^2), theta of unit
  length in a random direction.

2,000 contexts; every arm is pulled twice first, on contexts of the same stream. Regret is that of
expected rewards, summed over all contexts, in percent of the expected regret of the uniform agent
on the same contexts. One row for each bandit, seed and agent; rows that the file has are skipped.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.bandits.agents import PULLS, Agent, neural_linear, uniform
from benchmarks.bandits.agents import linear as linear_agent
from benchmarks.bandits.functional import DEFAULTS, network_agent
from benchmarks.bandits.gp import REFITS, gaussian_process
from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read

KEY = ("bandit", "seed", "agent")
HORIZON, NUM_SEEDS = 2000, 10
OUT = RESULTS / "bandits.jsonl"


class Bandit(NamedTuple):
    """Contexts (T, D), expected rewards (T, A) and the rewards that a pull would give (T, A)."""

    contexts: np.ndarray
    means: np.ndarray
    rewards: np.ndarray


def wheel(seed: int, horizon: int = HORIZON, delta: float = 0.95) -> Bandit:
    """Return the wheel bandit of that seed."""
    rng = np.random.default_rng(seed)
    radius, angle = np.sqrt(rng.uniform(size=horizon)), 2 * np.pi * rng.uniform(size=horizon)
    contexts = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    means, sd = np.ones((horizon, 5)), np.full((horizon, 5), 0.05)
    means[:, 0] = 1.2
    far = np.flatnonzero(radius > delta)
    arm = 1 + 2 * (contexts[far, 0] < 0) + (contexts[far, 1] < 0)
    means[far, arm], sd[far, arm] = 50.0, 0.01
    return Bandit(contexts, means, means + sd * rng.standard_normal(means.shape))


def linear(seed: int, horizon: int = HORIZON, noise: float = 0.5) -> Bandit:
    """Return the bandit of linear rewards of that seed."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((10, 8))
    contexts = rng.standard_normal((horizon, 10))
    means = contexts @ (theta / np.linalg.norm(theta, axis=0))
    return Bandit(contexts, means, means + noise * rng.standard_normal(means.shape))


AGENTS: dict[str, Callable[[], Agent]] = {
    "uniform": uniform,
    "linear": linear_agent,
    "neural-linear": neural_linear,
    "GP": gaussian_process,
    "GP, refitted": lambda: gaussian_process(REFITS),
    "GP, wide": lambda: gaussian_process(least_scale=1.0),
    "functional": lambda: network_agent("function"),
    "functional, wide": lambda: network_agent("function", DEFAULTS._replace(least_scale=1.0)),
    "MFVI": lambda: network_agent("weight", DEFAULTS._replace(num_particles=10)),
}
BANDITS: dict[str, Callable[..., Bandit]] = {"wheel": wheel, "linear": linear}


def regrets(bandit: Bandit, agent: Agent, seed: int) -> np.ndarray:
    """Return the expected regret of every pull, (T,)."""
    horizon, num_arms = bandit.means.shape
    state = agent.init(num_arms, bandit.contexts.shape[1], horizon, seed)
    arms = np.empty(horizon, int)
    for t, context in enumerate(bandit.contexts):
        arms[t] = t % num_arms if t < PULLS * num_arms else agent.act(state, context)
        state = agent.update(state, context, int(arms[t]), float(bandit.rewards[t, arms[t]]))
    chosen = np.take_along_axis(bandit.means, arms[:, None], axis=1)[:, 0]
    return bandit.means.max(axis=1) - chosen


def uniform_regret(bandit: Bandit) -> float:
    """Return the expected regret of the uniform agent over all contexts."""
    return float(np.sum(bandit.means.max(axis=1) - bandit.means.mean(axis=1)))


def row_of(name: str, seed: int, agent: str, horizon: int = HORIZON) -> dict[str, Any]:
    """Return the row of one run; `relative` is in percent of uniform, `half` the second half's."""
    bandit = BANDITS[name](seed, horizon)
    begin = time.process_time()
    found = regrets(bandit, AGENTS[agent](), seed + 1000)  # not the numbers of the contexts
    half = Bandit(*(part[horizon // 2 :] for part in bandit))
    return {
        **dict(zip(KEY, (name, seed, agent), strict=True)),
        "horizon": horizon,
        "regret": float(found.sum()),
        "relative": 100 * float(found.sum()) / uniform_regret(bandit),
        "half": 100 * float(found[horizon // 2 :].sum()) / uniform_regret(half),
        "cpu_seconds": time.process_time() - begin,
        **provenance(),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="result file (JSON lines)")
    parser.add_argument("--bandits", nargs="+", choices=list(BANDITS), default=list(BANDITS))
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="number of seeds, from 1")
    parser.add_argument("--horizon", type=int, default=HORIZON, help="number of contexts")
    args = parser.parse_args(arguments)
    done = {tuple(row[k] for k in KEY) for row in read(args.out)}
    with jax.enable_x64(True):
        for name in args.bandits:
            for agent in args.agents:
                for seed in range(1, args.seeds + 1):
                    if (name, seed, agent) in done:
                        continue
                    row = row_of(name, seed, agent, args.horizon)
                    append(args.out, row)
                    print(
                        f"{name:7s} {seed:2d} {agent:14s} {row['relative']:7.2f}% of uniform  "
                        f"{row['cpu_seconds']:.1f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
