"""blackjax's kernels, whitened by the covariance that adaptive Metropolis learns.

blackjax is imported when one of its methods runs; the project does not depend on it.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.hmc.runs import Run, timed
from benchmarks.hmc.targets import LogDensity, Target
from benchmarks.hmc.walk import Walkers, adapted

SLICE_WIDTH = 2.0


def import_blackjax() -> ModuleType:
    try:
        import blackjax
    except ImportError as error:
        raise ImportError(
            "the `blackjax_*` methods need blackjax 1.7; install it into an environment that "
            "also has this project, and run the benchmark there."
        ) from error
    return blackjax


def blackjax_run(
    build: Callable[[ModuleType, LogDensity, Array], Any],
    evaluations: Callable[[Any], Array],
    target: Target,
    key: Array,
    sizes: tuple[int, int, int],
) -> Run:
    """Return the draws of a kernel of blackjax in whitened coordinates.

    Args:
        build: from blackjax, the log density of y = L^-1 (x - mean), and the scale of the random
            walk in y, to an algorithm.
        evaluations: from the kernel's info to the number of evaluations of a step.
        target: to sample from.
        key: PRNG key.
        sizes: warm-up (of adaptive Metropolis), draws and chains.
    """
    blackjax = import_blackjax()
    num_warmup, num_samples, num_chains = sizes
    key_start, key_warmup, key_run = jax.random.split(key, 3)
    starts = target.starts(key_start, num_chains)
    walkers, _ = adapted(target.log_density, starts, key_warmup, num_warmup)

    @jax.jit
    def run(walkers: Walkers, keys: Array) -> tuple[Array, Array]:
        factor, mean = walkers.factor, walkers.x.mean(axis=0)
        scale = 2.38 / jnp.sqrt(target.dimension) * jnp.exp(walkers.log_scale)
        kernel = build(blackjax, lambda y: target.log_density(mean + factor @ y), scale)

        def chain(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            y = jax.scipy.linalg.solve_triangular(factor, inputs[0] - mean, lower=True)

            def body(state: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
                state, info = kernel.step(key, state)
                return state, (mean + factor @ state.position, evaluations(info))

            return jax.lax.scan(body, kernel.init(y), inputs[1])[1]

        return jax.lax.map(chain, (walkers.x, keys))  # vmap would wait for the slowest chain

    draws, counts = run(walkers, jax.random.split(key_run, (num_chains, num_samples)))
    used = num_chains * (num_warmup + 2)  # the kernel evaluates its start once more
    return Run(np.asarray(draws), used, int(counts.sum()))


@timed
def blackjax_random_walk(
    target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int
) -> Run:
    def build(blackjax: ModuleType, log_density: LogDensity, scale: Array) -> Any:
        sigma = scale * jnp.ones(target.dimension)
        return blackjax.additive_step_random_walk.normal_random_walk(log_density, sigma)

    sizes = (num_warmup, num_samples, num_chains)
    return blackjax_run(build, lambda info: jnp.array(1), target, key, sizes)


@timed
def blackjax_slice(
    target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int
) -> Run:
    def build(blackjax: ModuleType, log_density: LogDensity, scale: Array) -> Any:
        del scale
        interval = blackjax.mcmc.slice.stepping_out
        return blackjax.slice_sampling(log_density, width=SLICE_WIDTH, interval=interval)

    def evaluations(info: Any) -> Array:  # both ends of the first interval, and every change
        return 2 + info.num_expansions + info.num_shrink

    sizes = (num_warmup, num_samples, num_chains)
    return blackjax_run(build, evaluations, target, key, sizes)


@timed
def blackjax_coordinate_slice(
    target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int
) -> Run:
    def build(blackjax: ModuleType, log_density: LogDensity, scale: Array) -> Any:
        del scale
        interval = blackjax.mcmc.slice.stepping_out
        return blackjax.coordinate_slice(log_density, initial_widths=SLICE_WIDTH, interval=interval)

    def evaluations(info: Any) -> Array:
        return 2 * target.dimension + info.num_expansions + info.num_shrink

    sizes = (num_warmup, num_samples, num_chains)
    return blackjax_run(build, evaluations, target, key, sizes)
