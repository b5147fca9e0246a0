"""Thompson sampling from a Bayesian network, inferred in function space or in weight space.

The unknown function is f(x, a), the scaled reward of arm a in context x; a point is a context and
the number of an arm. The posterior is a network with one output for each arm and independent
normal weights; the likelihood y ~ N(f(x, a), s^2) sees the pulled arm alone. Two agents differ in
the prior, and in nothing else:

    functional   f(., a) ~ GP(0, Matern-3/2 + linear), independent over arms: the agent "GP"
    MFVI         every weight ~ N(0, 1 / fan in), every bias ~ N(0, 1)

Each train call is `NUM_STEPS` of Adam in one compiled loop. The history is padded to the horizon
and a step sees rows drawn from those seen, whose number is traced: it compiles once.

Sun et al. (2019), arXiv 1903.05779: functional variational Bayesian networks in contextual
bandits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from numpyro.infer import ELBO, SVI, Trace_ELBO

import implicitppl as ip
from benchmarks.bandits.agents import EVERY, PULLS, Agent
from benchmarks.bandits.gp import LEAST_SCALE, NOISE_SD, kernel_of
from implicitppl.divergences import DataNoise
from implicitppl.infer import FunctionalELBO
from implicitppl.kernels import RBF, Kernel

TRAINING = 2**20
"""Offset of the keys of train calls from those of draws, which are numbered by contexts."""


class Settings(NamedTuple):
    """How the network is trained.

    Attributes:
        num_steps: of a train call, after every 50 contexts and after the forced pulls.
        learning_rate: of Adam, whose state lives on between the calls.
        batch_size: rows of a step, drawn with replacement from those seen.
        num_measured: M, contexts of the batch with noise of half their spread, at random arms.
        num_particles: S, more than batch and measured points together.
        width: hidden units, in one layer.
        initial_scale: posterior standard deviation of every weight at the start, about e^-2.
        noise: of the likelihood, in units of the spread of the rewards seen.
        ridge: noise of the divergence, in units of the prior's standard deviation.
        weight: of the divergence.
        least_scale: rewards are divided by their standard deviation so far, or by this if more.
    """

    num_steps: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 32
    num_measured: int = 32
    num_particles: int = 100
    width: int = 50
    initial_scale: float = 0.1353
    noise: float = NOISE_SD
    ridge: float = 0.01
    weight: float = 1.0
    least_scale: float = LEAST_SCALE


DEFAULTS = Settings()


class ArmNetwork(ip.processes.ParametricProcess):
    """Functions f(x, a) of points (N, D + 1): output a of a network at the context x.

    `network` has one output for each arm; the last coordinate of a point is the number of an arm.
    """

    network: ip.processes.BayesianNetwork

    def function(self, key: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """Return one function."""
        outputs = self.network.function(key)

        def values(points: jax.Array) -> jax.Array:
            arms = points[:, -1:].astype(int)
            return jnp.take_along_axis(outputs(points[:, :-1]), arms, axis=1)[:, 0]

        return values


def prior_of(kernel: Kernel, num_inputs: int) -> ip.gp.GaussianProcess:
    """Return the process of f(x, a): that of the kernel in x (D,), independent between arms."""
    # A lengthscale far below 1 over the number of the arm.
    same_arm = RBF(1e-3).on([num_inputs])
    return ip.gp.GaussianProcess(kernel.on(list(range(num_inputs))) * same_arm)


def likelihood(f: jax.Array, y: jax.Array, ratio: jax.Array, settings: Settings) -> None:
    """Score the outputs of a batch, `ratio` times: the rows seen over those of the batch."""
    with numpyro.handlers.scale(scale=ratio):
        numpyro.sample("y", dist.Normal(f, settings.noise).to_event(1), obs=y)


def function_space(start: ArmNetwork, settings: Settings) -> tuple[Any, Any, ELBO]:
    """Return model, guide and loss under a process as prior."""

    def model(points: jax.Array, y: jax.Array, ratio: jax.Array, prior: Any) -> None:
        f = numpyro.sample("f", prior(points))
        likelihood(f, y, ratio, settings)

    def guide(points: jax.Array, y: jax.Array, ratio: jax.Array, prior: Any) -> None:
        numpyro.sample("f", eqx_module("q", start)(points))

    num_arms = start.network.layers[-1].bias.shape[0]

    def measured(key: jax.Array, points: jax.Array) -> jax.Array:
        context_key, arm_key = jax.random.split(key)
        contexts = DataNoise(settings.num_measured)(context_key, points[:, :-1])
        arms = jax.random.randint(arm_key, (settings.num_measured, 1), 0, num_arms)
        return jnp.concatenate([contexts, arms.astype(contexts.dtype)], axis=1)

    count, ridge = settings.num_particles, settings.ridge
    return model, guide, FunctionalELBO(measured, "gaussian", settings.weight, count, noise=ridge)


def weight_space(start: ArmNetwork, settings: Settings) -> tuple[Any, Any, ELBO]:
    """Return model, guide and loss under independent normal weights as prior."""

    def drawn(network: ip.processes.BayesianNetwork) -> list[tuple[jax.Array, jax.Array]]:
        return [
            (
                normal(f"w{i}", layer.weight, layer.weight_log_scale),
                normal(f"b{i}", layer.bias, layer.bias_log_scale),
            )
            for i, layer in enumerate(network.layers)
        ]

    def model(points: jax.Array, y: jax.Array, ratio: jax.Array, prior: Any) -> None:
        sizes = points.shape[1] - 1, settings.width, 1, start.network.layers[-1].bias.shape[0]
        weights = drawn(ip.processes.BayesianNetwork.prior(*sizes))
        hidden = points[:, :-1]
        for index, (weight, bias) in enumerate(weights):
            hidden = (jax.nn.relu(hidden) if index else hidden) @ weight.T + bias
        arms = points[:, -1:].astype(int)
        f = jnp.take_along_axis(hidden, arms, axis=1)[:, 0]
        likelihood(f, y, ratio, settings)

    def guide(points: jax.Array, y: jax.Array, ratio: jax.Array, prior: Any) -> None:
        drawn(eqx_module("q", start).network)

    return model, guide, Trace_ELBO(num_particles=settings.num_particles)


def normal(name: str, loc: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Draw independent normal weights at one site."""
    return numpyro.sample(name, dist.Normal(loc, jnp.exp(log_scale)).to_event(loc.ndim))


SPACES = {"function": function_space, "weight": weight_space}
History = tuple[jax.Array, jax.Array, jax.Array]


def inference(space: str, start: ArmNetwork, settings: Settings) -> SVI:
    """Return the inference in "function" or "weight" space."""
    model, guide, loss = SPACES[space](start, settings)
    return SVI(model, guide, optax.adam(settings.learning_rate), loss)


def batch(
    key: jax.Array, history: History, count: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return points (B, D + 1), scaled rewards (B,), and rows seen over B."""
    contexts, arms, rewards = history
    size = settings.batch_size
    seen = jnp.arange(len(arms)) < count
    centre = jnp.sum(jnp.where(seen, rewards, 0)) / count
    scale = jnp.sqrt(jnp.sum(jnp.where(seen, (rewards - centre) ** 2, 0)) / count)
    rows = jax.random.randint(key, (size,), 0, count)
    points = jnp.column_stack([contexts[rows], arms[rows]])
    found = (
        points,
        (rewards[rows] - centre) / jnp.maximum(scale, settings.least_scale),
        count / size,
    )
    return jax.tree.map(lambda a: a.astype(jnp.float32), found)


@eqx.filter_jit
def begin(
    key: jax.Array,
    start: ArmNetwork,
    kernel: Kernel,
    history: History,
    count: jax.Array,
    space: str,
    settings: Settings,
) -> Any:
    """Return the state of the training before its first step."""
    svi = inference(space, start, settings)
    return svi.init(
        key, *batch(key, history, count, settings), prior_of(kernel, history[0].shape[1])
    )


@eqx.filter_jit
def train(
    state: Any,
    key: jax.Array,
    start: ArmNetwork,
    kernel: Kernel,
    history: History,
    count: jax.Array,
    space: str,
    settings: Settings,
) -> tuple[Any, ArmNetwork]:
    """Return the state after `num_steps` and the network. O(S W + n^3) a step, for W weights."""
    svi, prior = inference(space, start, settings), prior_of(kernel, history[0].shape[1])
    # Of this state nothing is used, but making it tells `svi` how parameters are constrained.
    svi.init(key, *batch(key, history, count, settings), prior)

    def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return svi.update(state, *batch(key, history, count, settings), prior)

    state, _ = jax.lax.scan(step, state, jax.random.split(key, settings.num_steps))
    return state, eqx.combine(svi.get_params(state)["q$params"], start)


@eqx.filter_jit
def choose(network: ArmNetwork, key: jax.Array, count: jax.Array, context: jax.Array) -> jax.Array:
    """Return the best arm under one function drawn from the posterior."""
    draw = network.network.function(jax.random.fold_in(key, count))
    return jnp.argmax(draw(context[None])[0])


@dataclass
class Learner:
    """The history, padded to the horizon, the network, and the state of its training."""

    contexts: np.ndarray
    choices: np.ndarray
    rewards: np.ndarray
    count: int
    start: ArmNetwork
    network: ArmNetwork
    kernel: Kernel | None
    training: Any
    key: jax.Array


def network_agent(space: str, settings: Settings = DEFAULTS) -> Agent:
    """Return Thompson sampling from one draw of the network for all arms of a context."""

    def init(num_arms: int, num_inputs: int, horizon: int, seed: int) -> Learner:
        history = np.zeros((horizon, num_inputs)), np.zeros(horizon, int), np.zeros(horizon)
        keys = jax.random.split(jax.random.key(seed))
        network = ip.processes.BayesianNetwork(
            num_inputs,
            settings.width,
            1,
            num_arms,
            key=keys[0],
            initial_scale=settings.initial_scale,
        )
        start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ArmNetwork(network))
        return Learner(*history, 0, start, start, None, None, keys[1])

    def act(state: Learner, context: np.ndarray) -> int:
        count = jnp.asarray(state.count)
        return int(choose(state.network, state.key, count, jnp.asarray(context, jnp.float32)))

    def update(state: Learner, context: np.ndarray, arm: int, reward: float) -> Learner:
        row, state.count = state.count, state.count + 1
        state.contexts[row], state.choices[row], state.rewards[row] = context, arm, reward
        num_arms = state.start.network.layers[-1].bias.shape[0]
        is_first = state.count == PULLS * num_arms
        is_due = state.training is not None and state.count % EVERY == 0
        return trained(state, space, settings) if is_first or is_due else state

    return Agent(init, act, update)


def trained(state: Learner, space: str, settings: Settings) -> Learner:
    """Return the state after one train call; the first one fixes the kernel of the prior."""
    contexts, choices = jnp.asarray(state.contexts), jnp.asarray(state.choices)
    history = contexts, choices, jnp.asarray(state.rewards)
    count = jnp.asarray(state.count)
    keys = jax.random.split(jax.random.fold_in(state.key, TRAINING + state.count))
    kernel = kernel_of(state.contexts[: state.count]) if state.kernel is None else state.kernel
    data = state.start, kernel, history, count, space, settings
    if state.kernel is None:
        state.kernel, state.training = kernel, begin(keys[0], *data)
    state.training, state.network = train(state.training, keys[1], *data)
    return state
