r"""Functional variational inference of the peers' network, under the prior of the exact process.

The guide is a network of one hidden layer of 50 ReLU units with independent normal weights (row
"fBNN, sine": 200 sine units), or that network made linear in them around their means (row "GFSVI"),
a Gaussian process; the prior of the function is the RBF-ARD process of the highest evidence,
learned first, as the row "GP" has it. Noise has the peers' prior and a log-normal guide.

    E_q[log p(y | f, s) - log q(s)/p(s)] - KL[q(f(X)) || p(f(X))],  X = rows of a batch and M points

The divergence is that of Gaussian moments, in float64: of the network they are those of particles,
of its expansion they are exact. Functions are float32.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI

import implicitppl as ip
from benchmarks.functional.gp import (
    ACTIVATIONS,
    NOISE_PRIOR,
    NUM_DRAWS,
    WIDTH,
    Prediction,
    adam,
    fit_process,
)
from benchmarks.gp.data import Split
from benchmarks.gp.methods import Settings
from implicitppl.divergences import DataNoise, RegularizedKL
from implicitppl.infer import FunctionalELBO, function_posterior, predict

NOISE_LOG_SD = 0.1
"""Posterior standard deviation of the log noise at the start."""
EXTRA = 300
"""Particles beyond the number of points, for the objective at all rows."""


class Functional(NamedTuple):
    """How a functional fit runs.

    Attributes:
        num_steps, learning_rate: of Adam; the rate falls as a cosine to 0.
        batch_size: rows of a step; all where there are fewer.
        num_measured: M, inputs with noise of half their spread, anew at every step.
        num_particles: S, more than there are points.
        initial_scale: posterior standard deviation of every weight at the start.
        noise: added to both sides of the divergence, in units of the prior's sd.
        divergence: of guide and prior.
        weight: of the divergence.
        initial_noise: of the likelihood, at the start. At the process's noise the first gradients
            are so large that Adam, whose second moments remember a thousand steps, hardly moves the
            noise to the end: on energy it ended at twice the residuals.
        process: how the prior is fitted.
        activation, width: of the hidden units, one of `ACTIVATIONS`, and their number.
        guide: "network", or "linearised": its expansion around the mean weights, whose moments are
            exact, so that few particles do.
        strength: g of the divergence "regularized", which has this in place of `noise`.
        num_fits: trained apart, from other starts; the posterior is their mixture, with equal
            weights. KL is convex, so the objective of the mixture is no less than their mean.
    """

    num_steps: int
    learning_rate: float
    batch_size: int
    num_measured: int
    num_particles: int
    initial_scale: float
    noise: float
    divergence: str = "gaussian"
    weight: float | str = 1.0
    initial_noise: float = 0.5
    process: Settings = Settings(200, 0.1)
    activation: str = "relu"
    width: int = WIDTH
    guide: str = "network"
    strength: float = 1e-8
    num_fits: int = 1


def programs(size: int, settings: Functional, start: Any, prior: Any) -> Any:
    """Return model and guide of `size` rows; both take inputs, outputs and least noise."""
    batch = min(settings.batch_size, size)

    def model(x: jax.Array, y: jax.Array, floor: jax.Array) -> None:
        data = numpyro.plate("data", size, subsample_size=batch)
        with data as rows:
            points, outputs = x[rows], y[rows]
        f = numpyro.sample("f", prior(points))
        sd = floor + numpyro.sample("noise", dist.LogNormal(*NOISE_PRIOR))
        with data:
            numpyro.sample("y", dist.Normal(f, sd), obs=outputs)

    def guide(x: jax.Array, y: jax.Array, floor: jax.Array) -> None:
        with numpyro.plate("data", size, subsample_size=batch) as rows:
            points = x[rows]
        numpyro.sample("f", eqx_module("q", start)(points))
        loc = numpyro.param("noise_loc", jnp.log(settings.initial_noise))
        scale = numpyro.param("noise_scale", NOISE_LOG_SD, constraint=dist.constraints.positive)
        numpyro.sample("noise", dist.LogNormal(loc, scale))

    return model, guide


def network(key: jax.Array, num_inputs: int, settings: Functional) -> ip.processes.Process:
    """Return the guide's process in float32, as it starts."""
    found = ip.processes.BayesianNetwork(
        num_inputs,
        settings.width,
        key=key,
        activation=ACTIVATIONS[settings.activation],
        initial_scale=settings.initial_scale,
    )
    found = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)
    return ip.processes.LinearizedNetwork(found) if settings.guide == "linearised" else found


def loss_of(settings: Functional) -> FunctionalELBO:
    """Return the objective."""
    regularized = settings.divergence == "regularized"
    return FunctionalELBO(
        DataNoise(settings.num_measured),
        RegularizedKL(settings.strength) if regularized else settings.divergence,
        settings.weight,
        num_particles=settings.num_particles,
        noise=None if regularized else settings.noise,
    )


@eqx.filter_jit
def train(
    key: jax.Array, x: jax.Array, y: jax.Array, floor: jax.Array, prior: Any, settings: Functional
) -> Any:
    """Return the guide's parameters after all steps, and the losses."""
    keys = jax.random.split(key)
    start = network(keys[0], x.shape[1], settings)
    model, guide = programs(len(y), settings, start, prior)
    optim = adam(settings.num_steps, settings.learning_rate)
    svi = SVI(model, guide, optim, loss_of(settings))
    state = svi.init(keys[1], x, y, floor)
    state, losses = jax.lax.scan(
        lambda s, _: svi.update(s, x, y, floor), state, xs=None, length=settings.num_steps
    )
    return svi.get_params(state), losses


@eqx.filter_jit
def objective(
    params: Any, x: jax.Array, y: jax.Array, floor: jax.Array, prior: Any, settings: Functional
) -> jax.Array:
    """Return minus the loss at all rows, with its weight; from more particles than points.

    It is a bound where the weight is 1.
    """
    size = len(y)
    particles = size + settings.num_measured + EXTRA
    whole = settings._replace(batch_size=size, num_particles=particles)
    key = jax.random.key(0)
    model, guide = programs(size, whole, network(key, x.shape[1], whole), prior)
    return -loss_of(whole).loss(key, params, model, guide, x, y, floor)


def fitted(
    split: Split, prior: Any, settings: Functional, floor: float, key: jax.Array
) -> tuple[Any, Prediction]:
    """Return the guide's parameters, and its share of the draws from the trained guide."""
    x, y, x_test = (jnp.asarray(a, jnp.float32) for a in (split.x, split.y, split.x_test))
    begin = time.process_time()
    least, keys = jnp.asarray(floor, x.dtype), jax.random.split(key, 3)
    params = jax.block_until_ready(train(keys[0], x, y, least, prior, settings)[0])
    info = {"train_seconds": time.process_time() - begin}
    guide = programs(len(y), settings, network(keys[0], x.shape[1], settings), prior)[1]
    posterior = function_posterior(guide, params, x, y, least)["f"]
    num_draws = NUM_DRAWS // settings.num_fits
    values = predict(posterior, keys[1], x_test, num_draws).values
    noise = dist.LogNormal(params["noise_loc"], params["noise_scale"])
    sd = np.asarray(floor + noise.sample(keys[2], (num_draws, 1)), float)
    info |= {"noise_sd": float(sd.mean()), "posterior_sd": float(np.median(values.std(axis=0)))}
    return params, Prediction(np.asarray(values, float), sd, info)


def mixture(parts: Sequence[Prediction]) -> Prediction:
    """Return the predictions of all fits together; seconds are added, other figures averaged."""
    info = {}
    for name in parts[0].info:
        over_fits = np.sum if name.endswith("seconds") else np.mean
        info[name] = float(over_fits([part.info[name] for part in parts]))
    mean, sd = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    return Prediction(mean, sd, info)


def ours(split: Split, settings: Functional, floors: Sequence[float]) -> dict[float, Prediction]:
    """Return predictions of functional inference under the process of the highest evidence."""
    x, y = (jnp.asarray(a, jnp.float32) for a in (split.x, split.y))
    begin = time.process_time()
    prior = fit_process(split, settings.process).process
    prior_seconds, found = time.process_time() - begin, {}
    first = jax.random.key(split.seed)
    others = [jax.random.fold_in(first, i) for i in range(1, settings.num_fits)]
    for floor in floors:
        parts = []
        for key in (first, *others):
            params, result = fitted(split, prior, settings, floor, key)
            value = objective(params, x, y, jnp.asarray(floor, x.dtype), prior, settings)
            parts.append(result._replace(info=result.info | {"objective_all_rows": float(value)}))
        result = mixture(parts)
        found[floor] = result._replace(info=result.info | {"prior_seconds": prior_seconds})
    return found
