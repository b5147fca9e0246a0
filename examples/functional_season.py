"""Two years of CO2 foretold by a network that was told: there is a trend, and a season.

    python examples/functional_season.py     (picture and functions in output/functional_season)

Six years of monthly means at Mauna Loa. A Gaussian process of trend, wave and season learns its
kernel from them; under this prior over functions a Bayesian network is trained by the functional
ELBO, which compares the two also in the two years that follow. The exact posterior stands beside.

The guide is a sum as the prior is. A line; one layer of Gaussian bumps along the time, which is
what a wave of an RBF kernel is made of; and tanh units of the phase of the learned period, since
such units of the time alone never repeat. One network of time and phase fits the six years as well,
and is then far too sure of the two that follow.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, PRNGKeyArray
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI
from statsmodels.datasets import co2

from implicitppl.diagnostics import to_arviz
from implicitppl.divergences import GaussianKL, UniformBox
from implicitppl.gp import GaussianProcess, ProcessFitResult, fit
from implicitppl.infer import FunctionalELBO, FunctionSamples, function_posterior, predict
from implicitppl.kernels import RBF, Linear, Periodic
from implicitppl.processes import BayesianNetwork, ParametricProcess

FITTED, AHEAD = 72, 24
SPACING = 0.65
NOISE = 0.1  # of CO2, where its learning starts, in standard deviations of what is fitted


class OnFeatures(ParametricProcess):
    """A network of fixed features of the inputs."""

    network: BayesianNetwork
    features: Callable[[Array], Array] = eqx.field(static=True)

    def function(self, key: PRNGKeyArray) -> Callable[[Array], Array]:
        """Return one function, asked at the features."""
        values = self.network.function(key)
        return lambda x: values(self.features(x))


def seasonal(period: float) -> OnFeatures:
    """Return tanh units of the phase."""

    def phase(time: Array) -> Array:
        angle = 2 * math.pi / period * time
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)

    network = BayesianNetwork(
        2, 30, key=jax.random.key(0), activation=jnp.tanh, initial_scale=math.exp(-5)
    )
    return OnFeatures(network, phase)


def bump(u: Array) -> Array:
    """Return a Gaussian bump."""
    return jnp.exp(-0.5 * u * u)


def wave(kernel: RBF, span: float) -> OnFeatures:
    """Return bumps along the time whose prior is nearly that of the kernel.

    Bumps of deviation l / sqrt(2), `spacing` of these apart, with independent weights of variance
    v spacing / sqrt(pi).
    """
    unit = float(kernel.lengthscale) / math.sqrt(2)
    places = jnp.arange(-1.0, span / unit + 1 + SPACING, SPACING)
    network = BayesianNetwork(
        1, len(places), key=jax.random.key(1), activation=bump, initial_scale=math.exp(-5)
    )
    scale = math.sqrt(float(kernel.variance) * SPACING / math.sqrt(math.pi))
    old = network.layers
    new = (
        jnp.ones_like(old[0].weight),
        -places,
        jnp.full_like(old[1].weight_log_scale, math.log(scale)),
    )
    network = eqx.tree_at(
        lambda n: (n.layers[0].weight, n.layers[0].bias, n.layers[1].weight_log_scale), network, new
    )
    return OnFeatures(network, lambda time: time / unit)


def months() -> tuple[np.ndarray, np.ndarray]:
    """Return years and CO2 in ppm of the last months, without those that are missing."""
    table = co2.load_pandas().data["co2"].resample("MS").mean().dropna()[-FITTED - AHEAD :]
    years = table.index.year + (table.index.month - 0.5) / 12
    return years.to_numpy(float), table.to_numpy(float)


def train(prior: ProcessFitResult, x: np.ndarray, y: np.ndarray, num_steps: int) -> FunctionSamples:
    """Return functions of the trained network at all times x; y are the first of them."""
    kernel, noise, span = prior.process.kernel, float(prior.noise_scale), float(x[-1])
    line = BayesianNetwork(1, 1, 0, key=jax.random.key(2), initial_scale=math.exp(-3))
    q = line + wave(kernel.first.second, span) + seasonal(float(kernel.second.period))
    # float32 for the networks; the divergence is computed in float64, where that is on.
    q = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), q)
    times, seen = (jnp.asarray(a, jnp.float32) for a in (x[:, None], y))

    def model(x: Array, y: Array) -> None:
        f = numpyro.sample("f", prior.process(x))
        numpyro.sample("y", dist.Normal(f, noise).to_event(1), obs=y)

    def guide(x: Array, y: Array) -> None:
        numpyro.sample("f", eqx_module("q", q)(x))

    loss = FunctionalELBO(UniformBox(24, 0, x[-1]), GaussianKL(0.002), num_particles=120)
    optim = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
    data = times[: len(y)], seen
    result = SVI(model, guide, optim, loss).run(
        jax.random.key(0), num_steps, *data, progress_bar=False
    )
    print(loss.report(jax.random.key(1), result.params, model, guide, *data))
    return predict(function_posterior(guide, result.params, *data)["f"], jax.random.key(2), times)


def draw(
    years: np.ndarray, ppm: np.ndarray, means: np.ndarray, deviations: np.ndarray, out: Path
) -> None:
    """Write a panel for the exact posterior and one for the network's, with 95% intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, mean, deviation, name in zip(
        axes, means, deviations, ("exact Gaussian process", "network"), strict=True
    ):
        low, high = mean - 1.96 * deviation, mean + 1.96 * deviation
        axis.fill_between(years, low, high, color="#d1560f", alpha=0.25, lw=0)
        axis.plot(years, mean, color="#d1560f", lw=1.2, label="mean, 95% with noise")
        axis.plot(years[:FITTED], ppm[:FITTED], ".", color="0.5", ms=4, label="fitted")
        axis.plot(years[FITTED:], ppm[FITTED:], ".", color="black", ms=4, label="what came")
        axis.set(title=name, xlabel="year")
    axes[0].set_ylabel("CO2, ppm")
    axes[0].legend(frameon=False, loc="upper left")
    figure.savefig(out / "co2.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/functional_season"))
    parser.add_argument("--quick", action="store_true", help="20 steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)

    years, ppm = months()
    centre, scale = float(ppm[:FITTED].mean()), float(ppm[:FITTED].std())
    x, y = years - years[0], (ppm[:FITTED] - centre) / scale
    kernel = Linear() + RBF(3.0) + Periodic(1.0, period=1.0)
    prior = fit(GaussianProcess(kernel), x[:FITTED], y, NOISE, num_steps=60 if args.quick else 300)
    values = prior.process.condition(x[:FITTED], y, prior.noise_scale)(x)
    exact = np.stack([np.asarray(values.mean), np.sqrt(np.asarray(values.variance))])
    found = train(prior, x, y, 20 if args.quick else 1500)
    mean, deviation = np.asarray(found.mean), np.sqrt(np.asarray(found.variance))
    gap, ratio = np.abs(mean - exact[0]) / exact[1], deviation / exact[1]
    print(f"log evidence of the exact posterior {float(prior.log_evidence):.1f}")
    for name, part in {"fitted": slice(0, FITTED), "foretold": slice(FITTED, None)}.items():
        print(f"months {name}: the network's mean is within {gap[part].max():.2f} exact standard")
        print(f"  deviations; its own are {ratio[part].min():.2f} to {ratio[part].max():.2f} times")
    means = centre + scale * np.stack([exact[0], mean])
    spread = np.square(np.stack([exact[1], deviation])) + float(prior.noise_scale) ** 2
    draw(years, ppm, means, scale * np.sqrt(spread), args.out)
    # Standardised functions by date, for ArviZ or xarray.
    functions = to_arviz({"co2": found}, coords={"co2_point": years})
    functions.to_netcdf(args.out / "functions.nc")
    print(f"picture and functions: {args.out}")


if __name__ == "__main__":
    main()
