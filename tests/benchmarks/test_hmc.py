"""The sampler benchmark: densities against closed forms, counts against a host, honest figures."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import ESS
from scipy.stats import multivariate_normal, norm

from benchmarks.accuracy.targets import SCHOOLS, TARGETS
from benchmarks.hmc import kernel as hmc_kernel
from benchmarks.hmc import methods as methods
from benchmarks.hmc import numpyro_kernels as hmc_numpyro
from benchmarks.hmc import run as bench
from benchmarks.hmc import runs as hmc_runs
from benchmarks.hmc import tables as tables
from benchmarks.hmc import targets as targets
from benchmarks.hmc import walk as hmc_walk

SCALE = np.array([0.5, 2.0])


def normal_log_density(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum((x / jnp.asarray(SCALE, x.dtype)) ** 2)


def small_target() -> targets.Target:
    """Two independent normal coordinates with scales .5 and 2."""
    return targets.Target("small", 2, normal_log_density, lambda: targets.normal_truth(SCALE))


def differences(log_density: Callable[[Any], Any], points: np.ndarray) -> np.ndarray:
    """Log densities less that of the first point, in float64: constants cancel."""
    with jax.enable_x64(True):
        values = np.asarray(jax.jit(jax.vmap(log_density))(jnp.asarray(points)))
    return values[1:] - values[0]


# Targets


def covariance(name: str) -> np.ndarray:
    if name == "gaussian_10":
        return np.full((10, 10), 0.9) + 0.1 * np.eye(10)
    lags = np.abs(np.subtract.outer(np.arange(50), np.arange(50)))
    return 0.9**lags * np.outer(targets.SCALES, targets.SCALES)


@pytest.mark.parametrize("name", ["gaussian_10", "gaussian_50"])
def test_gaussians_have_the_stated_covariance(name: str) -> None:
    target, cov = targets.find(name), covariance(name)
    points = np.random.default_rng(0).normal(size=(20, len(cov)))
    expected = multivariate_normal(cov=cov).logpdf(points)
    found = differences(target.log_density, points)
    np.testing.assert_allclose(found, expected[1:] - expected[0], rtol=1e-9)
    np.testing.assert_allclose(target.truth().sd, np.sqrt(np.diag(cov)))
    quantiles = norm(scale=np.sqrt(np.diag(cov))).ppf(np.array([[0.05], [0.5], [0.95]]))
    np.testing.assert_allclose(target.truth().quantiles, quantiles, atol=1e-12)


@pytest.mark.parametrize("dimension", [2, 8])
def test_banana_is_a_bent_normal(dimension: int) -> None:
    z = np.random.default_rng(0).normal(size=(20, dimension))
    x = z.copy()
    x[:, 0] *= 10.0
    x[:, 1] += 0.03 * (x[:, 0] ** 2 - 100.0)
    expected = norm.logpdf(z).sum(axis=1)  # the bend has unit Jacobian
    found = differences(targets.find(f"banana_{dimension}").log_density, x)
    np.testing.assert_allclose(found, expected[1:] - expected[0], rtol=1e-9)


def test_banana_truth_agrees_with_its_moments() -> None:
    truth = targets.banana_truth(8)
    sd = np.array([10.0, np.sqrt(1 + 2 * 0.03**2 * 100.0**2), *np.ones(6)])
    np.testing.assert_allclose(truth.sd, sd, rtol=5e-3)  # kurtosis 15: s.e. .2% of 10^6 draws
    assert np.all(np.abs(truth.mean) <= 4 * truth.error)
    assert len(truth.names) == len(truth.error) == truth.quantiles.shape[1] == 8


def test_logistic_regression_is_the_sum_of_its_terms() -> None:
    posterior = targets.breast_cancer()
    design, y = (np.asarray(a, float) for a in posterior.args)
    assert design.shape == (569, 11)
    beta = np.random.default_rng(0).normal(size=(5, 11))
    logits = beta @ design.T
    expected = (y * logits - np.logaddexp(0, logits)).sum(axis=1)
    expected -= 0.5 * (beta**2).sum(axis=1) / 2.5**2
    found = differences(targets.from_posterior(posterior).log_density, beta)
    np.testing.assert_allclose(found, expected[1:] - expected[0], rtol=1e-6)


def test_eight_schools_has_the_jacobian_of_log_tau() -> None:
    target = targets.find("eight_schools")
    points = np.random.default_rng(0).normal(size=(6, 10))  # mu, log tau, theta_trans
    mu, log_tau, z = points[:, 0], points[:, 1], points[:, 2:]
    y, sigma = (np.asarray(a, float) for a in SCHOOLS)
    theta = mu[:, None] + np.exp(log_tau)[:, None] * z
    expected = norm.logpdf(mu, scale=5) + norm.logpdf(z).sum(axis=1)
    expected += norm.logpdf(y, theta, sigma).sum(axis=1)
    expected += -np.log1p(np.exp(2 * log_tau) / 25) + log_tau
    found = differences(target.log_density, points)
    np.testing.assert_allclose(found, expected[1:] - expected[0], rtol=1e-6)


def test_scalars_are_those_of_the_reference(tmp_path: Path) -> None:
    target = targets.from_posterior(TARGETS["product"], tmp_path)
    draws = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert target.truth().names == ["a", "b"]
    np.testing.assert_allclose(target.scalars(draws), draws)


def test_starts_are_uniform_usable_and_the_same_for_any_number() -> None:
    target = dataclasses.replace(
        small_target(), log_density=lambda x: jnp.where(x[0] > 0, 0.0, -jnp.inf)
    )
    few, many = (np.asarray(target.starts(jax.random.key(0), n)) for n in (3, 40))
    np.testing.assert_array_equal(few, many[:3])
    assert np.all(np.abs(many) < 2) and np.all(many[:, 0] > 0)
    assert many[:, 1].min() < -1 and many[:, 1].max() > 1


def test_targets_of_posteriordb_need_their_folder() -> None:
    with pytest.raises(ValueError, match="`data` must"):
        targets.find("arK-arK")
    with pytest.raises(ValueError, match="`name` must"):
        targets.find("nothing")
    assert "arK-arK" in targets.names(Path()) and "arK-arK" not in targets.names(None)


# Counting


def test_the_counter_counts_points_under_every_transformation() -> None:
    counter = hmc_runs.Counter()
    f = counter.wrap(normal_log_density)
    jax.jit(jax.vmap(jax.vmap(f)))(jnp.ones((3, 5, 2))).block_until_ready()
    assert counter.read() == 15
    jax.jit(jax.vmap(jax.grad(f)))(jnp.ones((4, 2))).block_until_ready()
    assert counter.read() == 4

    def loop(n: jax.Array) -> Any:
        body = lambda s: (s[0] + 1, s[1] + f(jnp.ones(2) * n))  # noqa: E731
        return jax.lax.while_loop(lambda s: s[0] < n, body, (0, 0.0))[1]

    jax.jit(jax.vmap(loop))(jnp.array([1, 4])).block_until_ready()
    assert counter.read() == 8, "both points in all four iterations, until the slower one is done"
    assert counter.read() == 0


def fast_first(*names: str) -> list[Any]:
    """Parameters of which only the first is a fast test: the others take seconds to compile."""
    return [names[0], *(pytest.param(name, marks=pytest.mark.exhaustive) for name in names[1:])]


SAME_CODE = {"sa_large", "nuts_dense"}  # as a method before them, with another option


@pytest.mark.parametrize("name", fast_first(*(m for m in methods.METHODS if m not in SAME_CODE)))
def test_stated_evaluations_equal_a_host_count(name: str) -> None:
    if name.startswith("blackjax"):
        pytest.importorskip("blackjax")
    stated, counted = bench.count(name, small_target(), (44, 7))
    assert stated == counted > 0


def test_a_method_that_states_too_little_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(*args: Any, **options: Any) -> hmc_runs.Run:
        run = hmc_walk.adaptive_metropolis(*args, **options)
        return dataclasses.replace(run, evaluations_sampling=run.evaluations_sampling - 1)

    monkeypatch.setitem(methods.METHODS, "lying", methods.Method(lying))
    stated, counted = bench.count("lying", small_target(), (44, 7))
    assert stated == counted - 1


def test_budgets_become_iterations() -> None:
    found = {n: m.sizes(10, 10_000, 30_000) for n, m in methods.METHODS.items()}
    assert found["adaptive_metropolis"] == (2500, 7500, 4)
    assert found["aies"] == (208, 625, 24)  # two evaluations each
    assert found["nuts"] == (1000, 1000, 4)
    assert methods.METHODS["adaptive_metropolis"].sizes(10, 10_000, 30_000, 0.25)[0] == 625
    assert methods.METHODS["nuts"].sizes(10, 10_000, 30_000, 0.25)[0] == 250


# Methods


def test_windows_double_and_leave_a_tenth_for_the_scale() -> None:
    ends = np.flatnonzero(hmc_walk.window_ends(1000)) + 1
    assert ends.tolist() == [28, 56, 112, 225, 450, 900]


@pytest.mark.parametrize("name", fast_first("adaptive_metropolis", "kmc_lite", "kmc_finite"))
def test_learned_proposals_find_the_scales(name: str) -> None:
    run = methods.METHODS[name].run(small_target(), jax.random.key(0), 800, 3000, 4)
    assert run.draws.shape == (4, 3000, 2)
    # 12,000 draws with an autocorrelation time below 20: standard error of an sd below 3%
    np.testing.assert_allclose(run.draws.std(axis=(0, 1)), SCALE, rtol=0.12)
    assert run.cpu_seconds > 0


def off_line(before: jax.Array, after: jax.Array) -> float:
    """The largest angle between a walker's move and the nearest difference of two walkers."""
    moves, ends = np.asarray(after - before, float), np.asarray([before, after], float)
    gaps = (ends[:, :, None] - ends[:, None]).reshape(-1, 2)
    gaps = gaps[np.abs(gaps).sum(axis=1) > 0]
    cross = moves[:, None, 0] * gaps[None, :, 1] - moves[:, None, 1] * gaps[None, :, 0]
    sine = cross / np.linalg.norm(moves, axis=1)[:, None] / np.linalg.norm(gaps, axis=1)
    return float(np.abs(sine).min(axis=1).max())


@pytest.mark.exhaustive
def test_ess_keeps_its_walkers_in_order_and_changes_nothing_else() -> None:
    target = small_target()
    starts, keys = target.starts(jax.random.key(3), 12), jax.random.split(jax.random.key(4), 12)
    options = {"potential_fn": lambda x: -target.log_density(x)}
    angles, rows = [], []
    for kernel in (ESS(**options), hmc_numpyro.CountedESS(hmc_runs.Counter(), **options)):
        step = jax.jit(lambda state, k=kernel: k.sample(state, (), {}))
        first = step(kernel.init(keys, 5, starts))
        rows.append(np.sort(np.asarray(first.z), axis=0))
        # A move goes along the difference of two walkers; a row that changed walkers does not.
        angles.append(off_line(first.z, step(first).z))
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)
    assert angles[1] < 2e-3 < angles[0]


def paper_lite_weights(y: np.ndarray, width: float, ridge: float) -> np.ndarray:
    """Sums over coordinates as in Strathmann et al. 2015, proposition 1."""
    s, n = 2 * width**2, len(y)
    k = np.exp(-((y[:, None] - y[None]) ** 2).sum(axis=2) / s)
    c, b = np.zeros((n, n)), np.zeros(n)
    for column in y.T:
        d = np.diag(column)
        c += (d @ k - k @ d) @ (k @ d - d @ k)
        sums = k @ column**2 + column**2 * k.sum(axis=1) - 2 * column * (k @ column)
        b += (2 / s) * sums - k.sum(axis=1)
    return -(s / 2) * np.linalg.solve(c + ridge * (k + np.eye(n)), b)


def test_lite_weights_are_those_of_the_paper() -> None:
    y = np.random.default_rng(0).normal(size=(30, 3))
    found = hmc_kernel.lite_weights(y, 1.7, 1e-2)
    np.testing.assert_allclose(found, paper_lite_weights(y, 1.7, 1e-2), rtol=1e-7)


def lite_field(y: np.ndarray) -> hmc_kernel.Field:
    leaves = hmc_kernel.lite_leaves(y, np.random.default_rng(0))
    return field(leaves, y.shape[1])


def finite_field(y: np.ndarray) -> hmc_kernel.Field:
    return field(hmc_kernel.finite_leaves(y, np.random.default_rng(0)), y.shape[1])


def field(leaves: tuple[np.ndarray, ...], dimension: int) -> hmc_kernel.Field:
    return hmc_kernel.Field(*map(jnp.asarray, (np.zeros(dimension), np.eye(dimension), *leaves)))


@pytest.mark.parametrize(
    ("make", "force"),
    [(lite_field, hmc_kernel.lite_force), (finite_field, hmc_kernel.finite_force)],
    ids=["lite", "finite"],
)
def test_fitted_forces_pull_towards_the_data(make: Any, force: Any) -> None:
    rng = np.random.default_rng(1)
    fitted = make(rng.normal(size=(300, 2)))
    fresh = rng.normal(size=(200, 2))
    found = np.asarray(jax.vmap(lambda y: force(fitted, y))(jnp.asarray(fresh)))
    cosine = np.sum(found * -fresh) / np.linalg.norm(found) / np.linalg.norm(fresh)
    slope = np.sum(found * -fresh) / np.sum(fresh**2)
    assert cosine > 0.9 and 0.75 < slope < 1.25


def lite_log_q(f: hmc_kernel.Field, y: jax.Array) -> jax.Array:
    return jnp.sum(f.weights * jnp.exp(-0.5 * jnp.sum((y - f.points) ** 2, 1) / f.shift**2))


def finite_log_q(f: hmc_kernel.Field, y: jax.Array) -> jax.Array:
    return jnp.sqrt(2.0 / len(f.shift)) * jnp.sum(f.weights * jnp.cos(f.points @ y + f.shift))


def test_forces_and_losses_are_those_of_the_stated_log_densities() -> None:
    rng = np.random.default_rng(0)
    points, weights, v = rng.normal(size=(6, 3)), rng.normal(size=6), rng.normal(size=(4, 3))
    phases = rng.uniform(0, 6, 6)

    def score_matching(log_q: Callable[[Any], Any]) -> float:
        def loss(y: Any) -> Any:
            return 0.5 * jnp.sum(jax.grad(log_q)(y) ** 2) + jnp.trace(jax.hessian(log_q)(y))

        return float(jnp.mean(jax.jit(jax.vmap(loss))(jnp.asarray(v))))

    with jax.enable_x64(True):
        lite = field((points, np.asarray(1.3), weights), 3)
        finite = field((points, phases, weights), 3)
        y = jnp.asarray(v[0])
        for f, log_q, force in (
            (lite, lite_log_q, hmc_kernel.lite_force),
            (finite, finite_log_q, hmc_kernel.finite_force),
        ):
            expected = jax.jit(jax.grad(log_q, argnums=1))(f, y)
            np.testing.assert_allclose(jax.jit(force)(f, y), expected, rtol=1e-9)
        expected_loss = score_matching(lambda y: lite_log_q(lite, y))
        assert hmc_kernel.lite_loss(v, points, 1.3, weights) == pytest.approx(
            expected_loss, rel=1e-9
        )
        b, c = hmc_kernel.finite_moments(v, points, phases)
        expected_loss = score_matching(lambda y: finite_log_q(finite, y))
        assert 0.5 * weights @ c @ weights - weights @ b == pytest.approx(expected_loss, rel=1e-9)


def wrong_field_moments(correct: bool) -> np.ndarray:
    """E[x^2]/scale^2 in standard errors from 1, of HMC along a wrong force, 2,000 chains."""
    wrong = field((np.zeros((1, 2)), np.asarray(1.0), np.ones(1)), 2)
    force = lambda f, y: jnp.array([[0.0, 1.0], [-1.0, -0.5]]) @ y  # noqa: E731
    step_size = jnp.asarray(0.15)
    density = normal_log_density if correct else (lambda x: 0.8 * normal_log_density(x))

    @jax.jit
    def run(x: jax.Array, keys: jax.Array) -> jax.Array:
        def body(state: Any, key: jax.Array) -> Any:
            x, value, _ = hmc_kernel.hamiltonian_step(force, density, wrong, step_size, key, *state)
            return (x, value), None

        return jax.lax.scan(body, (x, hmc_walk.values(density, x)), keys)[0][0]

    start = jax.random.normal(jax.random.key(0), (2000, 2)) * jnp.asarray(SCALE)
    squares = np.asarray(run(start, jax.random.split(jax.random.key(1), 300))) ** 2 / SCALE**2
    return (squares.mean(axis=0) - 1) / (squares.std(axis=0) / np.sqrt(len(squares)))


@pytest.mark.statistical
def test_a_wrong_force_costs_acceptance_and_not_correctness() -> None:
    assert np.all(np.abs(wrong_field_moments(True)) < 4)
    assert np.any(np.abs(wrong_field_moments(False)) > 4)


def test_nan_proposals_are_rejected() -> None:
    accept, probability = hmc_walk.accepted(jax.random.key(0), jnp.array([jnp.nan, 5.0]))
    assert accept.tolist() == [False, True] and probability.tolist() == [0.0, 1.0]


# Figures


def autoregression(rho: float, size: tuple[int, int]) -> np.ndarray:
    """Stationary chains `(C, N, 1)` of x_t = rho x_{t-1} + noise, variance 1."""
    noise = np.random.default_rng(0).normal(size=size)
    x = np.empty(size)
    x[:, 0] = noise[:, 0]
    for t in range(1, size[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return x[..., None]


def test_effective_draws_of_an_autoregression() -> None:
    draws = autoregression(0.9, (4, 10_000))
    expected = draws.size * (1 - 0.9) / (1 + 0.9)
    assert bench.mixing(draws)["ess_bulk"] == pytest.approx(expected, rel=0.15)
    assert bench.mixing(draws)["rhat"] < 1.01
    shuffled = np.random.default_rng(1).permutation(draws.reshape(-1, 1)).reshape(draws.shape)
    assert bench.mixing(shuffled)["ess_bulk"] > 5 * expected


def test_a_chain_that_stands_still_has_no_effective_draws() -> None:
    draws = autoregression(0.0, (4, 100))
    draws[2] = 1.0
    assert bench.stuck(draws) == 1
    assert bench.mixing(draws) == {"ess_bulk": 0.0, "ess_tail": 0.0, "rhat": float("inf")}
    draws[2] = np.nan
    assert bench.stuck(draws) == 1


def test_many_walkers_are_judged_as_four_chains() -> None:
    draws = autoregression(0.5, (40, 60))
    parts = bench.grouped(draws)
    assert parts.shape == (4, 600, 1)
    np.testing.assert_array_equal(parts[0, :10, 0], draws[:10, 0, 0])
    assert bench.mixing(draws)["rhat"] < 1.02
    draws[:10] += 1.0  # a quarter of the walkers elsewhere
    assert bench.mixing(draws)["rhat"] > 1.05


def test_errors_are_in_sds_of_the_truth() -> None:
    draws = autoregression(0.0, (4, 20_000)) * SCALE
    truth = targets.normal_truth(SCALE)
    assert bench.errors(draws, truth)["z"] < 4
    assert bench.errors(draws, truth)["q95_error"] < 0.05
    found = bench.errors(1.2 * draws + 0.3 * SCALE, truth)
    assert found["mean_error"] == pytest.approx(0.3, abs=0.03)
    assert found["sd_ratio_high"] == pytest.approx(1.2, abs=0.03)
    assert found["q95_error"] == pytest.approx(0.3 + 0.2 * 1.645, abs=0.05)
    assert found["z"] > 20
    draws[0, 0, 0] = np.inf
    assert set(bench.errors(draws, truth).values()) == {float("inf")}


def test_evaluations_to_400_count_the_warm_up() -> None:
    run = hmc_runs.Run(
        np.zeros((1, 1, 1)), 1000, 5000, necessary_warmup=500, necessary_sampling=900
    )
    found = bench.efficiency(run, {"ess_bulk": 200.0, "ess_tail": 100.0})
    assert found["evaluations_to_400"] == 1000 + 400 * 50
    assert found["necessary_to_400"] == 500 + 400 * 9
    assert found["bulk_per_evaluation"] == 0.04
    assert not found["reached_400"]
    none = bench.efficiency(run, {"ess_bulk": 0.0, "ess_tail": 0.0})
    assert none["evaluations_to_400"] == float("inf")


# Running


def test_a_row_has_every_figure() -> None:
    row = bench.row_of("adaptive_metropolis", small_target(), 0.5, 0, (800, 800))
    assert "error" not in row
    assert row["num_warmup"] == 100 and row["num_samples"] == 200
    assert set(tables.FIGURES) - {"necessary_to_400"} <= set(row)
    failed = bench.row_of("adaptive_metropolis:nothing=1", small_target(), 1.0, 0, (80, 80))
    assert failed["error"].startswith("TypeError")


def test_methods_have_options() -> None:
    name, options = bench.parse_method("sa:points_per_dimension=5,kind=fast")
    assert (name, options) == ("sa", {"points_per_dimension": 5, "kind": "fast"})
    run, sizes = bench.run_method(
        "adaptive_metropolis:num_chains=3,num_samples=6", small_target(), 1.0, 0, (40, 80)
    )
    assert run.draws.shape == (3, 6, 2) and sizes["num_chains"] == 3
    with pytest.raises(ValueError, match="`method` must be one of"):
        bench.parse_method("nothing")
    with pytest.raises(ValueError, match="must be key=value"):
        bench.parse_method("sa:fast")


def test_the_plugin_is_called_with_sizes_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def score_hmc(target: Any, key: Any, **options: Any) -> hmc_runs.Run:
        seen.update(options)
        return hmc_runs.Run(np.zeros((4, 10, 2)), 1, 1)

    monkeypatch.setitem(sys.modules, bench.PLUGIN_MODULE, SimpleNamespace(score_hmc=score_hmc))
    bench.run_method("score_hmc_cubic:degree=3", small_target(), 1.0, 0, (40, 80))
    assert seen == {"num_warmup": 10, "num_samples": 20, "num_chains": 4, "degree": 3}


def test_a_missing_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PLUGIN_MODULE", "benchmarks.no_such_module")
    with pytest.raises(ImportError, match=r"benchmarks\.no_such_module, which does not exist"):
        bench.find_method("score_hmc")


# Tables


def row(method: str, seed: int = 0, share: float = 1.0, **figures: Any) -> dict[str, Any]:
    zeros = dict.fromkeys(tables.FIGURES, 0.0)
    good = {"rhat": 1.0, "sd_ratio_low": 1.0, "sd_ratio_high": 1.0, "reached_400": True}
    head = {"target": "t", "method": method, "share": share, "seed": seed, "gradients": False}
    return head | zeros | good | {"date": "2026-01-01", "versions": {"jax": "0.10"}} | figures


def line(rows: list[dict[str, Any]]) -> str:
    return tables.table(rows, tables.thousands, "evaluations_to_400").splitlines()[-1]


def test_cells_are_medians_over_seeds() -> None:
    rows = [row("sa", seed, evaluations_to_400=1000.0 * n) for seed, n in enumerate((9, 1, 2))]
    assert line(rows) == "| t | **2** |"


def test_the_largest_r_hat_of_any_seed_stands_beside_the_median() -> None:
    rows = [row("sa", seed, rhat=value) for seed, value in enumerate((1.001, 1.004, 2.7))]
    assert "| t | 1.004 (2.700) |" in tables.tables(rows)


def test_the_better_share_counts_and_sound_ones_come_first() -> None:
    short = row("sa", share=0.25, evaluations_to_400=1000.0)
    long = row("sa", share=1.0, evaluations_to_400=5000.0)
    assert line([long, short]) == "| t | **1** |"
    assert line([long, short | {"rhat": 1.02}]) == "| t | **5** |"
    assert line([long | {"z": 4.1}, short | {"sd_ratio_low": 0.7}]) == "| t | *1* |"


def test_what_is_not_sound_or_has_gradients_is_never_the_best() -> None:
    rows = [
        row("sa", evaluations_to_400=3000.0),
        row("aies", evaluations_to_400=1000.0, rhat=1.2),
        row("nuts", evaluations_to_400=500.0, gradients=True),
    ]
    assert line(rows) == "| t | **3** | *1* | 0.5 |"


def test_extrapolated_and_hopeless_cells_say_so() -> None:
    rows = [
        row("sa", evaluations_to_400=3000.0, reached_400=False),
        row("aies", evaluations_to_400=float("inf")),
    ]
    assert line(rows) == "| t | **3+** | >10,000 |"
    assert line([row("sa", evaluations_to_400=1.234e6)]) == "| t | **1,234** |"


def test_errors_are_listed_and_the_page_changes_between_markers_only() -> None:
    failed = {k: v for k, v in row("aies").items() if k not in tables.FIGURES}
    rows = [row("sa", necessary_to_400=1.0), failed | {"error": "ValueError: no"}]
    text = tables.tables(rows)
    assert "Failed: t, aies: ValueError: no." in text
    page = f"a\n{tables.BEGIN}\nold\n{tables.END}\nb"
    once = tables.insert(page, text)
    assert once == f"a\n{tables.BEGIN}\n\n{text}\n\n{tables.END}\nb"
    assert tables.insert(once, text) == once
    with pytest.raises(ValueError, match="the page must contain"):
        tables.insert("a", text)
