"""How a purely implicit guide fares on eight schools: estimator, particles, budget and rate varied.

    python -m benchmarks.accuracy.purely_implicit          (all; writes the result file)
    python -m benchmarks.accuracy.purely_implicit --quick  (two rows)
    python -m benchmarks.accuracy.purely_implicit --table  (the table of docs/accuracy.md)

The sampler is `NoiseGenerator`: it has no conditional layer, so its score comes from the particles.
All of it takes about five CPU minutes; every row states its own seconds.
"""

import argparse
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.accuracy.methods import costs, sample_guide
from benchmarks.accuracy.references import reference
from benchmarks.accuracy.run import find
from benchmarks.common.metrics import accuracy
from benchmarks.common.paths import CACHE, RESULTS
from benchmarks.common.rows import append, provenance, read
from implicitppl.distributions import NoiseGenerator
from implicitppl.infer import AutoImplicit, ImplicitELBO, fit
from implicitppl.score import SSGE, Stein

FILE = RESULTS / "purely_implicit.jsonl"
SHORT = {"num_steps": 1500, "learning_rate": 5e-3}
LONG = {"num_steps": 6000, "learning_rate": 1e-2}


class Setting(NamedTuple):
    """An estimator (None: the default), the number of particles, options of `fit`, seeds."""

    estimator: Any
    num_particles: int
    options: dict[str, Any]
    num_seeds: int = 1


SETTINGS = {
    "defaults": Setting(None, 256, {}, 3),
    "default estimator, short": Setting(None, 100, SHORT),
    "default estimator, long": Setting(None, 100, LONG),
    "`SSGE()`, short": Setting(SSGE(), 100, SHORT),
    "`SSGE()`, long": Setting(SSGE(), 100, LONG),
    "`Stein()`, short": Setting(Stein(), 100, SHORT),
}
QUICK = ("default estimator, short", "`SSGE()`, short")


def run(name: str, seed: int) -> dict[str, Any]:
    """Return the row of one run."""
    setting = SETTINGS[name]
    posterior = find("eight_schools", None)
    truth = reference(posterior, CACHE)
    guide = AutoImplicit(posterior.model, generator=NoiseGenerator)
    loss = ImplicitELBO(setting.num_particles, setting.estimator)
    options = setting.options | {"loss": loss, "progress_bar": False}
    with costs() as info:
        result = fit(jax.random.key(seed), posterior.model, guide, *posterior.args, **options)
    columns = posterior.to_reference(sample_guide(guide, result.params, posterior, seed))
    stacked = np.stack([columns[name] for name in truth.names], axis=1)
    row = {"setting": name, "num_particles": setting.num_particles, "seed": seed}
    row |= info | {"num_steps": result.num_steps, "converged": result.converged}
    return row | accuracy(stacked, truth.draws, truth.names).as_dict() | provenance()


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| setting | particles | steps | seed | mean shift | quantile shift | sd ratio"
        " | correlation | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['setting']} | {r['num_particles']} | {r['num_steps']} | {r['seed']} "
        f"| {r['mean_shift']:.2f} | {r['quantile_shift']:.2f} "
        f"| {r['sd_ratio_low']:.2f} to {r['sd_ratio_high']:.2f} | {r['correlation']:.2f} "
        f"| {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing from the result file, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rows")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    args = parser.parse_args()
    if not args.table:
        done = {(r["setting"], r["seed"]) for r in read(FILE)}
        for name in QUICK if args.quick else SETTINGS:
            for seed in range(SETTINGS[name].num_seeds):
                if (name, seed) not in done:
                    append(FILE, run(name, seed))
    print(table(read(FILE)))


if __name__ == "__main__":
    main()
