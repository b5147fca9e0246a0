"""The weight of a minibatch's divergence: what `batch_weight` says, and what fits prefer.

    python -m benchmarks.functional.weights --data FOLDER  (FOLDER/uci/*.data, ten CPU minutes)
    python -m benchmarks.functional.weights --quick        (bundled data, short fits)

One row for each data set and weight: 1, one chosen by hand ("chosen"), `batch_weight` at the exact
posterior of the row "GP", and N/B. The network "fBNN" is trained on nine tenths of the
training rows of split 1 and judged on the last tenth, those on which settings were chosen; test
rows are not seen. Rows that the result file has are skipped.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.functional.gp import exact_gp, fit_process, scores
from benchmarks.functional.ours import Functional, fitted
from benchmarks.functional.run import MAX_TRAIN, SETTINGS
from benchmarks.gp.data import BUNDLED, Split, split
from implicitppl.divergences import DataNoise, GaussianKL, batch_weight

CHOSEN = {"yacht": 3.0, "energy": 1.0, "concrete": 3.0, "kin8nm": 3.0, BUNDLED: 3.0}
"""On these rows, but for kin8nm and bundled data, which have the weight of concrete."""
SETS = tuple(name for name in CHOSEN if name != BUNDLED)
KEY = ("data", "rule")
OUT = RESULTS / "functional-weights.jsonl"


def held_out(whole: Split) -> Split:
    """Return the first nine tenths of the training rows, to be tested on the last."""
    few = len(whole.y) // 10
    return whole._replace(
        x=whole.x[:-few], y=whole.y[:-few], x_test=whole.x[-few:], y_test=whole.y[-few:]
    )


def weights(data: Split, settings: Functional, fit: Any) -> dict[str, float]:
    """Return the weights to compare, by the rule that gives them."""
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    by_process = batch_weight(
        fit.process,
        fit.process.condition(x, y, fit.noise_scale),
        x,
        settings.batch_size,
        key=jax.random.key(0),
        measurement=DataNoise(settings.num_measured),
        divergence=GaussianKL(settings.noise),
    )
    return {
        "1": 1.0,
        "chosen": CHOSEN[data.name],
        "batch_weight": float(by_process),
        "N/B": len(y) / settings.batch_size,
    }


def run(name: str, folder: Path | None, out: Path) -> None:
    """Append the rows of one data set; weights that are equal are trained once."""
    done = {tuple(row[k] for k in KEY) for row in read(out)}
    data = held_out(split(name, 1, folder, MAX_TRAIN))
    settings = SETTINGS[name]["fBNN"]
    fit = fit_process(data, settings.process)
    process = scores(data, exact_gp(data, settings.process, (0.0,))[0.0])
    found: dict[float, dict[str, Any]] = {}
    for rule, weight in weights(data, settings, fit).items():
        if (name, rule) in done:
            continue
        if weight not in found:
            weighted, key = settings._replace(weight=weight), jax.random.key(data.seed)
            result = fitted(data, fit.process, weighted, 0.0, key)[1]
            found[weight] = scores(data, result) | result.info
        row = {"data": name, "rule": rule, "weight": weight, "noise": settings.noise}
        row |= {"num_train": len(data.y), "batch_size": settings.batch_size}
        row |= found[weight] | {f"process_{k}": v for k, v in process.items()}
        append(out, row | {"process_noise_sd": float(fit.noise_scale)} | provenance())
        print(f"{name:9s} {rule:12s} {weight:5.2f}  LL {row['ll']:.3f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds uci/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--sets", nargs="+", choices=[*SETS, BUNDLED], help="default: all")
    parser.add_argument("--quick", action="store_true", help="bundled data")
    args = parser.parse_args(arguments)
    out = args.out or (RESULTS / "functional-weights-quick.jsonl" if args.quick else OUT)
    with jax.enable_x64(True):
        for name in args.sets or ([BUNDLED] if args.quick else SETS):
            run(name, args.data, out)
            jax.clear_caches()  # a process may map only so many compiled programs


if __name__ == "__main__":
    main()
