"""Does a posterior over kernels cover better than one kernel? Sunspots, several windows.

    python -m benchmarks.gp.kernel_posterior          (about 30 CPU minutes)
    python -m benchmarks.gp.kernel_posterior --quick  (one window, few draws)
    python -m benchmarks.gp.kernel_posterior --table  (the table of the rows on file)

Yearly numbers since 1700, square roots, standardised by the 70 years learned from; the next 22
years, two cycles, are predicted. One network is fitted by maximum likelihood (the best of 3
starts); its parameters are sampled by NUTS. Windows follow each other by 27 years, so that no year
is predicted twice; years learned from are shared.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import statsmodels.api as sm
from numpyro.diagnostics import split_gelman_rubin
from numpyro.distributions import HalfNormal, LogNormal
from numpyro.infer import MCMC, NUTS, init_to_median
from scipy.special import logsumexp
from scipy.stats import norm

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import provenance, read
from implicitppl.distributions import kernel_at, random_kernel
from implicitppl.gp import GaussianProcess, fit
from implicitppl.kernels import RBF, Linear, NeuralKernelNetwork, Periodic, RationalQuadratic

FILE = RESULTS / "kernel-posterior.jsonl"
LEARN, PREDICT, STRIDE = 70, 22, 27
UNIT = 20.0
CYCLE = 11.0 / UNIT
PAIRS = jnp.array([[0.0, lag / UNIT] for lag in (0.0, 1.0, 5.5, 11.0, 22.0)] + [[-1.5, 1.2]])
HELD = {f"primitives[{i}].variance": 1.0 for i in range(4)}
LEVEL = 0.9


@functools.cache  # made once and outside of any trace: inside, every gradient would make it anew
def network(seed: int = 0) -> NeuralKernelNetwork:
    primitives = (Periodic(1.0, period=CYCLE), RBF(1.0), RationalQuadratic(0.5), Linear(0.3))
    kernel = NeuralKernelNetwork.from_widths(primitives, (4,), key=jax.random.key(seed))
    return kernel.with_variance(jnp.linspace(-1.75, 1.75, LEARN)[:, None])


def model(x: Any, y: Any) -> None:
    prior = {**HELD, "primitives[0].period": LogNormal(np.log(CYCLE), 0.1)}
    kernel = random_kernel("k", network(), prior)
    noise = numpyro.sample("noise", HalfNormal(0.5))
    numpyro.sample("y", GaussianProcess(kernel)(x, noise), obs=y)


def kernel_of(draw: dict[str, Any]) -> NeuralKernelNetwork:
    held = {f"k/{name}": value for name, value in HELD.items()}
    return kernel_at(network(), {**held, **draw}, "k")


@jax.jit
@jax.vmap
def values_at_pairs(draw: dict[str, Any]) -> jax.Array:
    kernel = kernel_of(draw)
    return jnp.stack([kernel(pair[:1], pair[1:]) for pair in PAIRS])


@jax.jit
def predictions(draws: dict[str, Any], x: Any, y: Any, ahead: Any) -> Any:
    def one(draw: dict[str, Any]) -> Any:
        posterior = GaussianProcess(kernel_of(draw)).condition(x, y, draw["noise"])
        values = posterior(ahead, draw["noise"])
        return values.mean, jnp.sqrt(values.variance)

    return jax.vmap(one)(draws)


def window(first: int) -> tuple[np.ndarray, ...]:
    """Return times and values to learn from, and to predict, standardised by the former."""
    table = sm.datasets.sunspots.load_pandas().data
    year, raw = table["YEAR"].to_numpy(), np.sqrt(table["SUNACTIVITY"].to_numpy())
    rows = (year >= first) & (year < first + LEARN)
    later = (year >= first + LEARN) & (year < first + LEARN + PREDICT)
    centre, scale = raw[rows].mean(), raw[rows].std()
    time_of, value = (year - first - LEARN / 2) / UNIT, (raw - centre) / scale
    return time_of[rows], value[rows], time_of[later], value[later]


def scored(low: Any, high: Any, log_density: Any, truth: np.ndarray) -> dict[str, float]:
    return {
        "covered": float(np.sum((truth >= low) & (truth <= high))),
        "width": float(np.mean(high - low)),
        "log_density": float(np.mean(log_density)),
        "num": len(truth),
    }


def by_likelihood(first: int, steps: int) -> dict[str, float]:
    x, y, ahead, truth = window(first)
    fits = [fit(GaussianProcess(network(seed)), x, y, 0.3, num_steps=steps) for seed in range(3)]
    best = max(fits, key=lambda found: float(found.log_evidence))
    values = best.process.condition(x, y, best.noise_scale)(ahead, best.noise_scale)
    mean, spread = np.asarray(values.mean), np.sqrt(values.variance)
    half = norm.ppf(0.5 + LEVEL / 2) * spread
    return scored(mean - half, mean + half, norm.logpdf(truth, mean, spread), truth)


def by_sampling(mcmc: MCMC, first: int, num: int) -> dict[str, float]:
    x, y, ahead, truth = window(first)
    mcmc.run(jax.random.key(first), jnp.asarray(x), jnp.asarray(y))
    pairs = np.asarray(values_at_pairs(mcmc.get_samples())).reshape(4, num, -1)
    draws = jax.tree.map(lambda v: v[:: max(1, num // 100)], mcmc.get_samples())
    mean, spread = (np.asarray(v) for v in predictions(draws, x, y, ahead))
    noise = np.random.default_rng(first).normal(size=(20, *mean.shape))
    simulated = (mean + spread * noise).reshape(-1, mean.shape[1])
    low, high = np.quantile(simulated, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
    density = logsumexp(norm.logpdf(truth, mean, spread), axis=0) - np.log(len(mean))
    rhat = max(float(split_gelman_rubin(pairs[..., i])) for i in range(len(PAIRS)))
    return scored(low, high, density, truth) | {"rhat": rhat}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return coverage and log density of both ways over all windows, and the paired gain."""
    lines = [
        "| kernels | windows | years inside 90% | width (sd) | log density a year | R-hat |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    cells_of = {(r["method"], r["first"]): r for r in rows}
    both = sorted(first for method, first in cells_of if method == "posterior")
    by = {m: [cells_of[m, first] for first in both] for m in ("likelihood", "posterior")}
    names = {"likelihood": "one, maximum likelihood", "posterior": "a posterior, NUTS"}
    for method, mine in by.items():
        share = sum(r["covered"] for r in mine) / sum(r["num"] for r in mine)
        width, density = (np.mean([r[key] for r in mine]) for key in ("width", "log_density"))
        rhat = f"{max(r['rhat'] for r in mine):.3f}" if method == "posterior" else ""
        cells = f"{len(mine)} | {share:.0%} | {width:.2f} | {density:.2f} | {rhat}"
        lines.append(f"| {names[method]} | {cells} |")
    gains = [
        b["log_density"] - a["log_density"]
        for a, b in zip(by["likelihood"], by["posterior"], strict=True)
    ]
    error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
    lines.append(f"\nPaired gain in log density: {np.mean(gains):+.2f} ({error:.2f}) a year.")
    return "\n".join(lines)


def main() -> None:
    """Run both ways on the windows that the file lacks, and append the rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.out)))
        return
    numpyro.enable_x64()
    network()
    steps, num = (40, 20) if options.quick else (500, 400)
    last = 2008 - LEARN - PREDICT + 1
    firsts = [1900] if options.quick else range(1700, last + 1, STRIDE)
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_median(num_samples=50)),
        num_warmup=num,
        num_samples=num,
        num_chains=4,
        chain_method="vectorized",
        jit_model_args=True,
        progress_bar=False,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["first"], r["method"]) for r in read(options.out)} if options.out.exists() else ()
    for first in firsts:
        for method in ("likelihood", "posterior"):
            if (first, method) in done:
                continue
            began = time.process_time()
            if method == "likelihood":
                found = by_likelihood(first, steps)
            else:
                found = by_sampling(mcmc, first, num)
            seconds = time.process_time() - began
            row = {"first": first, "method": method, **found, "cpu_seconds": seconds}
            with options.out.open("a") as file:
                file.write(json.dumps(row | provenance()) + "\n")
            print(first, method, {k: round(v, 3) for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
