r"""What functional variational inference is measured against, on regression tables.

    python -m benchmarks.functional.run --data FOLDER  (all; FOLDER/uci/*.data)
    python -m benchmarks.functional.run --data FOLDER --sets yacht --methods MFVI --splits 2
    python -m benchmarks.functional.run --quick        (bundled data, two splits)
    python -m benchmarks.functional.run --data FOLDER --times 2 --methods MFVI --splits 1 \
        --out benchmarks/results/functional-steps.jsonl          (is the training long enough?)
    python -m benchmarks.functional.tables  (docs/functional-benchmarks.md)

One row for each data set, split, method and least noise; rows that the result file has are skipped.
The protocol is that of Sun et al. (2019), arXiv 1903.05779, as the authors' code has it: 90/10
splits of seeds 1 to 10, standardised by the training rows, RMSE of the predictive mean and the mean
test log density of the mixture of particles, in the data's units. Their code keeps the noise above
.05 standardised units while it trains; that (`--floors 0.05`) and no such floor (`--floors 0`) are
trained apart. kin8nm and protein are the first 1,000 training rows, and the whole test tenth.
Everything is float64; use one thread for times that compare. NUTS runs where it is asked for.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.functional.gp import scores
from benchmarks.functional.laplace import Laplace
from benchmarks.functional.methods import METHODS, SINE
from benchmarks.functional.ours import Functional
from benchmarks.gp.data import BUNDLED, Split, split
from benchmarks.gp.methods import Settings

KEY = ("data", "split", "method", "floor")
FLOORS = (0.0, 0.05)
MAX_TRAIN = 1000
BATCHES = Functional(
    num_steps=3000,
    learning_rate=0.01,
    batch_size=64,
    num_measured=32,
    num_particles=150,
    initial_scale=0.01,
    noise=0.003,
)
LINEARISED = BATCHES._replace(
    batch_size=128,
    num_particles=16,
    divergence="regularized",
    strength=6.25e-9,
    guide="linearised",
)
"""At 160 points the noise of the divergence is .001 of the prior's standard deviation."""
LARGER = LINEARISED._replace(num_steps=1500, batch_size=256, strength=3.47e-7, weight=2.0)
"""At 288 points it is .01."""
SETTINGS: dict[str, dict[str, Any]] = {
    "yacht": {
        "GP": Settings(1000, 0.05),
        "fBNN": BATCHES._replace(weight=3.0, process=Settings(1000, 0.05)),
        "GFSVI": LINEARISED._replace(process=Settings(1000, 0.05)),
        "MFVI": Settings(20_000, 0.01),
        "ensemble": Settings(20_000, 0.01),
        "FSP-Laplace": Laplace(6000, 0.01, 1e-4, process=Settings(1000, 0.05)),
        "NUTS": Settings(300, 0.0),
    },
    "energy": {
        "GP": Settings(300, 0.1),
        "fBNN": BATCHES._replace(process=Settings(300, 0.1)),
        "GFSVI": LINEARISED._replace(process=Settings(300, 0.1)),
        "MFVI": Settings(20_000, 0.01),
        "ensemble": Settings(20_000, 0.01),
        "FSP-Laplace": Laplace(3000, 0.01, 1e-3, process=Settings(300, 0.1)),
    },
    "concrete": {
        "GP": Settings(200, 0.1),
        "fBNN": BATCHES._replace(noise=0.01, weight=3.0),
        "GFSVI": LARGER,
        "MFVI": Settings(10_000, 0.01),
        "ensemble": Settings(5000, 0.01),
        "FSP-Laplace": Laplace(3000, 0.01, 1e-4),
    },
    "kin8nm": {
        "GP": Settings(200, 0.1),
        "fBNN": BATCHES._replace(noise=0.01, weight=4.8),
        "fBNN, sine": BATCHES._replace(noise=0.01, weight=3.0, **SINE._asdict()),
        "GFSVI": LARGER,
        "MFVI": Settings(10_000, 0.01),
        "MFVI, sine": Settings(10_000, 0.01),
        "ensemble": Settings(5000, 0.01),
        "FSP-Laplace": Laplace(3000, 0.01, 1e-4),
    },
    "protein": {
        "GP": Settings(200, 0.1),
        "fBNN": BATCHES._replace(noise=0.01, weight=2.9),
        "MFVI": Settings(10_000, 0.01),
        "ensemble": Settings(5000, 0.01),
        "FSP-Laplace": Laplace(3000, 0.01, 1e-4),
    },
    BUNDLED: {
        "GP": Settings(60, 0.1),
        "fBNN": BATCHES._replace(
            num_steps=300, num_particles=100, noise=0.01, weight=3.0, process=Settings(60, 0.1)
        ),
        "GFSVI": LARGER._replace(num_steps=300, batch_size=64, process=Settings(60, 0.1)),
        "MFVI": Settings(3000, 0.01),
        "ensemble": Settings(500, 0.01),
        "FSP-Laplace": Laplace(500, 0.01, 1e-4, process=Settings(60, 0.1)),
    },
}
"""A method runs on the data sets that have settings for it; rates of NUTS are its own."""
for own in (SETTINGS[name] for name in ("yacht", "energy", "concrete", "kin8nm", BUNDLED)):
    own["fBNN, 5 fits"] = own["fBNN"]._replace(num_fits=5)
ON_REQUEST = ("NUTS",)
QUICK_SPLITS = 2
OUT = RESULTS / "functional.jsonl"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds uci/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all but NUTS")
    parser.add_argument("--splits", type=int, default=10, help="number of splits, from seed 1")
    parser.add_argument("--floors", nargs="+", type=float, default=FLOORS, help="least noise")
    parser.add_argument("--times", type=float, default=1, help="multiple of the steps")
    parser.add_argument("--quick", action="store_true", help="bundled data, two splits")
    args = parser.parse_args(arguments)
    args.out = args.out or (RESULTS / "functional-quick.jsonl" if args.quick else OUT)
    args.splits = QUICK_SPLITS if args.quick else args.splits
    sets = [BUNDLED] if args.quick else [name for name in SETTINGS if name != BUNDLED]
    args.sets = args.sets or sets
    args.methods = args.methods or [m for m in METHODS if m not in ON_REQUEST]
    return args


def rows_of(
    method: str, found: Split, settings: Any, floors: list[float], is_first: bool
) -> list[dict[str, Any]]:
    """Return one row for each floor; a method that raises has its error in the rows."""
    base: dict[str, Any] = dict(zip(KEY, (found.name, found.seed, method), strict=False))
    base |= {"num_train": len(found.y), **settings._asdict()}
    begin = time.process_time()
    try:
        results = METHODS[method](found, settings, floors)
        parts = [scores(found, results[floor]) | results[floor].info for floor in floors]
    except Exception as error:  # one method's failure is a result of the comparison
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        parts = [{"error": text} for _ in floors]
    shared = {"cpu_seconds": (time.process_time() - begin) / len(floors)} | provenance()
    return [
        base | {"floor": floor, "is_first": is_first and i == 0} | part | shared
        for i, (floor, part) in enumerate(zip(floors, parts, strict=True))
    ]


def summary(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    head = f"{row['data']:9s} {row['split']:2d} {row['method']:11s} floor {row['floor']:<4g}"
    if "error" in row:
        return f"{head} {row['error']}"
    return f"{head} RMSE {row['rmse']:8.4f}  LL {row['ll']:8.4f}  {row['cpu_seconds']:.1f} s"


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    with jax.enable_x64(True):
        for name in args.sets:
            for method in (m for m in args.methods if m in SETTINGS[name]):
                run_set(args, name, method)
                jax.clear_caches()  # a process may map only so many compiled programs


def run_set(args: argparse.Namespace, name: str, method: str) -> None:
    """Append the rows of one method on one data set."""
    done = {tuple(row[k] for k in KEY) for row in read(args.out)}
    own, is_first = SETTINGS[name][method], True
    settings = own._replace(num_steps=int(args.times * own.num_steps))
    for seed in range(1, args.splits + 1):
        floors = [floor for floor in args.floors if (name, seed, method, floor) not in done]
        if not floors:
            continue
        found = split(name, seed, args.data, MAX_TRAIN)
        for row in rows_of(method, found, settings, floors, is_first):
            append(args.out, row)
            print(summary(row), flush=True)
        is_first = False


if __name__ == "__main__":
    main()
