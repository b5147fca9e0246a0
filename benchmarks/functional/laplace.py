r"""A Laplace posterior over functions of the peers' network, under the prior of the exact process.

FSP-Laplace of Cinquin et al. (2024), arXiv 2407.13711, from its formulas, not the authors' code.
The mode of weights and noise minimises, over points C,

    -sum_i log N(y_i; f_w(x_i), s^2) - log p(s) + 1/2 f_w(C)' (K_CC + e I)^-1 f_w(C);

the posterior is that of the network made linear in its weights around the mode. With J its
Jacobian, their precision is J_X' J_X / s^2 + J_C' (K_CC + e I)^-1 J_C. Its small eigenvalues belong
to directions that neither data nor prior see at C: as there, they are left out from where the
posterior's variance would exceed the prior's at a point of C.

C are all rows and as many points again with noise of half their spread, drawn once, where the paper
draws them anew at every step; e is relative to the prior's variance.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve, solve_triangular

from benchmarks.functional.gp import NOISE_PRIOR, NUM_DRAWS, WIDTH, Prediction, adam, fit_process
from benchmarks.gp.data import Split
from benchmarks.gp.methods import Settings
from implicitppl.divergences import DataNoise
from implicitppl.processes import BayesianNetwork


class Laplace(NamedTuple):
    """How a Laplace fit runs.

    Attributes:
        num_steps, learning_rate: of Adam on all rows; the rate falls as a cosine to 0.
        jitter: e, relative to the prior's variance.
        initial_noise: of the likelihood.
        process: how the prior is fitted.
    """

    num_steps: int
    learning_rate: float
    jitter: float
    initial_noise: float = 0.5
    process: Settings = Settings(200, 0.1)


@eqx.filter_jit
def mode(
    network: BayesianNetwork,
    x: jax.Array,
    y: jax.Array,
    points: jax.Array,
    factor: jax.Array,
    floor: jax.Array,
    settings: Laplace,
) -> tuple[tuple[Any, jax.Array], jax.Array]:
    """Return weights and log noise of the mode, and the objective along the way.

    It starts at the network's means; `factor` is that of the prior's covariance at the points.
    """
    optim = adam(settings.num_steps, settings.learning_rate)

    def objective(state: tuple[Any, jax.Array]) -> jax.Array:
        weights, log_noise = state
        sd = floor + jnp.exp(log_noise)
        white = solve_triangular(factor, network.evaluate(weights, points), lower=True)
        likelihood = dist.Normal(network.evaluate(weights, x), sd).log_prob(y).sum()
        return 0.5 * white @ white - likelihood - dist.Normal(*NOISE_PRIOR).log_prob(log_noise)

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        state, memory = carry
        value, slope = jax.value_and_grad(objective)(state)
        change, memory = optim.update(slope, memory)
        return (optax.apply_updates(state, change), memory), value

    start = (network.means, jnp.log(jnp.asarray(settings.initial_noise)))
    (state, _), history = jax.lax.scan(step, (start, optim.init(start)), None, settings.num_steps)
    return state, history


@eqx.filter_jit
def expansion(network: BayesianNetwork, weights: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the values (N,) at given weights, and their derivatives by all of them, (N, W)."""
    flat, build = ravel_pytree(weights)

    def values(flat: jax.Array) -> jax.Array:
        return network.evaluate(build(flat), x)

    return values(flat), jax.jacrev(values)(flat)


def root(
    jacobian_rows: jax.Array,
    jacobian_points: jax.Array,
    factor: jax.Array,
    noise: float,
    limit: jax.Array,
) -> jax.Array:
    """Return R (W, k) with R R' the covariance of the weights: directions that data or prior see.

    k is the most for which the variance J_C R R' J_C' stays below `limit`, (n,), at every point.
    """
    seen = cho_solve((factor, True), jacobian_points)
    precision = jacobian_rows.T @ jacobian_rows / noise**2 + jacobian_points.T @ seen
    values, vectors = jnp.linalg.eigh(precision)
    order = jnp.argsort(-values)
    values, vectors = values[order], vectors[:, order]
    positive = values > values[0] * jnp.finfo(values.dtype).eps * len(values)
    scaled = vectors * jnp.where(positive, jnp.where(positive, values, 1.0) ** -0.5, 0.0)
    variance = jnp.cumsum((jacobian_points @ scaled) ** 2, axis=1)
    kept = int(jnp.sum(jnp.all(variance <= limit[:, None], axis=0) & positive))
    return scaled[:, :kept]


def laplace(split: Split, settings: Laplace, floors: Sequence[float]) -> dict[float, Prediction]:
    """Return predictions of the Laplace posterior over functions."""
    x, y, x_test = (jnp.asarray(a, float) for a in (split.x, split.y, split.x_test))
    begin = time.process_time()
    prior = fit_process(split, settings.process).process
    key, point_key, draw_key = jax.random.split(jax.random.key(split.seed), 3)
    points = jnp.concatenate([x, DataNoise(len(y))(point_key, x)])
    covariance = prior.kernel.gram(points)
    limit = jnp.diagonal(covariance)
    factor = jnp.linalg.cholesky(covariance + settings.jitter * limit.mean() * jnp.eye(len(points)))
    network = BayesianNetwork(x.shape[1], WIDTH, key=key)
    shared_seconds, found = time.process_time() - begin, {}
    for floor in floors:
        begin = time.process_time()
        least = jnp.asarray(floor)
        (weights, log_noise), history = mode(network, x, y, points, factor, least, settings)
        noise = float(least + jnp.exp(log_noise))
        slopes = (expansion(network, weights, at)[1] for at in (x, points))
        spread = root(*slopes, factor, noise, limit)
        mean, slope = expansion(network, weights, x_test)
        white = jax.random.normal(draw_key, (NUM_DRAWS, spread.shape[1]))
        values = np.asarray(mean + white @ (slope @ spread).T)
        info = {
            "train_seconds": time.process_time() - begin,
            "prior_seconds": shared_seconds,
            "objective": float(history[-1]),
            "directions": spread.shape[1],
            "noise_sd": noise,
            "posterior_sd": float(np.median(values.std(axis=0))),
        }
        found[floor] = Prediction(values, np.full((NUM_DRAWS, 1), noise), info)
    return found
