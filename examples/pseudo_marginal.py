"""A particle filter as the likelihood: stochastic volatility of inflation in the United States.

Quarterly changes of the rate of inflation, 1959 to 2009 (statsmodels' macrodata), y_t ~ N(0,
exp(h_t)), h_t = mu + phi (h_{t-1} - mu) + sigma e_t. A particle filter in NumPy estimates the
likelihood of (mu, phi, sigma) without bias; `ScoreHMC` keeps the estimate of the point it is at, so
its posterior is exact. Beside it the truth: NUTS on the parameters and all 202 values of h.

    python examples/pseudo_marginal.py            (files in output/pseudo_marginal)
"""

import argparse
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import statsmodels.api as sm
from matplotlib.figure import Figure
from numpyro.infer import MCMC, NUTS, init_to_median

import implicitppl as ip

mpl.use("Agg")
Y = np.diff(sm.datasets.macrodata.load_pandas().data["infl"])
SITES, PARTICLES = ["mu", "phi", "sigma"], 300


def log_likelihood(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """Return the log of an unbiased estimate of p(y | theta), by a bootstrap particle filter."""
    mu, phi, sigma = theta.tolist()
    h = mu + sigma / np.sqrt(1 - phi**2) * rng.standard_normal(PARTICLES)
    total = -0.5 * len(Y) * np.log(2 * np.pi)
    for y in Y:
        log_weight = -0.5 * (h + y**2 * np.exp(-h))
        top = log_weight.max()
        cumulative = np.cumsum(np.exp(log_weight - top))
        total += top + np.log(cumulative[-1] / PARTICLES)
        at = (np.arange(PARTICLES) + rng.random()) / PARTICLES * cumulative[-1]
        kept = h[np.minimum(np.searchsorted(cumulative, at), PARTICLES - 1)]
        h = mu + phi * (kept - mu) + sigma * rng.standard_normal(PARTICLES)
    return np.asarray(total)


def parameters() -> list[jax.Array]:
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    phi = numpyro.deterministic("phi", 2 * numpyro.sample("half", dist.Beta(20.0, 1.5)) - 1)
    return [mu, phi, numpyro.sample("sigma", dist.HalfNormal(0.5))]


def filtered() -> None:
    """The model with h integrated out on the host."""
    theta, key = jnp.stack(parameters()), numpyro.prng_key()
    estimate = ip.models.black_box("log_likelihood", log_likelihood, theta, out=(), key=key)
    numpyro.factor("y", estimate)


def explicit() -> None:
    """The same with the noise of h among the latent sites."""
    mu, phi, sigma = parameters()
    e = numpyro.sample("e", dist.Normal(0.0, 1.0).expand(Y.shape).to_event(1))
    scale = jnp.full(Y.shape, sigma).at[0].divide(jnp.sqrt(1 - phi**2))
    steps = (jnp.full(Y.shape, phi), scale * e)  # maps x -> phi x + scale e, composed
    _, h = jax.lax.associative_scan(lambda f, g: (f[0] * g[0], g[0] * f[1] + g[1]), steps)
    numpyro.sample("y", dist.Normal(0.0, jnp.exp((mu + h) / 2)).to_event(1), obs=Y)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/pseudo_marginal"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="100 iterations instead of 1000")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    num = 100 if args.quick else 1000
    score_hmc = ip.infer.ScoreHMC(filtered, init_strategy=init_to_median())
    nuts = NUTS(explicit, init_strategy=init_to_median())
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for kernel, warmup, colour in ((score_hmc, min(num, 300), "#3b6fb6"), (nuts, num, "#d1560f")):
        options = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=warmup, num_samples=num, **options)
        mcmc.run(jax.random.key(args.seed))
        name, draws = type(kernel).__name__, mcmc.get_samples()
        idata = ip.diagnostics.to_arviz(mcmc, log_likelihood=False, posterior_predictive=False)
        print(f"{name}\n{az.summary(idata, var_names=SITES).to_string()}\n")
        for a, site in zip(axes, SITES, strict=True):
            x = np.asarray(draws[site])
            bins = np.linspace(*np.quantile(x, [0.0025, 0.9975]), 26)
            a.hist(x, bins, density=True, histtype="step", color=colour, lw=1.6, label=name)
            a.set(xlabel=site, yticks=[])
        if kernel is score_hmc:
            state = mcmc.last_state
            noise = ", ".join(f"{v:.2f}" for v in state.noise_variance)
            print(f"{int(state.num_evaluations.sum())} filters; variance of the noise: {noise}\n")
    axes[0].legend(frameon=False)
    figure.savefig(args.out / "marginals.png", dpi=120)
    print(f"files are in {args.out}/")


if __name__ == "__main__":
    main()
