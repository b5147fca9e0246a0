"""How sure is a kernel? A posterior over kernel networks for the sunspots, sampled by NUTS.

    python examples/kernel_posterior.py       (a minute or two; picture in output/kernel_posterior)

Yearly sunspot numbers, square roots: 70 years to learn from, 30 to predict. One network of kernels
is fitted by maximum likelihood; the other time all of its parameters have priors and are sampled.
Many weights give the same kernel, so that R-hat of weights means nothing: it is that of the
kernel's values at a few pairs of years.
"""

import argparse
import functools
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import statsmodels.api as sm
from numpyro.distributions import HalfNormal, LogNormal
from numpyro.infer import MCMC, NUTS, init_to_median

from implicitppl.distributions import kernel_at, random_kernel
from implicitppl.gp import GaussianProcess, fit
from implicitppl.kernels import RBF, Linear, NeuralKernelNetwork, Periodic, RationalQuadratic

FIRST, LEARN, PREDICT = 1900, 70, 30
YEARS = 20.0  # a unit of time
CYCLE = 11.0 / YEARS
LAGS = np.array([0.0, 1.0, 5.5, 11.0, 22.0]) / YEARS


def sunspots() -> tuple[np.ndarray, np.ndarray]:
    """Return years and square roots of numbers."""
    table = sm.datasets.sunspots.load_pandas().data
    return table["YEAR"].to_numpy(), np.sqrt(table["SUNACTIVITY"].to_numpy())


@functools.cache  # made once and outside of any trace: inside, every gradient would make it anew
def network(seed: int = 0) -> NeuralKernelNetwork:
    """Return the kernel to start from: sums of products of two of four primitives."""
    primitives = (Periodic(1.0, period=CYCLE), RBF(1.0), RationalQuadratic(0.5), Linear(0.3))
    kernel = NeuralKernelNetwork.from_widths(primitives, (4,), key=jax.random.key(seed))
    return kernel.with_variance(jnp.linspace(-1.75, 1.75, LEARN)[:, None])


def model(x, y=None):
    # The scale of a primitive is that of its weights: held at 1. The cycle is 11 years or so.
    prior = {f"primitives[{i}].variance": 1.0 for i in range(4)}
    prior["primitives[0].period"] = LogNormal(np.log(CYCLE), 0.1)
    kernel = random_kernel("k", network(), prior)
    noise = numpyro.sample("noise", HalfNormal(0.5))
    numpyro.sample("y", GaussianProcess(kernel)(x, noise), obs=y)


def kernel_of(draw):
    # What `model` holds fixed at 1 starts at 1 in `network`, but for the linear primitive.
    held = {f"k/primitives[{i}].variance": 1.0 for i in range(4)}
    return kernel_at(network(), {**held, **draw}, "k")


@jax.jit
@jax.vmap
def values_at_pairs(draw):
    origin = jnp.zeros(1)
    return jnp.stack([kernel_of(draw)(origin, origin + lag) for lag in LAGS])


def predict(draw, x, y, ahead):
    values = GaussianProcess(kernel_of(draw)).condition(x, y, draw["noise"])(ahead, draw["noise"])
    return values.mean, values.variance


def draw_picture(year, y, ahead, truth, bands, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, (low, mean, high)) in zip(axes, bands.items(), strict=True):
        axis.plot(year, y, "k.-", lw=0.6, ms=3)
        axis.plot(ahead, truth, "o", ms=3, mfc="none", mec="k")
        axis.plot(ahead, mean, color="#d1560f")
        axis.fill_between(ahead, low, high, color="#d1560f", alpha=0.2, lw=0)
        axis.set(title=name, xlabel="year")
    axes[0].set_ylabel("square root of sunspots")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/kernel_posterior"))
    parser.add_argument("--quick", action="store_true", help="40 draws of 2 chains")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    numpyro.enable_x64()
    year, raw = sunspots()
    rows = (year >= FIRST) & (year < FIRST + LEARN)
    later = (year >= FIRST + LEARN) & (year < FIRST + LEARN + PREDICT)
    centre, scale = raw[rows].mean(), raw[rows].std()
    x, y = (year[rows] - FIRST - LEARN / 2) / YEARS, (raw[rows] - centre) / scale
    ahead = (year[later] - FIRST - LEARN / 2) / YEARS

    starts = [GaussianProcess(network(seed)) for seed in range(1 if args.quick else 3)]
    fits = [fit(gp, x, y, 0.3, num_steps=100 if args.quick else 500) for gp in starts]
    best = max(fits, key=lambda found: float(found.log_evidence))
    values = best.process.condition(x, y, best.noise_scale)(ahead, best.noise_scale)
    print(f"maximum likelihood, log evidence {float(best.log_evidence):.1f}:")
    print(best.process.kernel.formula(x[:, None], min_share=0.03))

    num, chains = (40, 2) if args.quick else (500, 4)
    kernel = NUTS(model, init_strategy=init_to_median(num_samples=50))
    mcmc = MCMC(kernel, num_warmup=num, num_samples=num, num_chains=chains,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(1), x, y)
    draws = mcmc.get_samples()
    pairs = np.asarray(values_at_pairs(draws)).reshape(chains, num, -1)
    rhat = [float(az.rhat(pairs[..., i])) for i in range(len(LAGS))]
    print(f"R-hat of the kernel at lags of {YEARS * LAGS} years: {np.round(rhat, 3)}")

    means, variances = jax.jit(jax.vmap(lambda d: predict(d, x, y, ahead)))(draws)
    noise = jax.random.normal(jax.random.key(2), means.shape)
    simulated = np.asarray(means + jnp.sqrt(variances) * noise)
    spread = 1.645 * jnp.sqrt(values.variance)
    bands = {
        "one kernel (maximum likelihood)": (
            values.mean - spread,
            values.mean,
            values.mean + spread,
        ),
        f"{chains * num} kernels (NUTS)": tuple(np.quantile(simulated, [0.05, 0.5, 0.95], axis=0)),
    }
    truth = (raw[later] - centre) / scale
    for name, (low, _, high) in bands.items():
        inside = np.mean((truth >= low) & (truth <= high))
        width = float(np.mean(high - low))
        print(f"{name}: {inside:.0%} of {PREDICT} years in intervals of 90%, width {width:.2f} sd")
    units = {
        name: tuple(centre + scale * np.asarray(b) for b in band) for name, band in bands.items()
    }
    draw_picture(year[rows], raw[rows], year[later], raw[later], units, args.out / "sunspots.png")
    print(f"picture: {args.out}/sunspots.png")


if __name__ == "__main__":
    main()
