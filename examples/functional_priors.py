"""Did the flow of the Nile change at once or slowly? What is asked is decided by the prior.

    python examples/functional_priors.py          (picture in output/functional_priors)

One Bayesian network is trained twice on the yearly flow at Aswan, 1871 to 1970, by the functional
ELBO: under a prior of steps, constant between random years, and under a Gaussian process. A prior
of steps has no density; only draws of it are used. Its posterior is known all the same, since
steps with fresh levels are a Markov chain along the years: forward and backward sums over levels
give it exactly, beside the network's.

Under the Gaussian process the network comes close to the exact posterior. Under steps it jumps near
the right year, but less sharply, and jumps where the exact posterior does not: the divergence
compares means and covariances, and in these a prior of steps is like any rough curve.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
from statsmodels.datasets import nile

from implicitppl.divergences import GaussianKL, UniformBox
from implicitppl.gp import GaussianProcess, ProcessFitResult, fit
from implicitppl.infer import FunctionalELBO, function_posterior, predict
from implicitppl.kernels import RBF
from implicitppl.processes import BayesianNetwork, ParametricProcess, PiecewiseConstant

LEVELS, FUNCTIONS = 200, 300
FLOW = (700.0, 1250.0)  # range of the levels, 10^8 m^3 a year
JUMPS, FLOW_NOISE = 1.0, 128.0  # near the maximum of the exact evidence, as is the range
UNITS, SHARP, SLOPE = 8, 60.0, 0.15


class Exact(NamedTuple):
    """An exact posterior of a function on a grid of G points.

    Attributes:
        mean, deviation: (G,) of f on the grid.
        draws: (S, G).
        log_evidence: in nats.
    """

    mean: np.ndarray
    deviation: np.ndarray
    draws: np.ndarray
    log_evidence: float


def steps_posterior(
    x: np.ndarray,
    y: np.ndarray,
    noise: float,
    grid: np.ndarray,
    rate: float,
    levels: tuple[float, float],
    num_draws: int = FUNCTIONS,
) -> Exact:
    """Return the posterior of a function with `rate` jumps per unit of x, on a grid.

    From a point to the next the level stays with probability exp(-rate distance), and is uniform
    otherwise: the prior of `PiecewiseConstant`, with levels in steps of a 200th of their range.
    """
    every = np.union1d(x, grid)
    values = levels[0] + (np.arange(LEVELS) + 0.5) / LEVELS * (levels[1] - levels[0])
    log_seen = np.zeros((len(every), LEVELS))
    for place, value in zip(np.searchsorted(every, x), y, strict=True):
        z = (value - values) / noise
        log_seen[place] -= 0.5 * z**2 + math.log(noise) + 0.5 * math.log(2 * math.pi)
    top = log_seen.max(axis=1)
    seen, stay = np.exp(log_seen - top[:, None]), np.exp(-rate * np.diff(every))
    forward, backward = np.empty_like(seen), np.ones_like(seen)
    log_evidence, before = float(top.sum()), np.full(LEVELS, 1 / LEVELS)
    for i in range(len(every)):
        if i:
            before = stay[i - 1] * forward[i - 1] + (1 - stay[i - 1]) / LEVELS
        total = float(np.sum(before * seen[i]))
        forward[i], log_evidence = before * seen[i] / total, log_evidence + math.log(total)
    for i in range(len(every) - 2, -1, -1):
        after = backward[i + 1] * seen[i + 1]
        after = stay[i] * after + (1 - stay[i]) * after.mean()
        backward[i] = after / after.max()
    posterior = forward * backward
    posterior /= posterior.sum(axis=1, keepdims=True)
    mean = posterior @ values
    deviation = np.sqrt(posterior @ values**2 - mean**2)
    at = np.searchsorted(every, grid)
    draws = values[_paths(forward, stay, num_draws)]
    return Exact(mean[at], deviation[at], draws[:, at], log_evidence)


def _paths(forward: np.ndarray, stay: np.ndarray, num_draws: int) -> np.ndarray:
    """Return levels drawn from the last point back to the first, (S, T)."""
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(forward, axis=1)

    def fresh(i: int) -> np.ndarray:
        return np.minimum(np.searchsorted(cumulative[i], rng.random(num_draws)), LEVELS - 1)

    found = np.empty((num_draws, len(forward)), int)
    found[:, -1] = fresh(-1)
    for i in range(len(forward) - 2, -1, -1):
        same = stay[i] * forward[i, found[:, i + 1]]
        stays = rng.random(num_draws) * (same + (1 - stay[i]) / LEVELS) < same
        found[:, i] = np.where(stays, found[:, i + 1], fresh(i))
    return found


class OnFeatures(ParametricProcess):
    """A network of fixed features of the inputs."""

    network: BayesianNetwork
    features: Callable[[Array], Array] = eqx.field(static=True)

    def function(self, key: PRNGKeyArray) -> Callable[[Array], Array]:
        """Return one function, asked at the features."""
        values = self.network.function(key)
        return lambda x: values(self.features(x))


def sharpened(x: Array) -> Array:
    """Return inputs in units of a fiftieth of their range, so that units can become sharp."""
    return SHARP * x


def step_network(key: PRNGKeyArray) -> OnFeatures:
    """Return one layer of a few units, their places spread over the years, and not yet sharp.

    A network of eight tanh units can hold few steps and no wiggles: what single draws look like is
    decided here, since the divergence compares moments. Units that are sharp at once do not move.
    """
    network = BayesianNetwork(1, UNITS, 1, key=key, activation=jnp.tanh, initial_scale=math.exp(-3))
    slopes = jnp.full_like(network.layers[0].weight, SLOPE)
    places = -SLOPE * SHARP * jnp.linspace(-0.9, 0.9, UNITS)
    return OnFeatures(
        eqx.tree_at(lambda n: (n.layers[0].weight, n.layers[0].bias), network, (slopes, places)),
        sharpened,
    )


def learn(
    prior: Any,
    network: ParametricProcess,
    data: tuple[np.ndarray, np.ndarray],
    noise: float,
    loss: FunctionalELBO,
    num_steps: int,
) -> Any:
    """Return the trained guide's process; the network works in float32, its divergence in 64."""
    x, y = (jnp.asarray(a, jnp.float32) for a in data)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network)

    def model(x: Array, y: Array) -> None:
        f = numpyro.sample("f", prior(x))
        numpyro.sample("y", dist.Normal(f, noise).to_event(1), obs=y)

    def guide(x: Array, y: Array) -> None:
        numpyro.sample("f", eqx_module("q", start)(x))

    optim = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
    svi = SVI(model, guide, optim, loss)
    result = svi.run(jax.random.key(0), num_steps, x, y, progress_bar=False)
    return function_posterior(guide, result.params, x, y)["f"]


def nile_flow() -> tuple[np.ndarray, np.ndarray]:
    """Return years and the flow of each, 10^8 m^3."""
    table = nile.load_pandas().data
    return table["year"].to_numpy(float), table["volume"].to_numpy(float)


class Standard(NamedTuple):
    """A series in its own standard deviations, and where it lies."""

    x: np.ndarray
    y: np.ndarray
    centre: float
    scale: float


def standard(times: np.ndarray, values: np.ndarray) -> Standard:
    """Return times on [-1, 1] and values with mean 0 and deviation 1."""
    centre, scale = float(values.mean()), float(values.std())
    x = 2 * (times - times[0]) / (times[-1] - times[0]) - 1
    return Standard(x, (values - centre) / scale, centre, scale)


def curve_posterior(found: ProcessFitResult, s: Standard, grid: np.ndarray) -> Exact:
    """Return the posterior of the fitted Gaussian process."""
    values = found.process.condition(s.x, s.y, found.noise_scale)(grid)
    return Exact(
        np.asarray(values.mean),
        np.sqrt(np.asarray(values.variance)),
        np.asarray(values.sample(jax.random.key(2), (FUNCTIONS,))),
        float(found.log_evidence),
    )


def steps_or_curve(num_steps: int, out: Path) -> None:
    """Train on the Nile under both priors, compare with the exact posteriors, and draw them."""
    years, flow = nile_flow()
    s = standard(years, flow)
    low, high = ((level - s.centre) / s.scale for level in FLOW)
    grid = np.linspace(-1, 1, 3 * (len(years) - 1) + 1)
    noise = FLOW_NOISE / s.scale
    exact_steps = steps_posterior(s.x, s.y, noise, grid, JUMPS / 2, (low, high))
    smooth = fit(GaussianProcess(RBF(0.5)), s.x, s.y, 0.7)
    cases = {
        "steps": (
            PiecewiseConstant(-1, 1, JUMPS, location=low, scale=high - low),
            noise,
            exact_steps,
        ),
        "a smooth curve": (
            smooth.process,
            float(smooth.noise_scale),
            curve_posterior(smooth, s, grid),
        ),
    }
    loss = FunctionalELBO(UniformBox(10, -1, 1), GaussianKL(0.05), num_particles=150)
    shown = {}
    for name, (prior, sigma, exact) in cases.items():
        guide = step_network(jax.random.key(0))
        process = learn(prior, guide, (s.x[:, None], s.y), sigma, loss, num_steps)
        points = jnp.asarray(grid, jnp.float32)
        sample = np.asarray(predict(process, jax.random.key(1), points, FUNCTIONS).values)
        gap = np.abs(sample.mean(axis=0) - exact.mean) / exact.deviation
        ratio = sample.std(axis=0) / exact.deviation
        print(f"prior of {name}: exact log evidence {exact.log_evidence:.1f}; mean of the network")
        print(
            f"  off by {np.sqrt(np.mean(gap**2)):.2f} exact standard deviations (root mean square),"
        )
        print(
            f"  its standard deviations {ratio.min():.2f} to {ratio.max():.2f} times the exact ones"
        )
        shown[name] = s.centre + s.scale * np.stack([exact.draws, sample])
    draw_nile(years, flow, years[0] + (grid + 1) / 2 * (years[-1] - years[0]), shown, out)


def draw_nile(
    years: np.ndarray,
    flow: np.ndarray,
    grid: np.ndarray,
    shown: dict[str, np.ndarray],
    out: Path,
) -> None:
    """Write a column for each prior: functions of the exact posterior, above those of the guide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, len(shown), sharex=True, sharey=True)
    for column, (name, pair) in zip(axes.T, shown.items(), strict=True):
        for axis, draws, who in zip(column, pair, ("exact", "network"), strict=True):
            low, high = np.quantile(draws, [0.025, 0.975], axis=0)
            axis.fill_between(grid, low, high, color="#3b6fb6", alpha=0.2, lw=0)
            axis.plot(grid, draws[:8].T, color="#3b6fb6", lw=0.6, alpha=0.8)
            axis.plot(grid, draws.mean(axis=0), color="#d1560f", lw=1.6, label="mean")
            axis.plot(years, flow, ".", color="0.5", ms=4)
            axis.set_title(f"prior of {name}: {who} posterior")
    for axis in axes[:, 0]:
        axis.set_ylabel("flow, 10^8 m^3 a year")
    axes[0, 0].legend(frameon=False)
    figure.savefig(out / "nile.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/functional_priors"))
    parser.add_argument("--quick", action="store_true", help="20 steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    num_steps = 20 if args.quick else 1500
    steps_or_curve(num_steps, args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
