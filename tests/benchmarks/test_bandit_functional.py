"""Network agents of the bandits: the prior, the batch, what is learned, and one compilation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy.stats import norm

import implicitppl as ip
from benchmarks.bandits import functional as networks
from benchmarks.bandits import run as bandits
from benchmarks.bandits.gp import kernel_of
from benchmarks.functional import tables as functional_tables
from tests.helpers import compilations

SMALL = networks.Settings(num_particles=40, batch_size=16, num_measured=16, width=20)


def arm_network(scale: float = 0.1) -> networks.ArmNetwork:
    make = eqx.filter_jit(ip.processes.BayesianNetwork)
    return networks.ArmNetwork(make(2, 5, 1, 3, key=jax.random.key(0), initial_scale=scale))


@eqx.filter_jit
def values_of(process: Any, key: jax.Array, points: jax.Array) -> jax.Array:
    """Return the values at the points of the function that a key draws."""
    return process.function(key)(points)


def test_a_function_of_an_arm_is_that_output_of_the_network() -> None:
    process, key = arm_network(), jax.random.key(1)
    contexts, arms = np.random.default_rng(0).standard_normal((6, 2)), np.array([0, 2, 1, 1, 0, 2])
    points = jnp.asarray(np.column_stack([contexts, arms]))
    outputs = np.asarray(values_of(process.network, key, points[:, :2]))
    found = values_of(process, key, points)
    np.testing.assert_array_equal(found, outputs[np.arange(6), arms])
    ip.processes.check_coherent(process, points, key=key)


def test_the_prior_is_that_of_the_process_agent_and_arms_are_independent() -> None:
    rng = np.random.default_rng(1)
    contexts, arms = rng.standard_normal((8, 2)), np.array([0, 0, 1, 1, 2, 2, 0, 1])
    with jax.enable_x64(True):
        kernel = kernel_of(contexts)
        points = np.column_stack([contexts, arms])
        found = eqx.filter_jit(lambda k: networks.prior_of(k, 2).covariance(points))(kernel)
        gram = np.asarray(eqx.filter_jit(kernel.gram)(jnp.asarray(contexts)))
        expected = gram * (arms[:, None] == arms)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_batch_holds_rows_that_were_seen_in_scaled_rewards() -> None:
    rng = np.random.default_rng(2)
    contexts, arms, rewards = rng.standard_normal((50, 2)), np.arange(50), rng.normal(3, 2, 50)
    rewards[20:] = 1e6  # not seen yet
    history = jnp.asarray(contexts), jnp.asarray(arms), jnp.asarray(rewards)
    draw = jax.jit(networks.batch, static_argnums=3)
    points, y, ratio = draw(jax.random.key(0), history, jnp.asarray(20), SMALL)
    rows = np.asarray(points[:, 2]).astype(int)
    assert rows.max() < 20 and len(set(rows)) > 5
    np.testing.assert_allclose(points[:, :2], contexts[rows], rtol=1e-6)
    scaled = (rewards[:20] - rewards[:20].mean()) / rewards[:20].std()
    np.testing.assert_allclose(y, scaled[rows], atol=1e-5)
    assert float(ratio) == pytest.approx(20 / 16)


@pytest.mark.parametrize("space", list(networks.SPACES))
def test_the_likelihood_counts_every_row_that_was_seen(space: str) -> None:
    # Twice the ratio adds the log likelihood of the batch once more, and nothing else.
    settings, start = SMALL._replace(width=5), arm_network(1e-6)
    rng = np.random.default_rng(3)
    contexts, arms = rng.standard_normal((16, 2)), rng.integers(0, 3, 16)
    points = jnp.asarray(np.column_stack([contexts, arms]))
    f = np.asarray(values_of(start, jax.random.key(5), points))  # hardly varies
    y = f + 0.3 * rng.standard_normal(16).astype(np.float32)

    @eqx.filter_jit
    def loss(start: networks.ArmNetwork, ratio: jax.Array) -> jax.Array:
        svi = networks.inference(space, start, settings)
        data = points, y, ratio, networks.prior_of(kernel_of(contexts), 2)
        return svi.evaluate(svi.init(jax.random.key(4), *data), *data)

    losses = [float(loss(start, jnp.asarray(ratio))) for ratio in (1.0, 2.0)]
    found = losses[0] - losses[1]
    expected = norm.logpdf(y, f, settings.noise).sum()
    assert found == pytest.approx(expected, abs=0.02)
    points_of_others = jnp.asarray(np.column_stack([contexts, (arms + 1) % 3]))
    other_arms = np.asarray(values_of(start, jax.random.key(5), points_of_others))
    wrong = norm.logpdf(y, other_arms, settings.noise).sum()
    assert found != pytest.approx(wrong, abs=0.02)


def test_weights_have_the_stated_prior_and_give_the_function_of_the_guide() -> None:
    start, settings = arm_network(1e-6), SMALL._replace(width=5)
    points = jnp.array([[0.3, -1.0, 2.0], [1.0, 0.5, 0.0]])

    @eqx.filter_jit
    def traced(start: networks.ArmNetwork) -> Any:
        model, guide, _ = networks.weight_space(start, settings)
        data = points, jnp.zeros(2), jnp.ones(()), None
        drawn = handlers.trace(handlers.seed(guide, 0)).get_trace(*data)
        replayed = handlers.replay(handlers.seed(model, 1), drawn)
        trace = handlers.trace(replayed).get_trace(*data)
        scales = [trace[n]["fn"].base_dist.scale.max() for n in ("w0", "b0", "w1", "b1")]
        return trace["y"]["fn"].base_dist.loc, scales

    found, scales = traced(start)
    np.testing.assert_allclose(found, values_of(start, jax.random.key(2), points), atol=1e-4)
    np.testing.assert_allclose(scales, [2**-0.5, 1, 5**-0.5, 1], rtol=1e-6)


def small_bandit(seed: int, horizon: int) -> bandits.Bandit:
    """Return three arms of linear rewards in two inputs."""
    rng = np.random.default_rng(seed)
    contexts = rng.standard_normal((horizon, 2))
    means = contexts @ np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    return bandits.Bandit(contexts, means, means + 0.2 * rng.standard_normal(means.shape))


def regret_of(bandit: bandits.Bandit, arms: np.ndarray) -> float:
    chosen = bandit.means[np.arange(len(arms)), arms]
    return float(np.sum(bandit.means.max(axis=1) - chosen))


@pytest.mark.parametrize(
    "space", ["function", pytest.param("weight", marks=pytest.mark.exhaustive)]
)
def test_a_network_beats_the_uniform_agent_and_compiles_nothing_as_data_grow(space: str) -> None:
    bandit, agent = small_bandit(0, 250), networks.network_agent(space, SMALL)
    arms, counts = np.empty(250, int), []
    with jax.enable_x64(True):
        state = agent.init(3, 2, 250, 1)
        for part in (range(60), range(60, 250)):  # two train calls, then four more
            with compilations() as names:
                for t in part:
                    arms[t] = t % 3 if t < 6 else agent.act(state, bandit.contexts[t])
                    reward = float(bandit.rewards[t, arms[t]])
                    state = agent.update(state, bandit.contexts[t], int(arms[t]), reward)
            counts.append(len(names))
        state.network = state.start  # has learned nothing
        blind = np.array([agent.act(state, context) for context in bandit.contexts])
    assert counts[0] > 0 and counts[1] == 0
    half = bandits.Bandit(*(part[125:] for part in bandit))
    share = bandits.uniform_regret(half)
    assert regret_of(half, arms[125:]) < 0.25 * share < 0.5 * share < regret_of(half, blind[125:])


def test_the_table_of_differences_pairs_seeds() -> None:
    def row(seed: int, agent: str, relative: float) -> dict[str, object]:
        return {"bandit": "wheel", "seed": seed, "agent": agent, "relative": relative}

    ours = [row(1, "functional", 30.0), row(2, "functional", 50.0)]
    others = [row(1, "uniform", 100.0), row(2, "uniform", 100.0), row(2, "GP", 45.0)]
    found = functional_tables.bandits_against([*ours, *others, row(3, "GP", 0.0)])
    assert "| bandit | agent | against uniform | against GP |" in found
    assert found.endswith("| wheel | functional | -60.0 (10.0) | 5.0 |")
