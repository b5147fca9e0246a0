"""NUTS beside three guides on two real posteriors: a hierarchical one and a strongly curved one.

Eight schools (Rubin 1981): effects of coaching in eight schools, with standard errors; noncentred.
The population of the United States in the censuses of 1790 to 1890, in millions, under logistic
growth: eleven numbers say little about the capacity, so its posterior is skewed and bent. Its tail
is so heavy that a few thousand draws do not estimate its sd; its logarithm is compared.

    python examples/quickstart.py --out output/quickstart

prints one table for each posterior and writes posterior.nc, table.txt and PNG pictures.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Trace_ELBO, init_to_median
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import implicitppl as ip

mpl.use("Agg")

Draws = dict[str, np.ndarray]

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

YEARS = jnp.arange(0.0, 101.0, 10.0)
CENSUS = jnp.array([3.93, 5.31, 7.24, 9.64, 12.87, 17.07, 23.19, 31.44, 38.56, 50.19, 62.98])


def eight_schools(errors: jax.Array, effects: jax.Array) -> None:
    """Effects are exchangeable around mu with spread tau."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("effect", dist.Normal(theta, errors), obs=effects)


def growth(years: jax.Array, population: jax.Array) -> None:
    """Logistic growth towards a capacity, with multiplicative noise."""
    log_capacity = numpyro.sample("log_capacity", dist.Normal(jnp.log(200.0), 1.0))
    capacity = numpyro.deterministic("capacity", jnp.exp(log_capacity))
    rate = numpyro.sample("rate", dist.LogNormal(jnp.log(0.03), 0.5))
    start = numpyro.sample("start", dist.LogNormal(jnp.log(4.0), 0.2))
    noise = numpyro.sample("noise", dist.HalfNormal(0.1))
    size = capacity / (1.0 + (capacity / start - 1.0) * jnp.exp(-rate * years))
    with numpyro.plate("census", len(years)):
        numpyro.sample("population", dist.LogNormal(jnp.log(size), noise), obs=population)


POSTERIORS: dict[str, tuple[Callable[..., None], tuple[jax.Array, ...], list[str]]] = {
    "eight_schools": (eight_schools, (ERRORS, EFFECTS), ["mu", "tau", "theta"]),
    "growth": (growth, (YEARS, CENSUS), ["log_capacity", "rate", "start", "noise"]),
}
GUIDES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "AutoNormal": (AutoNormal, {"loss": Trace_ELBO(num_particles=16), "num_steps": 3000}),
    "AutoMultivariateNormal": (
        AutoMultivariateNormal,
        {"loss": Trace_ELBO(num_particles=16), "num_steps": 3000},
    ),
    "AutoImplicit": (ip.infer.AutoImplicit, {}),  # the defaults of `fit`
}


def run_nuts(
    key: jax.Array, model: Callable[..., None], data: tuple[Any, ...], num: int
) -> tuple[MCMC, float]:
    """Four chains, `num` draws each."""
    began = time.perf_counter()
    kernel = NUTS(model, init_strategy=init_to_median(), target_accept_prob=0.95)
    mcmc = MCMC(kernel, num_warmup=num, num_samples=num, num_chains=4, chain_method="sequential")
    mcmc.run(key, *data)
    return mcmc, time.perf_counter() - began


def table(
    name: str, reference: Draws, fits: dict[str, tuple[Draws, float]], sites: list[str]
) -> str:
    """Posterior means and sds of every method, then the worst errors against NUTS, in its sd."""
    lines = [f"{name}: mean (sd)"]
    labels = [label for label, _ in columns(reference, sites)]
    width = max(len(label) for label in labels)
    lines.append(" " * width + "".join(f"{method:>24}" for method in fits))
    for i, label in enumerate(labels):
        cells = ""
        for draws, _ in fits.values():
            x = columns(draws, sites)[i][1]
            cells += f"{f'{x.mean():.4g} ({x.std():.3g})':>24}"
        lines.append(f"{label:{width}}{cells}")
    lines.append("")
    lines.append("worst error against NUTS, in its sd; sliced Wasserstein distance; wall time")
    lines.append(
        f"{'':22}{'mean':>8}{'5%':>8}{'95%':>8}{'sd ratio':>10}{'corr':>8}{'SW':>9}{'seconds':>9}"
    )
    for method, (draws, seconds) in fits.items():
        worst = ip.diagnostics.compare(reference, draws, var_names=sites).worst
        lines.append(
            f"{method:22}{worst['mean_shift']:8.3f}{worst['q05_shift']:8.3f}"
            f"{worst['q95_shift']:8.3f}{worst['sd_ratio']:10.3f}{worst['corr_diff']:8.3f}"
            f"{worst['sliced_wasserstein']:9.4f}{seconds:9.1f}"
        )
    return "\n".join(lines)


def columns(draws: Draws, sites: list[str]) -> list[tuple[str, np.ndarray]]:
    """Every scalar of the sites, with a label."""
    out = []
    for site in sites:
        flat = np.asarray(draws[site]).reshape(len(draws[site]), -1)
        scalar = np.ndim(draws[site]) == 1
        out += [(site if scalar else f"{site}[{j}]", flat[:, j]) for j in range(flat.shape[1])]
    return out


def run(name: str, args: argparse.Namespace) -> str:
    """One posterior: NUTS, the guides, the table, the pictures and the files."""
    model, data, sites = POSTERIORS[name]
    nuts_key, fit_key, draw_key, arviz_key = jax.random.split(jax.random.key(args.seed), 4)
    num = 300 if args.quick else 1000
    mcmc, seconds = run_nuts(nuts_key, model, data, num)
    reference = {site: np.asarray(x) for site, x in mcmc.get_samples().items()}
    fits: dict[str, tuple[Draws, float]] = {"NUTS": (reference, seconds)}
    for method, (guide_type, options) in GUIDES.items():
        print(f"{name}: {method}", flush=True)
        began = time.perf_counter()
        guide = guide_type(model, init_loc_fn=init_to_median())
        short = {"num_steps": 300} if args.quick else {}
        result = ip.infer.fit(fit_key, model, guide, *data, **(options | short))
        draws = guide.sample_posterior(draw_key, result.params, *data, sample_shape=(4 * num,))
        draws = {site: np.asarray(x) for site, x in draws.items()}
        fits[method] = (draws, time.perf_counter() - began)
    out = args.out / name
    out.mkdir(parents=True, exist_ok=True)
    idata = ip.diagnostics.to_arviz(
        guide, result, model, model_args=data, rng_key=arviz_key, num_samples=4 * num
    )
    idata.to_netcdf(out / "posterior.nc")
    text = table(name, reference, fits, sites)
    (out / "table.txt").write_text(text + "\n")
    shown = sites if name == "growth" else ["mu", "tau"]
    pictures = {
        "pair.png": ip.diagnostics.plot_pair(reference, draws, shown, labels=("NUTS", method)),
        "gaussian.png": ip.diagnostics.plot_pair(
            reference,
            fits["AutoMultivariateNormal"][0],
            shown,
            labels=("NUTS", "AutoMultivariateNormal"),
        ),
        "forest.png": ip.diagnostics.plot_forest(
            reference, draws, sites, labels=("NUTS", method), standardise=name == "growth"
        ),
        "loss.png": ip.diagnostics.plot_loss(result.losses, ylabel=result.objective.split(" (")[0]),
    }
    for file, figure in pictures.items():
        figure.savefig(out / file, dpi=120, bbox_inches="tight")
    return text


def parse() -> argparse.Namespace:
    """The command line."""
    summary = __doc__.split("\n")[0] if __doc__ else ""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--out", type=Path, default=Path("output/quickstart"), help="folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random keys")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs")
    return parser.parse_args()


def main() -> None:
    """Run both posteriors."""
    args = parse()
    began = time.perf_counter()
    texts = [run(name, args) for name in POSTERIORS]
    print("\n" + "\n\n".join(texts))
    print(f"\nfiles are in {args.out}/ ({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
