"""The kernel: right answers, one evaluation a draw, frozen after warm-up, every chain method."""

import warnings
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jaxtyping import Array
from numpyro.infer import MCMC, init_to_value
from scipy import stats

import implicitppl as ip
from implicitppl._core.frames import Frame
from implicitppl.infer import Evaluations, ScoreHMC
from implicitppl.infer._score_hmc import kinds
from implicitppl.infer._score_hmc.evaluations import empty_evaluations, filled
from implicitppl.infer._score_hmc.learners.explore import NUM_WALKERS, _round
from implicitppl.infer._score_hmc.learners.learner import Choices
from implicitppl.infer._score_hmc.learners.surrogate import Surrogate
from implicitppl.infer._score_hmc.learners.values import make_values
from implicitppl.infer._score_hmc.problem import Model, WholeProblem
from implicitppl.infer._score_hmc.schedule import make_schedule
from implicitppl.infer._score_hmc.warmup import descending
from implicitppl.models import black_box

CHAINS, WARMUP, DRAWS = 2, 30, 60  # few evaluations: one size of fit is compiled, not two
# With an axis of chains; what all chains learn together is collected where they learn alone.
OF_EACH = (
    *ScoreHMC.diagnostic_fields,
    "mean_accept_prob",
    "num_steps",
    "report.failures",
)
TOGETHER = ("adaptation.step_size", "surrogate.fitted", "evaluations.count")
DATA = np.array([1.2, 0.7, 1.9, 1.4], np.float32)


class Counted:
    """A host function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.asarray(np.sinh(x), dtype=x.dtype)


def model(simulate: Any, y: Any = DATA) -> None:
    """The mean of the data is a host function of x; sigma is not opaque."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    mean = black_box("mean", simulate, x, out=())
    numpyro.deterministic("twice", 2 * mean)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def truth() -> tuple[float, float, float, float]:
    """Mean and sd of x and of log sigma, on a grid."""
    x, s = np.meshgrid(np.linspace(-2, 3, 401), np.linspace(-4, 2.5, 401), indexing="ij")
    sigma = np.exp(s)
    log_p = -0.5 * x**2 - 0.5 * sigma**2 + s - len(DATA) * s
    for y in DATA:
        log_p = log_p - 0.5 * ((y - np.sinh(x)) / sigma) ** 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    means = [float(np.sum(p * v)) for v in (x, s)]
    sds = [float(np.sqrt(np.sum(p * v**2) - m**2)) for v, m in zip((x, s), means, strict=True)]
    return means[0], sds[0], means[1], sds[1]


def mcmc_of(kernel: Any, chain_method: Any = "vectorized", num_chains: int = CHAINS) -> MCMC:
    return MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def finished() -> tuple[MCMC, Counted]:
    """One vectorized run of the model, and its host function."""
    simulate = Counted()
    mcmc = mcmc_of(ScoreHMC(model))
    mcmc.run(jax.random.key(0), simulate, extra_fields=OF_EACH)
    jax.block_until_ready(mcmc.get_samples())
    return mcmc, simulate


def test_host_calls_are_those_reported(finished: tuple[MCMC, Counted]) -> None:
    # Nothing but the start and one evaluation for each chain and iteration; none afterwards.
    mcmc, simulate = finished
    reported = mcmc.get_extra_fields(group_by_chain=True)["num_evaluations"][:, -1]
    assert int(np.sum(reported)) == simulate.calls
    assert simulate.calls == CHAINS * (1 + WARMUP + DRAWS)


def test_every_field_of_a_chain_is_collected(finished: tuple[MCMC, Counted]) -> None:
    # Properties of the state are collected as its parts are: by name, with the axis of chains.
    mcmc, _ = finished
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert set(fields) == {*OF_EACH, "diverging"}
    for name, value in fields.items():
        assert value.shape[:2] == (CHAINS, DRAWS), name
    state = mcmc.last_state
    for name in OF_EACH:
        np.testing.assert_array_equal(fields[name][:, -1], attrgetter(name)(state))
    properties = {k for k, v in vars(type(state)).items() if isinstance(v, property)}
    assert properties >= set(ScoreHMC.diagnostic_fields)
    shared = {"adaptation", "surrogate", "evaluations"}
    for name in properties - shared:
        for leaf in jax.tree.leaves(getattr(state, name)):
            assert leaf.shape[0] == CHAINS, name
    summed = np.asarray(fields["report.failures"]).sum(axis=1)
    np.testing.assert_array_equal(summed, np.ptp(np.asarray(fields["num_failures"]), axis=1))


def test_outputs_are_those_of_the_host(finished: tuple[MCMC, Counted]) -> None:
    draws = finished[0].get_samples()
    assert set(draws) == {"x", "sigma", "mean", "twice"}
    np.testing.assert_allclose(draws["mean"], np.sinh(np.asarray(draws["x"])), rtol=1e-5)
    np.testing.assert_allclose(draws["twice"], 2 * np.asarray(draws["mean"]), rtol=1e-6)


def test_the_potential_is_the_true_one(finished: tuple[MCMC, Counted]) -> None:
    state = finished[0].last_state
    for c in range(CHAINS):
        x, s = float(state.z["x"][c]), float(state.z["sigma"][c])
        sigma = np.exp(s)
        log_p = stats.norm.logpdf(x) + stats.halfnorm.logpdf(sigma) + s
        log_p += np.sum(stats.norm.logpdf(DATA, np.sinh(x), sigma))
        np.testing.assert_allclose(state.potential_energy[c], -log_p, rtol=1e-4)


@pytest.mark.slow
def test_nothing_is_learned_after_warm_up() -> None:
    mcmc = mcmc_of(ScoreHMC(model))
    simulate = Counted()
    mcmc.warmup(jax.random.key(1), simulate)
    before = mcmc.post_warmup_state
    mcmc.run(jax.random.key(2), simulate)
    after = mcmc.last_state
    for name in ("surrogate", "evaluations", "adaptation", "step_size", "num_kept"):
        for old, new in zip(
            jax.tree.leaves(getattr(before, name)),
            jax.tree.leaves(getattr(after, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)
    assert bool(after.surrogate.fitted)
    assert not np.array_equal(before.z["x"], after.z["x"])


def test_print_summary_shows_latent_sites_only(
    finished: tuple[MCMC, Counted], capsys: pytest.CaptureFixture[str]
) -> None:
    finished[0].print_summary()
    printed = capsys.readouterr().out
    header, *rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert header[0] == "mean"  # the first column, and no row
    assert {row[0] for row in rows} == {"sigma", "x", "Number"}


def test_arviz_needs_no_host(finished: tuple[MCMC, Counted]) -> None:
    mcmc, simulate = finished
    calls = simulate.calls
    data = ip.diagnostics.to_arviz(mcmc)
    assert data["posterior"]["mean"].shape == (CHAINS, DRAWS)
    assert "surrogate_error" in data["sample_stats"]
    assert simulate.calls == calls
    draws = {k: np.asarray(v)[..., None] for k, v in mcmc.get_samples(group_by_chain=True).items()}
    expected = stats.norm.logpdf(DATA, draws["mean"], draws["sigma"])
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, rtol=1e-4)
    assert data["posterior_predictive"]["y"].shape == (CHAINS, DRAWS, len(DATA))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers")  # NumPyro's, under a callable
@pytest.mark.parametrize("method", ["sequential", jax.vmap])
def test_chains_that_learn_alone(method: Any) -> None:
    simulate = Counted()
    mcmc = mcmc_of(ScoreHMC(model), method, num_chains=2)
    mcmc.run(jax.random.key(0), simulate, extra_fields=OF_EACH + TOGETHER)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    jax.block_until_ready(fields)
    assert simulate.calls == 2 * (1 + WARMUP + DRAWS)
    assert all(value.shape[:2] == (2, DRAWS) for value in fields.values())
    assert fields["evaluations.count"][0, -1] == fields["num_kept"][0, -1]
    assert int(fields["num_kept"][0, -1]) == WARMUP + 1
    kept = np.asarray(mcmc.last_state.evaluations.potential)
    assert not np.array_equal(kept[0], kept[1])


@pytest.mark.slow
@pytest.mark.statistical
def test_posterior_moments() -> None:
    mcmc = MCMC(
        ScoreHMC(model),
        num_warmup=100,
        num_samples=3000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(3), Counted(), extra_fields=OF_EACH)
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    import arviz as az

    mean_x, sd_x, mean_s, sd_s = truth()
    for name, values, mean, sd in (
        ("x", draws["x"], mean_x, sd_x),
        ("s", np.log(draws["sigma"]), mean_s, sd_s),
    ):
        size = float(az.ess(values))
        assert size > 1500, name
        assert abs(values.mean() - mean) < 4 * sd / np.sqrt(size), name
        spread = float(az.ess((values - mean) ** 2))
        assert abs(values.var() / sd**2 - 1) < 4 * np.sqrt(3 / spread), name


def potential(x: Array) -> Array:
    """Bent, and without a gradient: differentiating it raises."""
    out = jax.pure_callback(
        lambda x: np.float32(0.5 * x[0] ** 2 + (x[1] - 0.5 * np.sin(x[0])) ** 2),
        jax.ShapeDtypeStruct((), jnp.float32),
        x,
        vmap_method="sequential",
    )
    return out


@pytest.mark.smoke
def test_a_potential_that_cannot_be_differentiated() -> None:
    mcmc = mcmc_of(ScoreHMC(potential_fn=potential))
    mcmc.run(jax.random.key(0), init_params=jnp.ones((CHAINS, 2)), extra_fields=OF_EACH)
    draws = np.asarray(mcmc.get_samples())
    assert draws.shape == (CHAINS * DRAWS, 2)
    assert 0.3 < float(np.std(draws[:, 0])) < 2.0
    fit = mcmc.last_state.surrogate.fits["potential"]
    assert float(fit.info.error) < 0.5 * float(fit.info.trend_error)


@pytest.mark.slow
def test_evaluations_outlive_their_run(tmp_path: Path, finished: tuple[MCMC, Counted]) -> None:
    kept = finished[0].last_state.evaluations
    assert int(kept.size) == CHAINS * (WARMUP + 1)
    kept.save(tmp_path / "kept.npz")
    loaded = Evaluations.load(tmp_path / "kept.npz")
    np.testing.assert_allclose(
        np.sort(np.asarray(loaded.potential)), np.sort(np.asarray(kept.potential))
    )
    simulate = Counted()
    kernel = ScoreHMC(model, evaluations=loaded)
    mcmc = MCMC(
        kernel,
        num_warmup=10,
        num_samples=10,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(5), simulate, extra_fields=OF_EACH)
    fields = mcmc.get_extra_fields()
    assert int(fields["num_kept"][-1]) == int(kept.size) + 2 * 11
    # The first fit comes before the first move.
    assert make_schedule(10, 2, 2, int(kept.size)).fits[0] == 0
    assert bool(mcmc.last_state.surrogate.fitted)
    count = mcmc.last_state.surrogate.fits["mean"].info.num_points
    assert int(count) > 2 * 11


@pytest.mark.slow
def test_failures_reject_and_are_counted() -> None:
    def fragile(x: np.ndarray) -> np.ndarray:
        if x > 1.0:
            raise RuntimeError("no convergence")
        return np.asarray(x)

    def failing(y: float) -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        mean = black_box("mean", fragile, x, out=(), on_failure="reject")
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    mcmc = mcmc_of(ScoreHMC(failing))
    mcmc.run(jax.random.key(0), 1.5, extra_fields=OF_EACH)
    assert float(jnp.max(mcmc.get_samples()["x"])) <= 1.0
    failures = mcmc.last_state.num_failures
    assert failures.shape == (CHAINS, 3)
    assert int(jnp.sum(failures[:, 0])) > 0
    assert int(jnp.sum(failures[:, 1:])) == 0


@pytest.mark.slow
def test_one_chain_of_one_dimension_with_a_short_warm_up() -> None:
    def normal() -> None:
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    mcmc = MCMC(ScoreHMC(normal), num_warmup=3, num_samples=20, progress_bar=False)
    with pytest.warns(UserWarning, match="too short"):
        mcmc.run(jax.random.key(0))
    assert not bool(mcmc.last_state.surrogate.fitted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MCMC(ScoreHMC(normal), num_warmup=30, num_samples=5, progress_bar=False).run(
            jax.random.key(0)
        )


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="Exactly one"):
        ScoreHMC()
    with pytest.raises(ValueError, match="safe_move_prob"):
        ScoreHMC(model, safe_move_prob=0.0)
    with pytest.raises(ValueError, match="num_kept"):
        ScoreHMC(model, num_kept=3)

    def discrete() -> None:
        numpyro.sample("k", dist.Bernoulli(0.5))

    def impossible() -> None:
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("never", jnp.nan)

    def bounded() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("wall", jnp.where(x > 50, 0.0, -jnp.inf))

    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"got discrete \['k'\]"):
        mcmc_of(ScoreHMC(discrete)).run(key)
    with pytest.raises(RuntimeError, match="No starting point"):
        mcmc_of(ScoreHMC(impossible)).run(key)
    with pytest.raises(RuntimeError, match="No starting point"):
        mcmc_of(ScoreHMC(bounded)).run(key)
    with pytest.raises(ValueError, match="`init_params` must have a finite potential"):
        mcmc_of(ScoreHMC(bounded)).run(key, init_params={"x": jnp.zeros(CHAINS)})
    with pytest.raises(ValueError, match="init_params"):
        mcmc_of(ScoreHMC(potential_fn=potential)).run(key)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_starting_points_are_drawn_again() -> None:
    def narrow() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("wall", jnp.where(x > 1.8, 0.0, -jnp.inf))

    mcmc = mcmc_of(ScoreHMC(narrow))
    mcmc.run(jax.random.key(0), extra_fields=OF_EACH)
    assert float(jnp.min(mcmc.get_samples()["x"])) > 1.8
    tries = mcmc.get_extra_fields(group_by_chain=True)["num_evaluations"][:, -1] - WARMUP - DRAWS
    assert int(jnp.min(tries)) > 1


def test_init_strategy_is_used() -> None:
    kernel = ScoreHMC(model, init_strategy=init_to_value(values={"x": 0.3, "sigma": 1.0}))
    keys = jax.random.split(jax.random.key(0), 2)
    z = jax.jit(lambda keys: kernel.init(keys, 10, None, (Counted(),), {}).z)(keys)
    np.testing.assert_allclose(z["x"], 0.3)


def test_the_plan() -> None:
    plan = make_schedule(300, 4, 10, 0)
    assert plan.trials == 240
    assert plan.fits[-2:] == (240, 299)
    assert all(b > a for a, b in zip(plan.fits, plan.fits[1:], strict=False))
    assert 4 * (plan.fits[0] + 1) >= 12
    assert make_schedule(300, 4, 10, 100).fits[0] == 0
    assert make_schedule(2, 1, 10, 0).fits == ()


def test_a_refused_jump_does_not_spoil_the_comparison() -> None:
    learner = make_values(100, (2, 2), 0, None, Choices(safe=0.1))
    old = kinds.initial(2, jnp.dtype(jnp.float32))
    accept = jnp.array([0.0, 0.5])
    jump = jnp.array([[jnp.nan, jnp.inf], [2.0, 1.0]])
    adapted = jax.jit(lambda i, kind: learner.adapted(i, kind, accept, jump, old, 100))
    new = adapted(90, 3)
    np.testing.assert_allclose(new.jumps[3], [1.0, 0.25])
    assert int(new.trials[3]) == 1


def test_the_best_move_is_that_which_moves_every_coordinate() -> None:
    adaptation = kinds.initial(2, jnp.dtype(jnp.float32))
    jumps = jnp.ones((kinds.NUM_MOVES, 2)).at[2].set(jnp.array([9.0, 0.0])).at[3].set(2.0)
    adaptation = adaptation._replace(jumps=jumps, trials=jnp.ones(kinds.NUM_MOVES, jnp.int32))
    probabilities = kinds.decide(adaptation, 0.05)
    assert int(jnp.argmax(probabilities)) == 3
    np.testing.assert_allclose(jnp.sum(probabilities), 1.0, rtol=1e-6)
    np.testing.assert_allclose(probabilities[0], 0.05, rtol=1e-6)
    walk = kinds.decide(adaptation._replace(jumps=jumps.at[0].set(5.0)), 0.05)
    assert float(walk[0]) == pytest.approx(0.8)


def test_points_of_a_design_become_evaluations() -> None:
    # Constrained values go in; the potential is that of the unconstrained ones.
    simulate = Counted()
    kernel = ScoreHMC(model)
    evaluate = jax.jit(lambda points: kernel.evaluate(jax.random.key(0), points, simulate))
    points = {
        "x": np.linspace(-1.0, 2.0, 9, dtype=np.float32),
        "sigma": np.exp(np.linspace(-1.0, 1.0, 9, dtype=np.float32)),
        "mean": np.zeros(9, np.float32),  # what is not latent is left out
    }
    known = evaluate(points)
    assert simulate.calls == 9
    rows = filled(known)
    np.testing.assert_allclose(rows.inputs["mean"][:, 0], points["x"], rtol=1e-6)
    np.testing.assert_allclose(rows.outputs["mean"][:, 0], np.sinh(points["x"]), rtol=1e-5)
    sigma = points["sigma"]
    log_p = stats.norm.logpdf(points["x"]) + stats.halfnorm.logpdf(sigma) + np.log(sigma)
    for y in DATA:
        log_p = log_p + stats.norm.logpdf(y, np.sinh(points["x"]), sigma)
    np.testing.assert_allclose(rows.potential, -log_p, rtol=1e-4)
    state = ScoreHMC(model, evaluations=known).init(
        jax.random.split(jax.random.key(1), 2), 20, None, (simulate,), {}
    )
    assert int(state.num_kept[0]) == 9 + 2
    with pytest.raises(ValueError, match=r"\['sigma'\] are missing"):
        evaluate({"x": points["x"]})
    with pytest.raises(ValueError, match="one leading axis"):
        evaluate({**points, "sigma": np.ones(3)})
    whole = ScoreHMC(potential_fn=lambda p: 0.5 * p["a"] ** 2)
    found = filled(jax.jit(whole.evaluate)(jax.random.key(0), {"a": np.arange(3.0)}))
    np.testing.assert_allclose(found.potential, [0.0, 0.5, 2.0])


@pytest.mark.exhaustive
@pytest.mark.slow
def test_step_size_and_length_can_be_given() -> None:
    fields = ("step_size", "num_steps", "move")
    mcmc = mcmc_of(ScoreHMC(potential_fn=potential, step_size=0.5, trajectory_length=2.0))
    mcmc.run(jax.random.key(0), init_params=jnp.ones((CHAINS, 2)), extra_fields=fields)
    f = {k: np.asarray(v) for k, v in mcmc.get_extra_fields().items()}
    np.testing.assert_allclose(f["step_size"], 0.5)
    single = (f["move"] >= 1) & (f["move"] <= 3)  # one trajectory of .6 to 1.4 times the length
    assert single.any()
    assert f["num_steps"][single].min() >= 2
    assert f["num_steps"][single].max() <= 23
    with pytest.raises(ValueError, match="`step_size` must be positive"):
        ScoreHMC(model, step_size=0.0)
    with pytest.raises(ValueError, match="`trajectory_length` must be positive"):
        ScoreHMC(model, trajectory_length=float("inf"))


@pytest.mark.slow
def test_double_precision() -> None:
    with jax.enable_x64(True):
        mcmc = mcmc_of(ScoreHMC(potential_fn=lambda x: 0.5 * jnp.sum(x**2)))
        mcmc.run(
            jax.random.key(0),
            init_params=jnp.ones((CHAINS, 2), jnp.float64),
            extra_fields=("potential_energy", "surrogate_gap"),
        )
        draws = mcmc.get_samples()
        assert draws.dtype == jnp.float64
        expected = 0.5 * np.sum(np.asarray(draws) ** 2, axis=1)
        fields = mcmc.get_extra_fields()
        np.testing.assert_allclose(fields["potential_energy"], expected, rtol=1e-12)
        gap = np.asarray(fields["surrogate_gap"])  # a quadratic is learned to the noise floor
        assert np.ptp(gap) < 1e-2
        assert mcmc.last_state.surrogate.fits["potential"].points.dtype == jnp.float64


def test_evaluations_of_another_target_are_refused() -> None:
    def potential_fn(x: Array) -> Array:
        return 0.5 * jnp.sum(x**2)

    def init(kernel: ScoreHMC, start: Any, *args: Any) -> None:
        keys = jax.random.split(jax.random.key(0), CHAINS)
        jax.jit(lambda keys: kernel.init(keys, 10, start, args, {}))(keys)

    evaluate = jax.jit(ScoreHMC(potential_fn=potential_fn).evaluate)
    known = evaluate(jax.random.key(0), np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"this target's 2 .* have 3"):
        init(ScoreHMC(potential_fn=potential_fn, evaluations=known), np.ones((CHAINS, 2)))
    known = evaluate(jax.random.key(0), np.ones((5, 2)))
    with pytest.raises(ValueError, match="'mean'.*'potential'"):
        init(ScoreHMC(model, evaluations=known), None, Counted())


def test_wide_transitions_keep_a_share() -> None:
    adaptation = kinds.initial(2, jnp.dtype(jnp.float32))
    jumps = jnp.ones((kinds.NUM_MOVES, 2)).at[2].set(9.0).at[kinds.WIDE].set(1e-3)
    adaptation = adaptation._replace(jumps=jumps, trials=jnp.ones(kinds.NUM_MOVES, jnp.int32))
    share = float(kinds.decide(adaptation, 0.1)[kinds.WIDE])
    assert share > 3 * float(kinds.decide(adaptation, 0.1)[1])
    assert share == pytest.approx(0.9 * 0.15 / (0.8 + 0.2 * 4 / 5 + 0.15), rel=1e-5)
    # sd of V - V / T is .75 where that of V is (D / 2)^(1/2).
    for dimension in (8, 50):
        t = kinds.temperatures(dimension)
        assert (1 - 1 / t[kinds.WIDE]) * np.sqrt(dimension / 2) == pytest.approx(0.75)
        assert (np.delete(t, kinds.WIDE) == 1).all()


def test_the_way_down_ends_when_values_near_the_lowest_fall_no_more() -> None:
    structure = {"potential": (2, 1)}

    @jax.jit
    def after(values: Array) -> Array:
        kept = empty_evaluations(len(values), 2, structure, jnp.dtype(jnp.float32))
        number = jnp.arange(1, len(values) + 1)
        kept = kept._replace(potential=values, number=number, count=number[-1])
        return descending(kept, 20)

    assert after(np.linspace(1e4, 0, 100))  # few are near the lowest
    assert not after(np.full(100, 5.0))
    assert after(np.r_[np.full(80, 9.0), np.full(20, 5.0)])  # all are near; the newest fell by 4
    assert not after(np.r_[np.full(80, 9.0), np.full(20, 7.0)])
    assert not after(np.r_[np.full(20, 5.0), np.full(80, 9.0)])  # low long ago


class Falling(Surrogate):
    """A surrogate that falls without end beyond the region that it knows."""

    def walled(self, model: Model, y: Array) -> Array:
        r = jnp.sqrt(jnp.sum(y**2) + 1e-6)
        return 0.5 * r**2 - 0.3 * r**3

    def knows(self, z: Array) -> Array:
        return jnp.sum(z**2) <= 16


def test_walkers_stay_where_the_surrogate_is_known() -> None:
    frame = Frame(jnp.zeros(2), jnp.eye(2), jnp.eye(2))
    surrogate = Falling({}, frame, frame, jnp.asarray(2.0), jnp.asarray(True))
    start = jnp.asarray(np.random.default_rng(0).normal(size=(NUM_WALKERS, 2)))
    nothing = Model(WholeProblem(lambda x: x, lambda x: x), (), {})
    end, visited, _ = _round(jax.random.key(1), nothing, surrogate, start)
    assert float(np.max(np.sum(np.asarray(visited) ** 2, axis=1))) <= 16
    assert float(np.max(np.sum(np.asarray(end) ** 2, axis=1))) <= 16
