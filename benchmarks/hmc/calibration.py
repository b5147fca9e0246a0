"""Simulation-based calibration of `ScoreHMC` on an epidemic whose equations a host solves.

    python -m benchmarks.hmc.calibration            (200 data sets)
    python -m benchmarks.hmc.calibration --wrong    (power: a sampler of a wrong posterior)
    python -m benchmarks.hmc.calibration --quick    (20 data sets, shorter chains)
    python -m benchmarks.hmc.calibration --report   (the table, from the rows)
    python -m benchmarks.hmc.calibration --picture  (docs/pictures/hmc_calibration.png)

The model is that of influenza in a boarding school of 763 boys: S' = -b S I / 763 and
I' = b S I / 763 - c I, with the boys in bed on 14 days negative binomial around I. Priors of b, c
and the dispersion are those of Grinsztajn et al. (2021), Bayesian workflow for disease transmission
modeling; the number first infected is unknown, too. For each data set parameters are drawn from
the prior and data from the model; four vectorized chains of `ScoreHMC` run; the rank of the truth
among 99 thinned draws of each parameter and of the log likelihood is one row. Runs whose chains do
not agree are counted, and stay in. `--wrong` gives the sampler a standard deviation of the data
that is 1.3 times too large (where the dispersion dominates); the tests must reject it.

200 data sets take about 0.45 CPU hours on one thread, and as long again with `--wrong`; `--quick`
takes 3 CPU minutes. Each row has its `cpu_seconds`, compilation (once) in the first one. Rows that
the result file has are skipped.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.infer import init_to_median

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.hmc.calibration_tables import NUM_RANKS, PICTURE, draw, report
from implicitppl.infer import ScoreHMC
from implicitppl.models import black_box

BOYS, DAYS, STEPS = 763.0, 14, 2
CHAINS = 4
SIZES, QUICK_SIZES = (150, 20), (100, 8)  # iterations of warm-up; thinning
DATA_SETS, QUICK_DATA_SETS = 200, 20
WRONG_VARIANCE = 1.3**2
SITES = ("infection", "recovery", "first", "dispersion")
QUANTITIES = (*SITES, "log_likelihood")


def epidemic(rates: np.ndarray) -> np.ndarray:
    """Return log I on days 1 to 14 `(..., 14)` from logs of b, c and I on day 0 `(..., 3)`.

    Runge-Kutta's classical method with two steps a day, in log(S / 763) and log(I / 763).
    """
    b, c, first = (np.exp(np.minimum(rates[..., i], 4.0)).astype(float) for i in range(3))
    ill = np.minimum(first / BOYS, 0.99)
    gain, loss = np.stack([-b, b]), np.stack([np.zeros_like(c), c])
    y, h, days = np.stack([np.log1p(-ill), np.log(ill)]), 1.0 / STEPS, []

    def slope(y: np.ndarray) -> np.ndarray:
        return gain * np.exp(y)[::-1] - loss

    for step in range(DAYS * STEPS):
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3))
        if step % STEPS == STEPS - 1:
            days.append(y[1])
    return np.stack(days, axis=-1) + np.log(BOYS)


def observation(log_ill: Array, dispersion: Array) -> dist.Distribution:
    """Return the distribution of boys in bed: mean I, variance I + dispersion I^2."""
    return dist.NegativeBinomial2(jnp.exp(log_ill), 1.0 / dispersion[..., None]).to_event(1)


def model(y: Array | None = None, factor: float = 1.0) -> None:
    """The epidemic with its priors; `factor` multiplies the dispersion of the data."""
    positive = functools.partial(dist.TruncatedNormal, low=0.0)
    b = numpyro.sample("infection", positive(2.0, 1.0))
    c = numpyro.sample("recovery", positive(0.4, 0.5))
    first = numpyro.sample("first", dist.LogNormal(jnp.log(2.0), 0.5))
    dispersion = numpyro.sample("dispersion", dist.Exponential(5.0))
    rates = jnp.log(jnp.stack([b, c, first]))
    log_ill = black_box("log_ill", epidemic, rates, out=(DAYS,), vmap_method="expand_dims")
    numpyro.sample("y", observation(log_ill, factor * dispersion), obs=y)


def simulated(seed: int) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return true parameters, log I, and data."""
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, seed)).get_trace()
    truth = {name: float(trace[name]["value"]) for name in SITES}
    return truth, np.asarray(trace["log_ill"]["value"]), np.asarray(trace["y"]["value"], float)


def sampler(num_warmup: int, num_samples: int, factor: float) -> Callable[..., Any]:
    """Return the compiled run: from a key and data to quantities `(draws, chains)` and counts."""
    kernel = ScoreHMC(model, init_strategy=init_to_median())

    @jax.jit
    def run(key: Array, y: Array) -> tuple[dict[str, Float[Array, "N C"]], Array]:
        args = (y, factor)
        state = kernel.init(jax.random.split(key, CHAINS), num_warmup, None, args, {})

        def body(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, args, {})
            return state, state.z

        state, _ = jax.lax.scan(lambda s, x: (body(s, x)[0], None), state, None, num_warmup)
        state, z = jax.lax.scan(body, state, None, num_samples)
        sites = jax.vmap(jax.vmap(kernel.postprocess_fn(args, {})))(z)
        value = observation(sites["log_ill"], sites["dispersion"]).log_prob(y)
        found = {name: sites[name] for name in SITES} | {"log_likelihood": value}
        return found, jnp.sum(state.num_evaluations)

    return run


def few(draws: np.ndarray) -> np.ndarray:
    """Return NUM_RANKS evenly spaced draws of `(N, C)`, as `(NUM_RANKS / C, C)`."""
    wanted = NUM_RANKS // draws.shape[1]
    step = draws.shape[0] // wanted
    return draws[step - 1 :: step][:wanted]


def rank(draws: np.ndarray, truth: float) -> int:
    """Return how many of NUM_RANKS - 1 thinned draws are below the truth."""
    return int(np.sum(few(draws).ravel()[1:] < truth))


def mixing(draws: dict[str, np.ndarray]) -> dict[str, float]:
    """Return R-hat, the least bulk and tail effective sizes, and that of the thinned draws."""
    import arviz as az

    def least(draws: dict[str, np.ndarray], method: str) -> float:
        data = az.convert_to_dataset({k: v.T.astype(float) for k, v in draws.items()})
        return float(min(az.ess(data, method=method).to_array()))

    data = az.convert_to_dataset({k: v.T.astype(float) for k, v in draws.items()})
    return {
        "rhat": float(max(az.rhat(data).to_array())),
        "ess_bulk": least(draws, "bulk"),
        "ess_tail": least(draws, "tail"),
        "ess_thinned": least({k: few(v) for k, v in draws.items()}, "bulk"),
    }


def row_of(run: Callable[..., Any], seed: int, wrong: bool, quick: bool) -> dict[str, Any]:
    """Return ranks, mixing and costs of one data set."""
    start = time.process_time()
    truth, log_ill, y = simulated(seed)
    found, evaluations = run(jax.random.key(10_000 + seed), jnp.asarray(y))
    draws = {name: np.asarray(found[name]) for name in QUANTITIES}
    value = observation(jnp.asarray(log_ill), jnp.asarray(truth["dispersion"])).log_prob(y)
    values = truth | {"log_likelihood": float(value)}
    return {
        "seed": seed,
        "wrong": wrong,
        "quick": quick,
        "ranks": {k: rank(draws[k], values[k]) for k in QUANTITIES},
        "truth": values,
        "evaluations": int(evaluations),
        **mixing(draws),
        "cpu_seconds": time.process_time() - start,
        **provenance(),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--data-sets", type=int, help="default: 200, or 20")
    parser.add_argument("--wrong", action="store_true", help="a sampler of a wrong posterior")
    parser.add_argument("--quick", action="store_true", help="few data sets, shorter chains")
    parser.add_argument("--report", action="store_true", help="print the table of the rows")
    parser.add_argument("--picture", nargs="?", type=Path, const=PICTURE, help="draw the rows")
    args = parser.parse_args()
    name = "hmc-calibration-quick.jsonl" if args.quick else "hmc-calibration.jsonl"
    args.out = args.out or RESULTS / name
    args.data_sets = args.data_sets or (QUICK_DATA_SETS if args.quick else DATA_SETS)
    return args


def main() -> None:
    args = parse()
    if args.picture:
        return draw(read(args.out), args.picture)
    if args.report:
        return print(report(read(args.out)))
    warmup, thinning = QUICK_SIZES if args.quick else SIZES
    factor = WRONG_VARIANCE if args.wrong else 1.0
    run = sampler(warmup, thinning * NUM_RANKS // CHAINS, factor)
    done = {(row["seed"], row["wrong"]) for row in read(args.out)}
    for seed in range(args.data_sets):
        if (seed, args.wrong) not in done:
            row = row_of(run, seed, args.wrong, args.quick)
            append(args.out, row)
            print(
                f"{seed:3d}  R-hat {row['rhat']:.3f}  bulk {row['ess_bulk']:5.0f}  "
                f"thinned {row['ess_thinned']:4.0f}  {row['cpu_seconds']:.1f} s  {row['ranks']}",
                flush=True,
            )
    print(report(read(args.out)))


if __name__ == "__main__":
    main()
