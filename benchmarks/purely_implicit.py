"""How a purely implicit guide fares on eight schools: estimator, budget and rate varied.

    python -m benchmarks.purely_implicit           (all; writes the result file)
    python -m benchmarks.purely_implicit --quick   (two rows)
    python -m benchmarks.purely_implicit --table   (the table of docs/accuracy.md)

The four runs of the result file took five CPU minutes; every row states its own seconds.

The sampler is `NoiseGenerator`: it has no conditional layer, so its score comes from the particles.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accuracy import CACHE, append, find, provenance, read
from benchmarks.methods import costs, sample_guide
from benchmarks.metrics import accuracy
from benchmarks.references import reference
from implicitppl.distributions import NoiseGenerator
from implicitppl.infer import AutoImplicit, ImplicitELBO, fit
from implicitppl.score import SSGE, Stein

FILE = Path(__file__).parent / "results" / "purely_implicit.jsonl"
ESTIMATORS = {
    "SSGE()": SSGE(),
    'SSGE(reference="gaussian")': SSGE(reference="gaussian"),
    "Stein()": Stein(),
}
BUDGETS = ((1500, 5e-3), (6000, 1e-2))


def run(estimator: str, num_steps: int, rate: float, seed: int) -> dict[str, Any]:
    """Return the row of one run."""
    posterior = find("eight_schools", None)
    truth = reference(posterior, CACHE)
    guide = AutoImplicit(posterior.model, generator=NoiseGenerator)
    loss = ImplicitELBO(100, ESTIMATORS[estimator])
    options = {"num_steps": num_steps, "learning_rate": rate, "progress_bar": False}
    with costs() as info:
        result = fit(
            jax.random.key(seed), posterior.model, guide, *posterior.args, loss=loss, **options
        )
    columns = posterior.to_reference(sample_guide(guide, result.params, posterior, seed))
    stacked = np.stack([columns[name] for name in truth.names], axis=1)
    row = {"estimator": estimator, "num_steps": num_steps, "rate": rate, "seed": seed}
    row |= info | {"converged": result.converged}
    return row | accuracy(stacked, truth.draws, truth.names).as_dict() | provenance()


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| estimator | steps | rate | seed | mean shift | quantile shift | sd ratio | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{r['estimator']}` | {r['num_steps']} | {r['rate']} | {r['seed']} "
        f"| {r['mean_shift']:.2f} | {r['quantile_shift']:.2f} "
        f"| {r['sd_ratio_low']:.2f} to {r['sd_ratio_high']:.2f} | {r['seconds']:.0f} |"
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
        budgets = BUDGETS[:1] if args.quick else BUDGETS
        estimators = list(ESTIMATORS)[:2] if args.quick else list(ESTIMATORS)
        done = {(r["estimator"], r["num_steps"], r["seed"]) for r in read(FILE)}
        for num_steps, rate in budgets:
            for estimator in estimators:
                if (estimator, num_steps, 0) not in done:
                    append(FILE, run(estimator, num_steps, rate, 0))
    print(table(read(FILE)))


if __name__ == "__main__":
    main()
