"""What it costs that only a part of the likelihood is opaque: `ScoreHMC` beside NUTS.

    python -m benchmarks.hmc.opaque_likelihood --seeds 3  (all; --data FOLDER, see below)
    python -m benchmarks.hmc.opaque_likelihood --quick    (one seed, short runs)
    python -m benchmarks.hmc.opaque_likelihood --report   (the table, from the rows)

The models are those of hmc/opaque_problems.py: a function of a few inputs inside a larger
model. `ScoreHMC` calls that function on the host, four vectorized chains, 300 iterations of warm-up
and 1,500 draws; NUTS has it in JAX with its gradient, four chains of 1,000 + 1,000. Evaluations are
host calls, counted on the host, and gradients of NUTS (leapfrog steps, one more for each start); in
warm-up and sampling. Effective sample sizes, R-hat and errors are those of hmc/run.py, over all
scalars; the truth is a long NUTS run (accuracy/references.py), cached, and with `--data` the
published draws of posteriordb for hares and lynxes. All start at prior medians.

One seed of everything costs about 0.3 CPU hours on one thread, most of it for NUTS, and the
references about an hour, once (estimated from short runs); `--quick` takes 10 CPU minutes. Each row
has its `cpu_seconds`, compilation included. Rows that the result file has are skipped.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, init_to_median

from benchmarks.accuracy.posteriors import Posterior, load
from benchmarks.accuracy.references import reference
from benchmarks.common.paths import CACHE, RESULTS
from benchmarks.common.rows import append, read
from benchmarks.hmc.opaque_problems import Host, Problem, problems
from benchmarks.hmc.rows import measured, table
from benchmarks.hmc.runs import Run
from benchmarks.hmc.targets import Truth, from_draws
from implicitppl.infer import ScoreHMC

CHAINS = 4
SIZES = {"score_hmc": (300, 1500), "nuts": (1000, 1000), "nuts_dense": (1000, 1000)}
QUICK_SIZES = {"score_hmc": (100, 200), "nuts": (200, 200), "nuts_dense": (200, 200)}
PUBLISHED = {"hares_lynxes": "hudson_lynx_hare-lotka_volterra"}
HEADS = {"score_hmc": "ScoreHMC", "nuts": "NUTS", "nuts_dense": "NUTS dense"}
KEY = ("problem", "method", "seed")
Sizes = tuple[int, int]


def mcmc_of(kernel: Any, sizes: Sizes, method: str) -> MCMC:
    """Return four chains of the kernel."""
    return MCMC(
        kernel,
        num_warmup=sizes[0],
        num_samples=sizes[1],
        num_chains=CHAINS,
        chain_method=method,
        progress_bar=False,
    )


def stacked(problem: Problem, samples: Any) -> np.ndarray:
    """Return the scalars of draws of all chains, `(C, N, P)`."""
    columns = problem.to_scalars(samples).values()
    return np.stack(list(columns), axis=-1).reshape(CHAINS, -1, len(columns))


def score_hmc(problem: Problem, seed: int, sizes: Sizes) -> Run:
    """Return draws with the curve on the host; calls as the host counted them."""
    host = Host(problem)
    mcmc = mcmc_of(ScoreHMC(host.model, init_strategy=init_to_median()), sizes, "vectorized")
    mcmc.run(jax.random.key(seed), *problem.args)
    draws = stacked(problem, mcmc.get_samples())
    sampling = CHAINS * sizes[1]
    return Run(draws, host.calls - sampling, sampling)


def nuts(problem: Problem, seed: int, sizes: Sizes, dense: bool = False) -> Run:
    """Return draws with the curve in JAX; evaluations are leapfrog steps."""
    model = functools.partial(problem.model, problem.exact)
    kernel = NUTS(model, dense_mass=dense, init_strategy=init_to_median())
    mcmc = mcmc_of(kernel, sizes, "sequential")
    fields = {"extra_fields": ("num_steps",)}
    mcmc.warmup(jax.random.key(seed), *problem.args, collect_warmup=True, **fields)
    warmup = int(np.sum(mcmc.get_extra_fields()["num_steps"])) + CHAINS
    mcmc.run(jax.random.key(seed + 1000), *problem.args, **fields)
    sampling = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
    return Run(stacked(problem, mcmc.get_samples()), warmup, sampling, gradients=True)


METHODS: dict[str, Callable[[Problem, int, Sizes], Run]] = {
    "score_hmc": score_hmc,
    "nuts": nuts,
    "nuts_dense": functools.partial(nuts, dense=True),
}


def truth_of(problem: Problem, cache: Path, data: Path | None = None) -> Truth:
    """Return moments and quantiles of the reference draws, published ones where there are any."""
    name = PUBLISHED.get(problem.name)
    if data is not None and name is not None:
        found = reference(load(data, name), cache)
    else:
        model = functools.partial(problem.reference_model or problem.model, problem.exact)
        posterior = Posterior(f"opaque-{problem.name}", model, problem.to_scalars, problem.args)
        found = reference(posterior, cache)
    return from_draws(found.names, found.draws, found.source)


def quick_truth(problem: Problem) -> Truth:
    """Return those of a short run: enough to see whether all is in order."""
    run = nuts(problem, 99, (200, 400), dense=True)
    return from_draws([str(i) for i in range(run.draws.shape[-1])], run.draws, "short NUTS")


def row_of(problem: Problem, method: str, seed: int, true: Truth, sizes: Sizes) -> dict[str, Any]:
    """Return the row of one run."""
    start = time.process_time()
    run = METHODS[method](problem, seed, sizes)
    seconds = time.process_time() - start
    return {
        **dict(zip(KEY, (problem.name, method, seed), strict=True)),
        "gradients": run.gradients,
        "truth": true.source,
        **measured(run, true, sizes, seconds),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Return medians over seeds for each problem and method."""
    return table(rows, {"problem": "problem", "method": "method"}, HEADS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds posteriordb/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--problems", nargs="+", choices=list(problems()), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of NUTS references")
    parser.add_argument("--quick", action="store_true", help="short runs and references")
    parser.add_argument("--report", action="store_true", help="print the table of the rows")
    args = parser.parse_args()
    name = "hmc-opaque-quick.jsonl" if args.quick else "hmc-opaque.jsonl"
    args.out = args.out or RESULTS / name
    args.problems = args.problems or list(problems())
    return args


def main() -> None:
    args = parse()
    if args.report:
        return print(report(read(args.out)))
    sizes = QUICK_SIZES if args.quick else SIZES
    done = {tuple(row[k] for k in KEY) for row in read(args.out)}
    for name in args.problems:
        problem = problems()[name]
        true = quick_truth(problem) if args.quick else truth_of(problem, args.cache, args.data)
        for seed in range(args.seeds):
            for method in args.methods:
                if (name, method, seed) not in done:
                    row = row_of(problem, method, seed, true, sizes[method])
                    append(args.out, row)
                    print(report([row]).splitlines()[-1], flush=True)
        jax.clear_caches()  # a process may map only so many compiled programs
    print(report(read(args.out)))


if __name__ == "__main__":
    main()
