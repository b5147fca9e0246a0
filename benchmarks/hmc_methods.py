"""Samplers to compare: gradient-free ones, and NUTS with the gradients that the others lack.

| name | what, and its settings |
|---|---|
| adaptive_metropolis | random walk, pooled covariance by doubling windows, acceptance .234 |
| sa | `numpyro.infer.SA` (Zhu 2019), defaults: 2 D points |
| sa_large | the same with 10 D points |
| aies | `numpyro.infer.AIES` (Goodman and Weare 2010), defaults: differential evolution |
| ess | `numpyro.infer.ESS` (Karamanis and Beutler 2021), defaults; NaN counts as no density |
| blackjax_random_walk | `blackjax.additive_step_random_walk`, warm-up as adaptive_metropolis |
| blackjax_slice | `blackjax.slice_sampling`: hit and run; whitened, stepping out, width 2 |
| blackjax_coordinate_slice | `blackjax.coordinate_slice`, one sweep a draw; same settings |
| kmc_lite | kernel HMC (Strathmann et al. 2015) on 500 points, 1-10 leapfrogs, acceptance .7 |
| kmc_finite | the same with 500 random features fitted to 2,000 points |
| nuts, nuts_dense | `numpyro.infer.NUTS`, defaults; with a dense mass matrix |

Kernel HMC starts as adaptive_metropolis for half of its warm-up, works in whitened coordinates, and
chooses width and ridge by the score-matching loss of held-out points.

Every method is `run(target, key, num_warmup, num_samples, num_chains, **options) -> Run`. What is
learned in the warm-up is frozen afterwards, except in `sa` and the ensembles, which have no need
to. An evaluation is one call of the log density at one point; of a gradient for NUTS. Ensembles
compute all walkers until the slowest is done, and AIES computes current values again: `evaluations`
are what was computed, `necessary` what an implementation without that waste would have.
blackjax is imported when one of its methods runs; the project does not depend on it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.infer import AIES, ESS, MCMC, NUTS, SA
from numpyro.infer.hmc_util import dual_averaging

from benchmarks.hmc_targets import LogDensity, Target

ACCEPTANCE, DECAY, SHRINKAGE, FIRST_WINDOW = 0.234, 0.6, 5.0, 20
KMC_ACCEPTANCE, KMC_SIZE, KMC_STEPS = 0.7, 500, 10
KMC_FITS = (0.5, 0.65, 0.8)  # when, as shares of the warm-up
KMC_WIDTHS, KMC_RIDGES = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-5, 1e-3, 1e-1)
SLICE_WIDTH = 2.0
NUM_CHAINS, MIN_WALKERS = 4, 20
ESS_COST, SLICE_COST = 12.0, 5.0  # measured; only the lengths of runs depend on them


@dataclass(frozen=True)
class Run:
    """Draws `(chains, draws, D)` after warm-up, and what they cost."""

    draws: np.ndarray
    evaluations_warmup: int
    evaluations_sampling: int
    gradients: bool = False
    cpu_seconds: float = 0.0
    necessary_warmup: int | None = None  # where less than `evaluations_warmup`
    necessary_sampling: int | None = None


class Runner(Protocol):
    def __call__(
        self,
        target: Target,
        key: Array,
        num_warmup: int,
        num_samples: int,
        num_chains: int,
        **options: Any,
    ) -> Run: ...


class Counter:
    """Counts the evaluations of a function on the host, under jit, vmap, loops and gradients.

    A batched call counts as many evaluations as the batch has points, those whose result a loop
    under vmap throws away included.
    """

    def __init__(self) -> None:
        self.count = 0

    def wrap(self, log_density: LogDensity) -> LogDensity:
        """Return the function, counting."""
        return lambda x: log_density(self._tick(1)(x))

    def read(self) -> int:
        """Return the count so far and set it to zero."""
        jax.effects_barrier()
        count, self.count = self.count, 0
        return count

    def add(self, count: Any) -> None:
        self.count += int(count)

    def _tick(self, points: int) -> Callable[[Array], Array]:
        @jax.custom_batching.custom_vmap
        def tick(x: Array) -> Array:
            jax.debug.callback(lambda: self.add(points))
            return x

        @tick.def_vmap
        def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
            return self._tick(points * axis_size)(x), in_batched[0]

        differentiable = jax.custom_jvp(tick)
        differentiable.defjvp(lambda primal, tangent: (differentiable(*primal), tangent[0]))
        return differentiable


def timed(run: Callable[..., Run]) -> Runner:
    """Return the runner with its CPU seconds, compilation included."""

    @functools.wraps(run)
    def wrapped(*args: Any, **options: Any) -> Run:
        start = time.process_time()
        result = run(*args, **options)
        return dataclasses.replace(result, cpu_seconds=time.process_time() - start)

    return wrapped


# Adaptive Metropolis, which is also the warm-up of the methods that need a covariance.


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


# NumPyro's kernels.


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


# blackjax's kernels, whitened by the covariance that adaptive Metropolis learns.


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


# Kernel HMC: the gradient of an infinite exponential family fitted to the history.


class Field(NamedTuple):
    """A frozen force in whitened coordinates y = L^-1 (x - mean).

    Lite: log q(y) = sum_i a_i exp(-|y - c_i|^2/(2 w^2)), `points` c, `shift` w.
    Finite: log q(y) = sqrt(2/m) sum_j a_j cos(points_j . y + shift_j).
    """

    mean: Array
    factor: Array
    points: Array
    shift: Array
    weights: Array


def lite_force(field: Field, y: Float[Array, " D"]) -> Float[Array, " D"]:
    """Return the gradient of log q; it vanishes off the data, where the step is a random walk."""
    r = y - field.points
    k = jnp.exp(-0.5 * jnp.sum(r**2, axis=1) / field.shift**2)
    return -((field.weights * k) @ r) / field.shift**2


def finite_force(field: Field, y: Float[Array, " D"]) -> Float[Array, " D"]:
    """Return the gradient of log q, which is periodic."""
    sine = jnp.sin(field.points @ y + field.shift)
    return -jnp.sqrt(2.0 / len(sine)) * (field.weights * sine) @ field.points


def lite_weights(y: np.ndarray, width: float, ridge: float) -> np.ndarray:
    """Return the weights that minimise the score-matching loss on the points themselves.

    With K the kernel matrix, s = 2 w^2, n_i = |y_i|^2 and G = Y Y', the sums over coordinates of
    the paper are C = K^2 o G - (K o G) K - K (K o G) + K diag(n) K and
    b = (2/s) (K n + n o K1 - 2 rowsum(Y o K Y)) - D K1; a = -(s/2) (C + ridge (K + I))^-1 b.
    """
    s = 2 * width**2
    gram, norms = y @ y.T, (y**2).sum(axis=1)
    k = np.exp(-(norms[:, None] + norms - 2 * gram) / s)
    cross = (k * gram) @ k
    c = (k @ k) * gram - cross - cross.T + (k * norms) @ k
    ones = k.sum(axis=1)
    b = (2 / s) * (k @ norms + norms * ones - 2 * (y * (k @ y)).sum(axis=1)) - y.shape[1] * ones
    return -(s / 2) * np.linalg.solve(c + ridge * (k + np.eye(len(y))), b)


def lite_loss(v: np.ndarray, y: np.ndarray, width: float, weights: np.ndarray) -> float:
    """Return the score-matching loss mean(|f|^2/2 + div f) on other points."""
    gram = v @ y.T
    squared = (v**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * gram
    k = weights * np.exp(-0.5 * squared / width**2)
    force = -(v * k.sum(axis=1)[:, None] - k @ y) / width**2
    divergence = (k * (squared / width**4 - y.shape[1] / width**2)).sum(axis=1)
    return float(np.mean(0.5 * (force**2).sum(axis=1) + divergence))


def lite_leaves(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return points, width and weights; width and ridge have the lowest loss on held-out points."""
    y = y[rng.permutation(len(y))]
    fold = len(y) // 2
    centre = median_distance(y)
    grid = [(factor * centre, ridge) for factor in KMC_WIDTHS for ridge in KMC_RIDGES]
    width, ridge = min(
        grid,
        key=lambda pair: lite_loss(y[fold:], y[:fold], pair[0], lite_weights(y[:fold], *pair)),
    )
    return y, np.asarray(width), lite_weights(y, width, ridge)


def finite_moments(
    y: np.ndarray, points: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return b and C of the random-feature family: the loss of weights a is a'Ca/2 - a'b."""
    phase = y @ points.T + shift
    scale = np.sqrt(2 / len(shift))
    b = scale * np.cos(phase).mean(axis=0) * (points**2).sum(axis=1)
    sine = scale * np.sin(phase)
    return b, (sine.T @ sine / len(y)) * (points @ points.T)


def finite_leaves(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return frequencies, phases and weights; width and ridge by held-out loss."""
    fold, dim = len(y) // 2, y.shape[1]
    y = y[rng.permutation(len(y))]
    normal, shift = rng.normal(size=(KMC_SIZE, dim)), rng.uniform(0, 2 * np.pi, KMC_SIZE)
    centre, identity = median_distance(y), np.eye(KMC_SIZE)
    best: tuple[float, np.ndarray, float] = (np.inf, normal, 1.0)
    for factor in KMC_WIDTHS:
        points = normal / (factor * centre)
        (b, c), (b_out, c_out) = (
            finite_moments(part, points, shift) for part in (y[:fold], y[fold:])
        )
        for ridge in KMC_RIDGES:
            weights = np.linalg.solve(c + ridge * np.trace(c) / KMC_SIZE * identity, b)
            loss = float(0.5 * weights @ c_out @ weights - weights @ b_out)
            best = min(best, (loss, points, ridge), key=lambda found: found[0])
    _, points, ridge = best
    b, c = finite_moments(y, points, shift)
    weights = np.linalg.solve(c + ridge * np.trace(c) / KMC_SIZE * identity, b)
    return points, shift, weights


def median_distance(y: np.ndarray) -> float:
    """Return the median distance of distinct points, of 500 at most."""
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(y[:500])))


def fit_field(
    leaves: Callable[..., tuple[np.ndarray, ...]], history: np.ndarray, size: int, seed: int
) -> Field:
    """Return the field of the later half of a history `(N, C, D)`, of `size` distinct points."""
    rng = np.random.default_rng(seed)
    points = history[len(history) // 2 :].reshape(-1, history.shape[2]).astype(float)
    points = np.unique(points, axis=0)
    mean, d = points.mean(axis=0), points.shape[1]
    covariance = np.atleast_2d(np.cov(points, rowvar=False))
    factor = np.linalg.cholesky(covariance + 1e-6 * np.trace(covariance) / d * np.eye(d))
    chosen = points[rng.permutation(len(points))[:size]]
    whitened = np.linalg.solve(factor, (chosen - mean).T).T
    return Field(*(jnp.asarray(a, jnp.float32) for a in (mean, factor, *leaves(whitened, rng))))


def hamiltonian_step(
    force: Callable[[Field, Array], Array],
    log_density: LogDensity,
    field: Field,
    step_size: Array,
    key: Array,
    x: Array,
    value: Array,
) -> tuple[Array, Array, Array]:
    """Follow the force for 1 to 10 leapfrogs; accept with the true density at the end point."""
    keys = jax.random.split(key, 3)
    y = jax.scipy.linalg.solve_triangular(field.factor, (x - field.mean).T, lower=True).T
    p = jax.random.normal(keys[0], x.shape)
    pull = jax.vmap(functools.partial(force, field))

    def leapfrog(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        y, p = state
        y = y + 0.5 * step_size * p
        p = p + step_size * pull(y)
        return y + 0.5 * step_size * p, p

    count = jax.random.randint(keys[1], (), 1, KMC_STEPS + 1)
    y, p_end = jax.lax.fori_loop(0, count, leapfrog, (y, p))
    proposal = field.mean + y @ field.factor.T
    proposed = values(log_density, proposal)
    energy = 0.5 * jnp.sum(p**2 - p_end**2, axis=1)
    accept, probability = accepted(keys[2], proposed - value + energy)
    return jnp.where(accept[:, None], proposal, x), jnp.where(accept, proposed, value), probability


def kernel_hmc(
    force: Callable[[Field, Array], Array],
    leaves: Callable[..., tuple[np.ndarray, ...]],
    size: int,
    target: Target,
    key: Array,
    sizes: tuple[int, int, int],
) -> Run:
    """Return the draws of kernel HMC.

    Half of the warm-up is adaptive Metropolis: fields fitted to less are worse than none. Then the
    field is fitted to the later half of the history, three times, and the step size adapted after
    each; at the end of the warm-up both stay.
    """
    num_warmup, num_samples, num_chains = sizes
    step = functools.partial(hamiltonian_step, force, target.log_density)
    start, update = dual_averaging(kappa=0.75, gamma=0.05, t0=10)
    ends = np.round(num_warmup * np.array([*KMC_FITS, 1.0])).astype(int)

    @jax.jit
    def phase(field: Field, x: Array, value: Array, guess: Array, keys: Array) -> Any:
        def body(state: Any, key: Array) -> tuple[Any, Array]:
            x, value, averages = state
            x, value, probability = step(field, jnp.exp(averages[0]), key, x, value)
            return (x, value, update(KMC_ACCEPTANCE - probability.mean(), averages)), x

        return jax.lax.scan(body, (x, value, start(jnp.log(guess))), keys)

    @jax.jit
    def run(field: Field, x: Array, value: Array, step_size: Array, keys: Array) -> Array:
        def body(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            x, value, _ = step(field, step_size, key, *state)
            return (x, value), x

        return jax.lax.scan(body, (x, value), keys)[1]

    key_start, key_walk, key_run, *phases = jax.random.split(key, 3 + len(KMC_FITS))
    starts = target.starts(key_start, num_chains)
    walkers, history = adapted(target.log_density, starts, key_walk, int(ends[0]))
    x, value, step_size = walkers.x, walkers.value, jnp.ones(())
    for index, (key_phase, length) in enumerate(zip(phases, np.diff(ends), strict=True)):
        field = fit_field(leaves, np.asarray(history), size, index)
        keys = jax.random.split(key_phase, int(length))
        (x, value, averages), latest = phase(field, x, value, step_size, keys)
        step_size, history = jnp.exp(averages[1]), jnp.concatenate([history, latest])
    draws = np.asarray(run(field, x, value, step_size, jax.random.split(key_run, num_samples)))
    return Run(draws.swapaxes(0, 1), num_chains * (num_warmup + 1), num_chains * num_samples)


@timed
def kmc_lite(target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int) -> Run:
    sizes = (num_warmup, num_samples, num_chains)
    return kernel_hmc(lite_force, lite_leaves, KMC_SIZE, target, key, sizes)


@timed
def kmc_finite(
    target: Target, key: Array, num_warmup: int, num_samples: int, num_chains: int
) -> Run:
    sizes = (num_warmup, num_samples, num_chains)
    return kernel_hmc(finite_force, finite_leaves, 4 * KMC_SIZE, target, key, sizes)


@dataclass(frozen=True)
class Method:
    """A runner with what is needed to give it a budget of evaluations.

    Attributes:
        run: the runner.
        cost: expected evaluations of one chain in one iteration after the warm-up, given D.
        warmup_cost: the same in the warm-up; None: equal.
        chains: number of chains, given D.
        draws: numbers of warm-up iterations and of draws, in place of a budget.
    """

    run: Runner
    cost: Callable[[int], float] = lambda d: 1.0
    warmup_cost: Callable[[int], float] | None = None
    chains: Callable[[int], int] = lambda d: NUM_CHAINS
    draws: tuple[int, int] | None = None

    def sizes(
        self, dimension: int, warmup: int, sampling: int, share: float = 1.0
    ) -> tuple[int, int, int]:
        """Return warm-up iterations, draws and chains for so many evaluations of all chains.

        Only a share of the warm-up is used.
        """
        chains = self.chains(dimension)
        if self.draws is not None:
            return round(share * self.draws[0]), self.draws[1], chains
        first = (self.warmup_cost or self.cost)(dimension)
        return (
            max(1, round(share * warmup / (chains * first))),
            max(4, round(sampling / (chains * self.cost(dimension)))),  # ArviZ needs four
            chains,
        )


def ensemble(dimension: int) -> int:
    """Return a multiple of four walkers, more than 2 D: half of them must span the space."""
    return max(MIN_WALKERS, 4 * (dimension // 2 + 1))


METHODS = {
    "adaptive_metropolis": Method(adaptive_metropolis),
    "sa": Method(sa),
    "sa_large": Method(functools.partial(sa, points_per_dimension=10)),
    "aies": Method(aies, lambda d: 2.0, chains=ensemble),
    "ess": Method(ess, lambda d: ESS_COST, chains=ensemble),
    "blackjax_random_walk": Method(blackjax_random_walk),
    "blackjax_slice": Method(blackjax_slice, lambda d: SLICE_COST, lambda d: 1.0),
    "blackjax_coordinate_slice": Method(
        blackjax_coordinate_slice, lambda d: SLICE_COST * d, lambda d: 1.0
    ),
    "kmc_lite": Method(kmc_lite),
    "kmc_finite": Method(kmc_finite),
    "nuts": Method(nuts, draws=(1000, 1000)),
    "nuts_dense": Method(functools.partial(nuts, dense_mass=True), draws=(1000, 1000)),
}
