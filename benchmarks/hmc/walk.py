"""Adaptive Metropolis, which is also the warm-up of the methods that need a covariance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.hmc.runs import Run, timed
from benchmarks.hmc.targets import LogDensity, Target

ACCEPTANCE, DECAY, SHRINKAGE, FIRST_WINDOW = 0.234, 0.6, 5.0, 20


class Walkers(NamedTuple):
    """Positions `(C, D)`, their log densities `(C,)`, and what has been learned.

    `factor` is the Cholesky factor of the covariance of the last complete window of the warm-up;
    `age`, `mean` and `scatter` are the steps and the moments of the present one.
    """

    x: Array
    value: Array
    factor: Array
    log_scale: Array
    age: Array
    mean: Array
    scatter: Array


def values(log_density: LogDensity, x: Float[Array, "C D"]) -> Float[Array, " C"]:
    """Return the log densities, minus infinity where they are not a number."""
    found = jax.vmap(log_density)(x)
    return jnp.where(jnp.isnan(found), -jnp.inf, found)


def accepted(key: Array, log_ratio: Float[Array, " C"]) -> tuple[Array, Array]:
    """Return which proposals are accepted, and the probabilities; NaN is never accepted."""
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, jnp.minimum(log_ratio, 0.0))
    return jnp.log(jax.random.uniform(key, log_ratio.shape)) < log_ratio, jnp.exp(log_ratio)


def walk(
    log_density: LogDensity, key: Array, x: Array, value: Array, factor: Float[Array, "D D"]
) -> tuple[Array, Array, Array]:
    """Make one random-walk step; return positions, values and acceptance probabilities."""
    key_step, key_accept = jax.random.split(key)
    proposal = x + jax.random.normal(key_step, x.shape) @ factor.T
    proposed = values(log_density, proposal)
    accept, probability = accepted(key_accept, proposed - value)
    return jnp.where(accept[:, None], proposal, x), jnp.where(accept, proposed, value), probability


def proposal_factor(walkers: Walkers) -> Float[Array, "D D"]:
    """Return the factor of the proposal's covariance, 2.38^2/D times the learned one, scaled."""
    return 2.38 / jnp.sqrt(walkers.x.shape[1]) * jnp.exp(walkers.log_scale) * walkers.factor


def adapt(walkers: Walkers, log_density: LogDensity, key: Array) -> Walkers:
    """Make one step; move the scale towards its acceptance rate; add to the moments."""
    factor = proposal_factor(walkers)
    x, value, probability = walk(log_density, key, walkers.x, walkers.value, factor)
    age = walkers.age + 1.0
    before, after = x - walkers.mean, walkers.mean + (x - walkers.mean).mean(axis=0) / age
    return walkers._replace(
        x=x,
        value=value,
        log_scale=walkers.log_scale + age**-DECAY * (probability.mean() - ACCEPTANCE),
        age=age,
        mean=after,
        scatter=walkers.scatter + before.T @ (x - after),
    )


def close_window(walkers: Walkers) -> Walkers:
    """Take the covariance of the window, shrunk to its diagonal as far as the window is short."""
    num_chains, d = walkers.x.shape
    count = walkers.age * num_chains
    covariance = walkers.scatter / count
    shrinkage = d / (d + count / SHRINKAGE)
    diagonal = jnp.diag(jnp.diag(covariance) + 1e-12)
    factor = jnp.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * diagonal)
    zero = jnp.zeros(())
    return walkers._replace(factor=factor, log_scale=zero, age=zero, scatter=jnp.zeros_like(factor))


def window_ends(num_warmup: int) -> np.ndarray:
    """Return whether a window ends at each step: each is twice the last; 10% remain for scale."""
    ends = np.zeros(num_warmup, bool)
    last = int(0.9 * num_warmup)
    while last >= FIRST_WINDOW:
        ends[last - 1] = True
        last //= 2
    return ends


def adapted(
    log_density: LogDensity, x: Float[Array, "C D"], key: Array, num_warmup: int
) -> tuple[Walkers, Float[Array, "N C D"]]:
    """Return adapted walkers and their history, after C (1 + num_warmup) evaluations."""

    @jax.jit
    def run(x: Array, keys: Array) -> tuple[Walkers, Array]:
        zero, square = jnp.zeros(()), jnp.zeros((x.shape[1], x.shape[1]))
        value, mean = values(log_density, x), jnp.zeros(x.shape[1])
        first = Walkers(x, value, jnp.eye(x.shape[1]), zero, zero, mean, square)

        def body(walkers: Walkers, inputs: tuple[Array, Array]) -> tuple[Walkers, Array]:
            walkers = adapt(walkers, log_density, inputs[0])
            walkers = jax.lax.cond(inputs[1], close_window, lambda same: same, walkers)
            return walkers, walkers.x

        return jax.lax.scan(body, first, (keys, window_ends(len(keys))))

    return run(x, jax.random.split(key, num_warmup))


@timed
def adaptive_metropolis(
    target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int
) -> Run:
    key_start, key_warmup, key_run = jax.random.split(key, 3)
    starts = target.starts(key_start, num_chains)
    walkers, _ = adapted(target.log_density, starts, key_warmup, num_warmup)

    @jax.jit
    def run(walkers: Walkers, keys: Array) -> Array:
        factor = proposal_factor(walkers)

        def body(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            x, value, _ = walk(target.log_density, key, *state, factor)
            return (x, value), x

        return jax.lax.scan(body, (walkers.x, walkers.value), keys)[1]

    draws = np.asarray(run(walkers, jax.random.split(key_run, num_samples)))
    return Run(draws.swapaxes(0, 1), num_chains * (num_warmup + 1), num_chains * num_samples)
