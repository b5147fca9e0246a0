"""Hares and lynxes through an ODE solver that JAX cannot see: `black_box` and `ScoreHMC`.

Pelts of hares and lynxes bought by the Hudson's Bay Company, 1900 to 1920, in thousands, under the
equations of Lotka and Volterra, with the priors of `hudson_lynx_hare` in posteriordb. SciPy's LSODA
solves them: a host function without a gradient, so NUTS cannot run. `ScoreHMC` learns the solver's
output from its own calls, follows the gradient of what it learned, and accepts or rejects with the
solver itself. Beside it a random walk that adapts its covariance gets as many calls, and starts in
the posterior: from the starts that `ScoreHMC` had, chains of it end in other modes.

    python examples/black_box.py                  (files in output/black_box)

The output of the solver at every draw is a site of the posterior: the populations in the first
picture need no further call. The second shows what either method made of its calls. A call takes a
millisecond here; the dearer it is, the more of that shows in seconds.
"""

import argparse
import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
from matplotlib.figure import Figure
from numpyro.infer import MCMC, init_to_median
from numpyro.infer.util import potential_energy
from scipy.integrate import solve_ivp

import implicitppl as ip

mpl.use("Agg")

YEARS = np.arange(1900, 1921)
HARES = """30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6
           16.2 24.7"""
LYNXES = "4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6"
PELTS = np.array([HARES.split(), LYNXES.split()], float).T

CHAINS = 4
SITES = {"theta": 4, "z_init": 2, "sigma": 2}
LABELS = [f"{site}[{i}]" for site, size in SITES.items() for i in range(size)]
COLOURS = {"ScoreHMC": "#3b6fb6", "random walk": "#d1560f"}


class Solver:
    """The equations in log populations, solved by LSODA; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return log populations (20, 2) after 1 to 20 years from logs of theta and z_init."""
        self.calls += 1
        a, b, c, d = (math.exp(x) for x in inputs[:4])

        def slope(_: float, x: np.ndarray) -> tuple[float, float]:
            return a - b * math.exp(x[1]), d * math.exp(x[0]) - c

        start, times = inputs[4:].astype(float), YEARS[1:] - YEARS[0]
        found = solve_ivp(slope, (0, 20), start, "LSODA", times, rtol=1e-6, atol=1e-6)
        if not found.success:
            raise RuntimeError(found.message)
        return found.y.T


def model(solve: Callable[..., Any], pelts: jax.Array, **options: Any) -> None:
    """Populations follow the equations; pelts are populations with multiplicative noise."""
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=0.0).to_event(1))
    first = dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1)
    z_init = numpyro.sample("z_init", first)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    inputs = jnp.log(jnp.concatenate([theta, z_init]))
    log_z = ip.models.black_box(
        "populations", solve, inputs, out=(20, 2), on_failure="reject", **options
    )
    log_z = jnp.concatenate([jnp.log(z_init)[None], log_z])
    numpyro.sample("pelts", dist.LogNormal(log_z, sigma).to_event(2), obs=pelts)


def score_hmc(
    key: jax.Array, posterior: Callable[..., None], num: int
) -> tuple[Any, ip.diagnostics.SurrogateReport]:
    """Return four chains for ArviZ, `num` iterations of warm-up and as many draws, and a report."""
    kernel = ip.infer.ScoreHMC(posterior, init_strategy=init_to_median())
    mcmc = MCMC(
        kernel,
        num_warmup=num,
        num_samples=num,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, PELTS, extra_fields=ip.infer.ScoreHMC.diagnostic_fields)
    idata = ip.diagnostics.to_arviz(mcmc, log_likelihood=False, posterior_predictive=False)
    return idata, ip.diagnostics.surrogate_report(mcmc)


def random_walk(seed: int, posterior: Callable[..., None], z: np.ndarray, num: int) -> np.ndarray:
    """Return draws (chains, num, 8) of the logs of all parameters by adaptive Metropolis.

    In a warm-up of `num` iterations the covariance is that of the later half of all chains so far,
    and its scale is that of an acceptance of 0.234 (Haario et al. 2001, Andrieu and Thoms 2008).
    """

    @jax.jit
    @jax.vmap
    def potential(z: jax.Array) -> jax.Array:
        sites = {"theta": z[:4], "z_init": z[4:6], "sigma": z[6:]}  # each is exp(z)
        return potential_energy(posterior, (PELTS,), {}, sites)

    rng, path, value = np.random.default_rng(seed), [z], np.array(potential(z))
    scale, factor = 2.38 / z.shape[1] ** 0.5, 0.1 * np.eye(z.shape[1])
    for i in range(2 * num):
        proposal = z + scale * rng.normal(size=z.shape) @ factor.T
        proposed = np.array(potential(proposal))
        accept = np.nan_to_num(np.exp(np.minimum(value - proposed, 0.0)))
        taken = rng.random(len(z)) < accept
        z, value = np.where(taken[:, None], proposal, z), np.where(taken, proposed, value)
        path.append(z)
        if i < num:
            scale *= np.exp((accept.mean() - 0.234) / (i + 1) ** 0.5)
        if i < num and i % 20 == 19:
            covariance = np.cov(np.concatenate(path[i // 2 :]), rowvar=False)
            factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(covariance)))
    return np.stack(path[num + 1 :], axis=1)


def table(draws: dict[str, np.ndarray], calls: dict[str, int], seconds: dict[str, float]) -> str:
    """Means, sds and checks of both methods; the last column tells whether the means agree."""
    lines = ["mean (sd) of each parameter; z: difference of the means over its Monte Carlo error"]
    heads = "".join(f"{method:>20}   R-hat  bulk  tail" for method in draws)
    lines.append(f"{'':10}{heads}     z")
    for j, label in enumerate(LABELS):
        columns = [x[:, :, j] for x in draws.values()]
        cells = ""
        for x in columns:
            sizes = "".join(f"{float(az.ess(x, method=kind)):6.0f}" for kind in ("bulk", "tail"))
            cells += f"{f'{x.mean():.4g} ({x.std():.2g})':>20}{float(az.rhat(x)):8.3f}{sizes}"
        error = math.hypot(*(float(az.mcse(x, method="mean")) for x in columns))
        lines.append(f"{label:10}{cells}{(columns[0].mean() - columns[1].mean()) / error:6.1f}")
    lines += ["", "least ESS of the eight, and that per 1000 solver calls, warm-up included"]
    lines.append(f"{'':12}   calls  seconds   bulk   tail  bulk/1000  tail/1000")
    for method, x in draws.items():
        sizes = [worst(x, "bulk"), worst(x, "tail")]
        cost = f"{calls[method]:8d}{seconds[method]:9.0f}"
        per_call = "".join(f"{1000 * size / calls[method]:11.1f}" for size in sizes)
        lines.append(f"{method:12}{cost}{sizes[0]:7.0f}{sizes[1]:7.0f}{per_call}")
    return "\n".join(lines)


def worst(x: np.ndarray, method: str) -> float:
    """The least effective sample size of all parameters."""
    return min(float(az.ess(x[:, :, j], method=method)) for j in range(x.shape[2]))


def draw_populations(log_z: np.ndarray, sigma: np.ndarray, seed: int, path: Path) -> None:
    """Write the pelts with bands of the populations (S, 21, 2) and of pelts that they predict."""
    noise = np.random.default_rng(seed).normal(size=log_z.shape)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for j, (axis, name) in enumerate(zip(axes, ("Hares", "Lynxes"), strict=True)):
        colour = ("#3a923a", "#7b4fa3")[j]
        predicted = np.exp(log_z + sigma[:, None, :] * noise)[:, :, j]
        bands = [(predicted, 0.18, "pelts, 90%"), (np.exp(log_z[:, :, j]), 0.45, "population, 90%")]
        for values, alpha, label in bands:
            low, high = np.quantile(values, [0.05, 0.95], axis=0)
            axis.fill_between(YEARS, low, high, color=colour, alpha=alpha, lw=0, label=label)
        axis.plot(YEARS, np.exp(np.median(log_z[:, :, j], axis=0)), color=colour, label="median")
        axis.plot(YEARS, PELTS[:, j], "o", color="black", ms=4, label="pelts bought")
        axis.set(xlabel="year", ylabel="thousands", ylim=(0, None), xticks=YEARS[::5])
        axis.set_title(name, fontsize=10)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def draw_calls(draws: dict[str, np.ndarray], num: int, path: Path) -> None:
    """Write traces of one parameter, and the least effective sample size against solver calls."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.4, 1))
    right = figure.add_subplot(grid[:, 1])
    calls = CHAINS * (1 + num + np.arange(1, num + 1))
    shown = slice(0, 250)
    traces = np.concatenate([x[:, shown, 0] for x in draws.values()])
    limits = 0.98 * traces.min(), 1.02 * traces.max()
    for row, (method, x) in enumerate(draws.items()):
        axis = figure.add_subplot(grid[row, 0])
        axis.plot(calls[shown], x[:, shown, 0].T, lw=0.6, alpha=0.8, color=COLOURS[method])
        axis.set(ylim=limits, ylabel="theta[0]")
        axis.set_title(f"{method}: the first draws of four chains", fontsize=10)
        ends = np.unique(np.linspace(num // 10, num, 20).astype(int))
        sizes = [worst(x[:, :end], "bulk") for end in ends]
        right.plot(calls[ends - 1], sizes, "o-", ms=3, color=COLOURS[method], label=method)
    axis.set_xlabel("solver calls")
    right.axvline(CHAINS * (1 + num), color="0.6", lw=0.8, ls=":")
    right.set(xlabel="solver calls (dotted: end of warm-up)", xlim=(0, None), ylim=(0, None))
    right.set_title("Least bulk ESS of the eight parameters", fontsize=10)
    right.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/black_box"))
    parser.add_argument("--seed", type=int, default=0, help="of both methods")
    parser.add_argument("--quick", action="store_true", help="150 iterations instead of 1000")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    num = 150 if args.quick else 1000
    solvers = {method: Solver() for method in COLOURS}
    seconds = {}

    began = time.perf_counter()
    posterior = functools.partial(model, solvers["ScoreHMC"])
    idata, report = score_hmc(jax.random.key(args.seed), posterior, num)
    seconds["ScoreHMC"] = time.perf_counter() - began
    idata.to_netcdf(args.out / "posterior.nc")
    (args.out / "report.txt").write_text(f"{report}\n")
    ip.diagnostics.plot_surrogate(report).savefig(args.out / "surrogate.png", dpi=110)
    sites = {site: np.asarray(idata["posterior"][site]) for site in (*SITES, "populations")}
    draws = {"ScoreHMC": np.concatenate([sites[site] for site in SITES], axis=2)}

    began = time.perf_counter()
    posterior = functools.partial(model, solvers["random walk"])
    walk = random_walk(args.seed, posterior, np.log(draws["ScoreHMC"][:, 0]), num)
    seconds["random walk"] = time.perf_counter() - began
    draws["random walk"] = np.exp(walk)

    log_z = np.concatenate([np.log(sites["z_init"])[:, :, None], sites["populations"]], axis=2)
    flat = log_z.reshape(-1, 21, 2), sites["sigma"].reshape(-1, 2)
    draw_populations(*flat, args.seed, args.out / "populations.png")
    draw_calls(draws, num, args.out / "calls.png")
    text = table(draws, {method: solve.calls for method, solve in solvers.items()}, seconds)
    (args.out / "table.txt").write_text(text + "\n")
    print(f"{report}\n\n{text}\nfiles are in {args.out}/")


if __name__ == "__main__":
    main()
