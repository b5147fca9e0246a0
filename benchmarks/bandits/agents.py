"""Agents of the bandit benchmark: Thompson sampling from a posterior over reward functions.

An agent is three functions; another agent is one more entry of `AGENTS` of bandits/run.py, a
function of nothing that returns an `Agent`. States may be anything; every function returns the
new one.

    init(num_arms, num_inputs, horizon, seed) -> state
    act(state, context)                       -> arm
    update(state, context, arm, reward)       -> state

Contexts are (D,) NumPy arrays. The bandit pulls every arm twice before it asks the agent. Linear
posteriors are conjugate, with the prior of Riquelme et al. (2018), arXiv 1802.09127: noise variance
~ InverseGamma(6, 6), coefficients ~ N(0, noise variance / .25), one regression for each arm, an
intercept among its inputs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import cho_factor, cho_solve, solve_triangular

PULLS = 2
"""Pulls of every arm before an agent is asked."""
SHAPE = RATE = 6.0
PRECISION = 0.25
WIDTH, EVERY, NUM_STEPS, BATCH, LEARNING_RATE = 50, 50, 100, 512, 1e-3


class Agent(NamedTuple):
    """What chooses arms."""

    init: Callable[[int, int, int, int], Any]
    act: Callable[[Any, np.ndarray], int]
    update: Callable[[Any, np.ndarray, int, float], Any]


class Uniform(NamedTuple):
    num_arms: int
    rng: np.random.Generator


def uniform() -> Agent:
    """Return the agent that chooses at random."""
    return Agent(
        lambda num_arms, num_inputs, horizon, seed: Uniform(num_arms, np.random.default_rng(seed)),
        lambda state, context: int(state.rng.integers(state.num_arms)),
        lambda state, context, arm, reward: state,
    )


class Moments(NamedTuple):
    """Sufficient statistics of one arm: X'X, X'y, y'y and the number of rows."""

    xx: np.ndarray
    xy: np.ndarray
    yy: float
    count: int

    def add(self, x: np.ndarray, y: np.ndarray) -> "Moments":
        """Return the moments with rows (N, P) and rewards (N,) added."""
        return Moments(
            self.xx + x.T @ x, self.xy + x.T @ y, self.yy + float(y @ y), self.count + len(y)
        )


def no_moments(num_inputs: int) -> Moments:
    return Moments(np.zeros((num_inputs, num_inputs)), np.zeros(num_inputs), 0.0, 0)


class Posterior(NamedTuple):
    """Posterior of one arm: w | v ~ N(mean, v (L L')^-1), L the factor, v ~ IG(shape, rate)."""

    mean: np.ndarray
    factor: np.ndarray
    shape: float
    rate: float

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return coefficients (P,)."""
        variance = self.rate / rng.gamma(self.shape)
        noise = rng.standard_normal(len(self.mean))
        return self.mean + np.sqrt(variance) * solve_triangular(self.factor.T, noise)


def posterior(moments: Moments) -> Posterior:
    """Return the posterior after these moments. O(P^3)."""
    precision = moments.xx + PRECISION * np.eye(len(moments.xy))
    factor = cho_factor(precision, lower=True)
    mean = cho_solve(factor, moments.xy)
    rate = RATE + 0.5 * max(moments.yy - mean @ precision @ mean, 0.0)
    return Posterior(mean, np.tril(factor[0]), SHAPE + 0.5 * moments.count, rate)


@dataclass
class Regressions:
    """One conjugate regression for each arm, and the generator of Thompson draws."""

    moments: list[Moments]
    posteriors: list[Posterior]
    rng: np.random.Generator

    def add(self, arm: int, x: np.ndarray, y: np.ndarray) -> None:
        self.moments[arm] = self.moments[arm].add(x, y)
        self.posteriors[arm] = posterior(self.moments[arm])

    def choose(self, x: np.ndarray) -> int:
        return int(np.argmax([x @ p.draw(self.rng) for p in self.posteriors]))


def regressions(num_arms: int, num_inputs: int, rng: np.random.Generator) -> Regressions:
    moments = [no_moments(num_inputs)] * num_arms
    return Regressions(moments, [posterior(m) for m in moments], rng)


def with_one(x: np.ndarray) -> np.ndarray:
    """Return inputs with an intercept in the last column."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def linear() -> Agent:
    """Return Thompson sampling from exact linear regressions on the context."""

    def init(num_arms: int, num_inputs: int, horizon: int, seed: int) -> Regressions:
        return regressions(num_arms, num_inputs + 1, np.random.default_rng(seed))

    def update(state: Regressions, context: np.ndarray, arm: int, reward: float) -> Regressions:
        state.add(arm, with_one(context)[None], np.array([reward]))
        return state

    return Agent(init, lambda state, context: state.choose(with_one(context)), update)


@dataclass
class NeuralLinear:
    """A network whose last hidden layer is the input of the regressions.

    `contexts`, `arms`, `rewards` are the history, padded to the horizon.
    """

    contexts: np.ndarray
    arms: np.ndarray
    rewards: np.ndarray
    count: int
    weights: dict[str, np.ndarray]
    regressions: Regressions


def features(weights: dict[str, Any], x: Any) -> Any:
    """Return the hidden units (..., 50)."""
    module = jnp if isinstance(x, jax.Array) else np
    return module.maximum(x @ weights["w1"] + weights["b1"], 0.0)


@functools.partial(jax.jit, static_argnames="num_steps")
def retrain(
    weights: dict[str, jax.Array],
    key: jax.Array,
    history: tuple[jax.Array, jax.Array, jax.Array],
    count: jax.Array,
    num_steps: int = NUM_STEPS,
) -> dict[str, jax.Array]:
    """Return weights after Adam on squared errors of the pulled arms, in scaled rewards."""
    optim = optax.adam(LEARNING_RATE)
    contexts, arms, rewards = history
    valid = jnp.arange(len(arms)) < count
    centre = jnp.sum(jnp.where(valid, rewards, 0.0)) / count
    scale = jnp.sqrt(jnp.sum(jnp.where(valid, (rewards - centre) ** 2, 0.0)) / count)
    targets = (rewards - centre) / jnp.maximum(scale, 1e-6)

    def loss(weights: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        out = features(weights, contexts[rows]) @ weights["w2"] + weights["b2"]
        found = jnp.take_along_axis(out, arms[rows][:, None], axis=1)[:, 0]
        return jnp.mean((found - targets[rows]) ** 2)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        weights, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, count)
        change, state = optim.update(jax.grad(loss)(weights, rows), state)
        return (optax.apply_updates(weights, change), state), None

    carry = (weights, optim.init(weights))
    (weights, _), _ = jax.lax.scan(step, carry, jax.random.split(key, num_steps))
    return weights


def neural_linear() -> Agent:
    """Return Thompson sampling from regressions on a network's hidden units.

    The network, 50 ReLU units and one output for each arm, takes 100 steps of Adam at 1e-3 on
    batches of 512 after every 50 contexts; then the regressions are redone on the whole history.
    """

    def init(num_arms: int, num_inputs: int, horizon: int, seed: int) -> NeuralLinear:
        rng = np.random.default_rng(seed)
        weights = {
            "w1": rng.standard_normal((num_inputs, WIDTH)) / np.sqrt(num_inputs),
            "b1": rng.standard_normal(WIDTH),
            "w2": rng.standard_normal((WIDTH, num_arms)) / np.sqrt(WIDTH),
            "b2": np.zeros(num_arms),
        }
        history = np.zeros((horizon, num_inputs)), np.zeros(horizon, int), np.zeros(horizon)
        return NeuralLinear(*history, 0, weights, regressions(num_arms, WIDTH + 1, rng))

    def act(state: NeuralLinear, context: np.ndarray) -> int:
        return state.regressions.choose(with_one(features(state.weights, context)))

    def update(state: NeuralLinear, context: np.ndarray, arm: int, reward: float) -> NeuralLinear:
        state.contexts[state.count] = context
        state.arms[state.count], state.rewards[state.count] = arm, reward
        state.count += 1
        if state.count % EVERY == 0:
            return relearned(state)
        row = with_one(features(state.weights, context))[None]
        state.regressions.add(arm, row, np.array([reward]))
        return state

    return Agent(init, act, update)


def relearned(state: NeuralLinear) -> NeuralLinear:
    """Return the state with trained features and the regressions that belong to them."""
    rng = state.regressions.rng
    key = jax.random.key(int(rng.integers(2**31)))
    history = state.contexts, state.arms, state.rewards
    found = retrain(state.weights, key, history, jnp.asarray(state.count))
    state.weights = {name: np.asarray(value) for name, value in found.items()}
    state.regressions = regressions(len(state.weights["b2"]), WIDTH + 1, rng)
    known = slice(0, state.count)
    rows = with_one(features(state.weights, state.contexts[known]))
    for arm in range(len(state.weights["b2"])):
        mine = state.arms[known] == arm
        state.regressions.add(arm, rows[mine], state.rewards[known][mine])
    return state
