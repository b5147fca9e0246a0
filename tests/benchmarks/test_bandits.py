"""The bandits: rewards as published, exact linear posteriors, and agents that beat the uniform."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.bandits import agents as agents
from benchmarks.bandits import gp as bandit_gp
from benchmarks.bandits import run as bandits
from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import read


def test_the_wheel_pays_as_published() -> None:
    wheel = bandits.wheel(1, 20_000)
    radius = np.linalg.norm(wheel.contexts, axis=1)
    far = radius > 0.95
    # The share of the disc beyond the spokes is 1 - .95^2, within four binomial errors.
    share = 1 - 0.95**2
    assert abs(far.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(far))
    np.testing.assert_array_equal(wheel.means[~far], [[1.2, 1, 1, 1, 1]] * int((~far).sum()))
    assert np.all((wheel.means[far] == 50).sum(axis=1) == 1)
    assert np.all(wheel.means[far, 0] == 1.2)
    # One arm for each quadrant.
    quadrant = (wheel.contexts[far] > 0) @ [2, 1]
    best = [np.unique(wheel.means[far][quadrant == q].argmax(axis=1)) for q in range(4)]
    assert sorted(int(arm) for arms in best for arm in arms) == [1, 2, 3, 4]
    noise = wheel.rewards - wheel.means
    assert noise[~far].std() == pytest.approx(0.05, rel=0.02)
    assert noise[wheel.means == 50].std() == pytest.approx(0.01, rel=0.1)


def test_linear_rewards_have_unit_coefficients_and_the_stated_noise() -> None:
    found = bandits.linear(2, 5000)
    theta = np.linalg.lstsq(found.contexts, found.means, rcond=None)[0]
    np.testing.assert_allclose(np.linalg.norm(theta, axis=0), 1)
    np.testing.assert_allclose(found.contexts @ theta, found.means, atol=1e-10)
    assert (found.rewards - found.means).std() == pytest.approx(0.5, rel=0.02)


def test_the_posterior_of_an_arm_is_the_conjugate_one() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    moments = agents.no_moments(3)
    for i in range(12):  # as rewards come: one at a time
        moments = moments.add(x[i : i + 1], y[i : i + 1])
    found = agents.posterior(moments)
    precision = x.T @ x + 0.25 * np.eye(3)
    np.testing.assert_allclose(found.mean, np.linalg.solve(precision, x.T @ y))
    np.testing.assert_allclose(found.factor @ found.factor.T, precision)
    # The same rate, from the marginal covariance of y.
    marginal = np.eye(12) + x @ x.T / 0.25
    assert found.rate == pytest.approx(6 + 0.5 * y @ np.linalg.solve(marginal, y))
    assert found.shape == 12


def test_draws_have_the_moments_of_the_posterior() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((8, 2)) * [1.0, 4.0], rng.standard_normal(8)
    found = agents.posterior(agents.no_moments(2).add(x, y))
    draws = np.array([found.draw(rng) for _ in range(20_000)])
    expected = found.rate / (found.shape - 1) * np.linalg.inv(x.T @ x + 0.25 * np.eye(2))
    centred = draws - found.mean
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(products.mean(axis=0) - expected) < 4 * error)
    assert np.any(np.abs(products.mean(axis=0) - 1.1 * expected) > 4 * error)
    assert np.all(np.abs(draws.mean(axis=0) - found.mean) < 4 * centred.std(axis=0) / 20_000**0.5)


def test_the_uniform_agent_has_the_regret_that_its_formula_says() -> None:
    bandit = bandits.linear(3, 4000)
    found = bandits.regrets(bandit, agents.uniform(), 7)
    error = found.std() * np.sqrt(len(found))
    assert abs(found.sum() - bandits.uniform_regret(bandit)) < 4 * error
    assert abs(found.sum() - 1.1 * bandits.uniform_regret(bandit)) > 4 * error


def test_linear_thompson_sampling_beats_the_uniform_agent() -> None:
    row = bandits.row_of("linear", 1, "linear", 400)
    assert row["relative"] < 45 and row["half"] < row["relative"]
    # Its rewards shuffled over arms teach it nothing.
    bandit = bandits.linear(1, 400)
    shuffled = np.random.default_rng(0).permuted(bandit.rewards, axis=1)
    found = bandits.regrets(bandit._replace(rewards=shuffled), agents.linear(), 1)
    assert found.sum() > 0.8 * bandits.uniform_regret(bandit)


def test_a_neural_agent_redoes_its_regressions_on_new_features() -> None:
    bandit, agent = bandits.linear(4, 100), agents.neural_linear()
    state = agent.init(8, 10, 100, 0)
    before = state.weights["w1"]
    for t in range(60):
        state = agent.update(state, bandit.contexts[t], t % 8, bandit.rewards[t, t % 8])
        assert (state.weights["w1"] is before) == (t < 49)
    assert sum(m.count for m in state.regressions.moments) == 60
    x = agents.with_one(agents.features(state.weights, bandit.contexts[:60:8]))
    np.testing.assert_allclose(state.regressions.moments[0].xx, x.T @ x)


@pytest.mark.exhaustive
def test_neural_thompson_sampling_beats_the_uniform_agent() -> None:
    assert bandits.row_of("linear", 1, "neural-linear", 800)["half"] < 50


def test_an_arm_that_grows_has_the_posterior_of_the_process() -> None:
    import implicitppl as ip

    rng = np.random.default_rng(5)
    contexts, rewards = rng.standard_normal((20, 2)), 3 + 2 * rng.standard_normal(20)
    kernel, rows, centre, scale = bandit_gp.kernel_of(contexts), np.arange(0, 20, 2), 2.5, 1.7
    with jax.enable_x64(True):
        gram = np.asarray(eqx.filter_jit(kernel.gram)(jnp.asarray(contexts)))
        arm = bandit_gp.empty()
        for row in rows:  # ten rows: beyond the first capacity of eight
            arm = arm.add(int(row), rewards[row], gram[row], gram[row, row] + 0.09)
        again = bandit_gp.arm_of(rows, gram, rewards, 0.3)
        process = ip.gp.GaussianProcess(kernel)
        found = process.condition(contexts[rows], (rewards[rows] - centre) / scale, 0.3)
        expected = found(contexts[1:2])
        for a in (arm, again):
            mean, variance = a.moments(gram[1], gram[1, 1], centre, scale)
            np.testing.assert_allclose(mean, expected.mean[0], rtol=1e-8)
            np.testing.assert_allclose(variance, expected.variance[0], rtol=1e-8)


@pytest.mark.exhaustive
def test_a_process_learns_its_hyperparameters_over_all_arms_and_beats_the_uniform_agent() -> None:
    bandit, agent = bandits.linear(1, 300), bandit_gp.gaussian_process((100,))
    with jax.enable_x64(True):
        assert bandits.regrets(bandit, agent, 1).sum() < 0.7 * bandits.uniform_regret(bandit)
        state = agent.init(8, 10, 300, 0)
        for t in range(100):
            arm = t % 8
            state = agent.update(state, bandit.contexts[t], arm, bandit.rewards[t, arm])
    assert state.noise != bandit_gp.NOISE_SD
    # Rewards are linear in the context: the linear part explains most of their variance of one.
    linear = 10 * float(state.kernel.second.variance)
    assert linear > float(state.kernel.first.variance)
    assert [list(a.rows) for a in state.arms] == [list(range(a, 100, 8)) for a in range(8)]


def test_rows_resume(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--out", str(out), "--agents", "uniform", "--seeds", "2", "--horizon", "50"]
    bandits.main([*arguments, "--bandits", "wheel"])
    bandits.main(arguments)
    rows = read(out)
    assert [(r["bandit"], r["seed"]) for r in rows] == [
        ("wheel", 1),
        ("wheel", 2),
        ("linear", 1),
        ("linear", 2),
    ]
    bandits.main(arguments)
    assert read(out) == rows


def test_result_rows_are_those_of_the_protocol() -> None:
    rows = read(RESULTS / "bandits.jsonl")
    keys = [tuple(r[k] for k in bandits.KEY) for r in rows]
    assert len(set(keys)) == len(keys)
    assert all(r["horizon"] == bandits.HORIZON for r in rows)
    assert {r["agent"] for r in rows} <= set(bandits.AGENTS)
