"""The training loop: its schedule, its convergence rule, and resuming from a checkpoint."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from implicitppl._train.schedule import FitSchedule, drift, falls, rate_factor
from implicitppl.infer import AutoImplicit, ImplicitELBO, fit
from implicitppl.infer._guides.fit import _runner
from implicitppl.infer._guides.training import Runner, _subsamples
from implicitppl.models._call import Call

KEY = jax.random.key(0)
LOSS = Trace_ELBO(8)


def model(y: jax.Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_an_ordinary_guide_ends_at_the_exact_posterior_and_stops_early():
    guide = AutoNormal(model)
    result = fit(KEY, model, guide, 3.0, loss=LOSS, num_steps=4000, progress_bar=False)
    assert result.converged and result.num_steps < 4000
    assert result.num_steps == len(result.losses)
    assert np.isfinite(np.asarray(result.losses)).all() and result.num_skipped == 0
    exact_mean, exact_sd = 3.0 * 100 / 101, (100 / 101) ** 0.5
    assert abs(float(result.params["mu_auto_loc"]) - exact_mean) < 0.02
    assert abs(float(result.params["mu_auto_scale"]) - exact_sd) < 0.02
    assert result.objective == "Trace_ELBO"


def test_a_short_budget_is_not_called_converged():
    guide = AutoNormal(model)
    result = fit(KEY, model, guide, 3.0, loss=LOSS, num_steps=200, progress_bar=False)
    assert not result.converged and result.num_steps == 200


@pytest.mark.smoke
def test_resuming_from_a_checkpoint_gives_the_same_bits(tmp_path: Path):
    pytest.importorskip("orbax.checkpoint")
    guide = AutoNormal(model)
    options: dict[str, Any] = {
        "loss": LOSS,
        "num_steps": 400,
        "check_every": 50,
        "progress_bar": False,
    }
    whole = fit(KEY, model, guide, 3.0, **options)
    fit(KEY, model, guide, 3.0, **options, checkpoint=tmp_path)
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    for step in steps:
        if step > 200:
            shutil.rmtree(tmp_path / str(step))
    resumed = fit(KEY, model, guide, 3.0, **options, checkpoint=tmp_path)
    assert resumed.num_steps == whole.num_steps
    np.testing.assert_array_equal(np.asarray(whole.losses), np.asarray(resumed.losses))
    for name, value in whole.params.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(resumed.params[name]))


def test_a_second_fit_of_equal_shapes_traces_nothing():
    calls: list[None] = []

    def counted(y: jax.Array) -> None:
        calls.append(None)
        model(y)

    guide = AutoNormal(counted)
    options: dict[str, Any] = {
        "loss": LOSS,
        "num_steps": 40,
        "check_every": 20,
        "progress_bar": False,
    }
    fit(KEY, counted, guide, jnp.array(3.0), **options)
    first = len(calls)
    fit(jax.random.key(1), counted, guide, jnp.array(3.5), **options)
    assert len(calls) - first <= 1, "`SVI.init` runs the model once; the compiled loop must not"


def test_the_rate_warms_up_is_constant_and_then_falls_to_a_hundredth():
    def factor(step: int, anneal_start: int) -> float:
        return float(rate_factor(jnp.array(step), jnp.array(anneal_start), jnp.array(400)))

    assert factor(0, -1) == pytest.approx(0.01) and factor(49, -1) == pytest.approx(0.5)
    assert factor(150, -1) == 1.0
    assert factor(300, 200) == pytest.approx(0.01 + 0.99 * 0.5)
    assert factor(400, 200) == pytest.approx(0.01)


def test_falling_and_flat_losses_are_told_apart():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=1000)
    assert not falls(noise, 0.01)
    assert falls(noise + np.linspace(1.0, 0.0, 1000), 0.01)
    assert not falls(1e-4 * np.linspace(1.0, 0.0, 1000), 0.01), "below the tolerance"
    assert falls(np.full(10, np.nan), 0.01), "nothing is known: go on"


def test_drift_is_in_units_of_the_sd():
    draws = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 10.0, 100.0]
    assert drift(draws, draws) == 0.0
    assert np.isclose(drift(draws, draws + 0.5 * draws.std(0)), 0.5, atol=1e-6)
    assert np.isclose(drift(draws, 2.0 * draws - draws.mean(0)), np.log(2), atol=1e-6)


def bent_model() -> None:
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(a**2, 0.5))


def test_skipped_steps_near_the_end_do_not_discard_the_run():
    guide = AutoNormal(model)
    schedule = FitSchedule(40, 0.1, 10, 0.01, 0.05)
    runner = Runner(model, guide, LOSS, schedule)
    state = runner.begin(KEY, runner.init(KEY, None, (3.0,), {}), True, (3.0,), {})
    state = state._replace(step=jnp.array(40), losses=jnp.full(40, 1.0).at[39].set(jnp.nan))
    ended = state._replace(calm_checks=jnp.array(2))
    assert runner.finish(ended, (3.0,), {})[1:] == (True, 0.0)
    nothing = ended._replace(losses=jnp.full(40, jnp.nan))
    params, converged, spread = runner.finish(nothing, (3.0,), {})
    assert not converged and np.isnan(spread) and "mu_auto_loc" in params


def test_a_minibatch_does_not_count_as_scatter_of_the_weights():
    y = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, 200))

    def subsampled(y: jax.Array) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        with numpyro.plate("rows", 200, subsample_size=20) as rows:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    guide = AutoNormal(subsampled)
    result = fit(KEY, subsampled, guide, y, loss=ImplicitELBO(8), progress_bar=False)
    assert np.isnan(result.log_weight_sd) and result.converged


def test_only_plates_that_look_at_a_part_are_subsampled():
    def plates(part: int | None) -> None:
        with numpyro.plate("rows", 6, subsample_size=part):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    assert [_subsamples(Call(plates, (part,))) for part in (None, 6, 2)] == [False, False, True]


def test_a_budget_that_is_no_multiple_of_the_checks_is_annealed():
    guide = AutoNormal(model)
    options: dict[str, Any] = {"num_steps": 250, "learning_rate": 0.2, "progress_bar": False}
    result = fit(KEY, model, guide, 3.0, loss=LOSS, **options)
    assert 200 < result.num_steps <= 250
    assert abs(float(result.params["mu_auto_loc"]) - 2.97) < 0.1, "not without annealing"


def test_a_finished_fit_can_be_collected_with_its_programs():
    """Else a process that fits new guides again and again runs out of memory maps."""
    guide = AutoNormal(model)
    ref = weakref.ref(guide)
    result = fit(KEY, model, guide, 3.0, loss=LOSS, num_steps=20, progress_bar=False)
    assert ref() is guide and result.num_steps == 20
    del guide, result
    _runner.cache_clear()
    gc.collect()
    assert ref() is None


def test_the_default_guide_starts_from_a_gaussian_and_ends_below_it():
    guide = AutoImplicit(bent_model)
    result = fit(KEY, bent_model, guide, num_steps=400, progress_bar=False)
    assert result.gaussian is not None and bool(result.gaussian.converged)
    start = float(result.gaussian.loss)
    assert start > 0.3, "a Gaussian must be far from this target"
    assert float(result.losses[-50:].mean()) < start - 0.2
    assert result.objective.startswith("negative ELBO (by change of variables")
    assert 0 < result.log_weight_sd < 1.5


@pytest.mark.exhaustive
@pytest.mark.slow
def test_equal_calls_give_equal_bits_whether_the_guide_is_new_or_not():
    options: dict[str, Any] = {"num_steps": 20, "check_every": 10, "progress_bar": False}
    guide = AutoImplicit(bent_model)
    first, second = (fit(KEY, bent_model, guide, **options) for _ in range(2))
    third = fit(KEY, bent_model, AutoImplicit(bent_model), **options)
    np.testing.assert_array_equal(np.asarray(first.losses), np.asarray(second.losses))
    np.testing.assert_array_equal(np.asarray(first.losses), np.asarray(third.losses))


@pytest.mark.slow
def test_a_run_that_goes_wrong_returns_the_gaussian_and_says_so():
    guide = AutoImplicit(bent_model)
    options: dict[str, Any] = {
        "num_steps": 100,
        "check_every": 50,
        "learning_rate": 50.0,
        "progress_bar": False,
    }
    result = fit(KEY, bent_model, guide, **options)
    assert not result.converged
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(4000,))
    assert result.gaussian is not None
    loc, tril = result.gaussian.loc, result.gaussian.scale_tril
    sd = np.sqrt(np.diag(tril @ tril.T))
    for i, site in enumerate(("a", "b")):
        assert abs(float(draws[site].mean()) - float(loc[i])) < 4 * sd[i] / 4000**0.5
        assert abs(float(draws[site].std()) / sd[i] - 1) < 4 / 8000**0.5


@pytest.mark.slow
def test_a_chunk_that_folds_is_taken_back_and_the_rate_halved(monkeypatch):
    runner = Runner(
        bent_model, AutoImplicit(bent_model), None, FitSchedule(200, 0.01, 20, 0.01, 0.05)
    )
    before = runner.begin(KEY, runner.init(KEY, None, (), {}), True, (), {})
    after = runner.chunk(before, (), {})
    assert float(runner.folds(after.svi, (), {})) == 0.0
    monkeypatch.setattr(runner, "folds", lambda *_: jnp.array(0.2))
    back = runner.check(before, after, (), {})
    assert float(back.damping) == 0.5 and int(back.num_folds) == 1 and int(back.step) == 20
    first, second = (runner.svi.get_params(s.svi) for s in (before, back))
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(old, new)
    monkeypatch.setattr(runner, "folds", lambda *_: jnp.array(0.0))
    kept = runner.check(before, after, (), {})
    assert float(kept.damping) == 1.0
    moved = jax.tree.leaves(runner.svi.get_params(kept.svi))
    assert any(np.any(a != b) for a, b in zip(moved, jax.tree.leaves(first), strict=True))


def test_scattered_weights_are_not_called_converged():
    """A narrow explicit guide on a wide target whose loss is flat: log p/q scatters by 5 nats."""

    def wide() -> None:
        numpyro.sample("x", dist.Normal(jnp.zeros(50), 1.0).to_event(1))

    def stuck() -> None:
        loc = numpyro.param("loc", jnp.zeros(50))
        numpyro.sample("x", dist.Normal(jax.lax.stop_gradient(loc), 2.0).to_event(1))

    loss = ImplicitELBO(8)
    result = fit(KEY, wide, stuck, loss=loss, num_steps=6000, progress_bar=False)
    exact = (50 * 2 * 1.5**2) ** 0.5  # log p/q = const - 1.5 e^2 per coordinate
    assert result.log_weight_sd == pytest.approx(exact, rel=0.25)
    assert result.num_steps < 6000 and not result.converged


def test_a_model_that_is_never_finite_is_reported():
    def broken(y: jax.Array) -> None:
        model(y)
        numpyro.factor("f", jnp.nan)

    guide = AutoNormal(model)
    with pytest.raises(FloatingPointError, match="not finite in any of the first"):
        fit(KEY, broken, guide, 3.0, loss=LOSS, num_steps=40, progress_bar=False)


@pytest.mark.slow
def test_resuming_the_default_guide_gives_the_same_bits(tmp_path: Path):
    guide = AutoImplicit(bent_model)
    options: dict[str, Any] = {"num_steps": 120, "check_every": 20, "progress_bar": False}
    whole = fit(KEY, bent_model, guide, **options)
    fit(KEY, bent_model, guide, **options, checkpoint=tmp_path)
    for path in list(tmp_path.iterdir()):
        if path.name.isdigit() and int(path.name) > 40:
            shutil.rmtree(path)
    resumed = fit(KEY, bent_model, guide, **options, checkpoint=tmp_path)
    np.testing.assert_array_equal(np.asarray(whole.losses), np.asarray(resumed.losses))
    for first, second in zip(
        jax.tree.leaves((whole.params, whole.gaussian)),
        jax.tree.leaves((resumed.params, resumed.gaussian)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 1}, "`num_steps` must be at least 2; got 1"),
        ({"learning_rate": -0.1}, "`learning_rate` must be positive; got -0.1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        fit(KEY, model, AutoNormal(model), 3.0, loss=ImplicitELBO(2), **options)
