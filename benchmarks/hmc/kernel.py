"""Kernel HMC: the gradient of an infinite exponential family fitted to the history.

Strathmann et al., Gradient-free Hamiltonian Monte Carlo with efficient kernel exponential families,
NeurIPS 2015.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.infer.hmc_util import dual_averaging

from benchmarks.hmc.runs import Run, timed
from benchmarks.hmc.targets import LogDensity, Target
from benchmarks.hmc.walk import accepted, adapted, values

KMC_ACCEPTANCE, KMC_SIZE, KMC_STEPS = 0.7, 500, 10
KMC_FITS = (0.5, 0.65, 0.8)  # when, as shares of the warm-up
KMC_WIDTHS, KMC_RIDGES = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-5, 1e-3, 1e-1)


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
