"""NumPyro's kernels in the comparison of samplers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import AIES, ESS, MCMC, NUTS, SA

from benchmarks.hmc.runs import Counter, Run, timed
from benchmarks.hmc.targets import Target


def numpyro_run(
    kernel: Any,
    target: Target,
    key: Array,
    sizes: tuple[int, int, int],
    chain_method: str = "vectorized",
    field: str | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return draws, and a field of the kernel's state in warm-up and in sampling.

    `between` is called when the warm-up is over.
    """
    num_warmup, num_samples, num_chains = sizes
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    fields = () if field is None else (field,)
    key_start, key_warmup, key_run = jax.random.split(key, 3)
    starts = target.starts(key_start, num_chains)
    mcmc.warmup(key_warmup, init_params=starts, extra_fields=fields, collect_warmup=True)
    jax.block_until_ready(mcmc.get_samples())
    warmup = np.asarray(mcmc.get_extra_fields().get(field, ()))
    between()
    # Ensembles make themselves ready from `init_params` again, and go on from their state.
    mcmc.run(key_run, init_params=starts, extra_fields=fields)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True))
    return draws, warmup, np.asarray(mcmc.get_extra_fields().get(field, ()))


@timed
def sa(
    target: Target,
    key: Array,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    points_per_dimension: int = 2,
) -> Run:
    size = points_per_dimension * target.dimension
    kernel = SA(potential_fn=lambda x: -target.log_density(x), adapt_state_size=size)
    draws, _, _ = numpyro_run(kernel, target, key, (num_warmup, num_samples, num_chains))
    return Run(draws, num_chains * (num_warmup + size), num_chains * num_samples)


@timed
def aies(target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int) -> Run:
    kernel = AIES(potential_fn=lambda x: -target.log_density(x))
    draws, _, _ = numpyro_run(kernel, target, key, (num_warmup, num_samples, num_chains))
    needed = num_chains * (num_warmup + 1), num_chains * num_samples
    # In each iteration the proposal and, again, the current point of every walker.
    return Run(
        draws,
        2 * num_chains * num_warmup,
        2 * num_chains * num_samples,
        necessary_warmup=needed[0],
        necessary_sampling=needed[1],
    )


class CountedESS(ESS):
    """NumPyro's ESS that reports the evaluations its walkers needed, and keeps them in order.

    The default `randomize_split=True` shuffles the walkers in each iteration and leaves them so: a
    chain of its output jumps between walkers, looks independent, and its effective sample size and
    R-hat mean nothing. The shuffle is undone here after each iteration; the law is the same.
    """

    def __init__(self, needed: Counter, **options: Any) -> None:
        super().__init__(**options)
        self._needed = needed

    def sample(self, state: Any, model_args: Any, model_kwargs: Any) -> Any:
        new = super().sample(state, model_args, model_kwargs)
        walker = jax.random.permutation(new.rng_key, jnp.arange(self._num_chains))
        return new._replace(z=new.z[jnp.argsort(walker)])

    def _step_out(self, rng_key: Array, height: Array, active: Array, directions: Array) -> Any:
        found = super()._step_out(rng_key, height, active, directions)
        # Each side ends with an evaluation below the slice.
        jax.debug.callback(self._needed.add, found[0] + 2 * len(active))
        return found

    def _shrink(self, rng_key: Array, height: Array, *args: Array) -> Any:
        found = super()._shrink(rng_key, height, *args)
        jax.debug.callback(self._needed.add, found[1] + len(height))
        return found


@timed
def ess(target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int) -> Run:
    counter, needed = Counter(), Counter()
    log_density = counter.wrap(target.log_density)

    def potential(x: Array) -> Array:
        value = -log_density(x)
        # As it stands, ESS takes a point whose density is not a number, and keeps it for ever.
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    kernel = CountedESS(needed, potential_fn=potential)
    warmup = []
    draws, _, _ = numpyro_run(
        kernel,
        target,
        key,
        (num_warmup, num_samples, num_chains),
        between=lambda: warmup.extend([counter.read(), needed.read() + num_chains]),
    )
    return Run(
        draws,
        warmup[0],
        counter.read(),
        necessary_warmup=warmup[1],
        necessary_sampling=needed.read(),
    )


@timed
def nuts(
    target: Target,
    key: Array,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    dense_mass: bool = False,
) -> Run:
    kernel = NUTS(potential_fn=lambda x: -target.log_density(x), dense_mass=dense_mass)
    draws, warmup, sampling = numpyro_run(
        kernel, target, key, (num_warmup, num_samples, num_chains), "sequential", "num_steps"
    )
    return Run(draws, int(warmup.sum()) + num_chains, int(sampling.sum()), gradients=True)
