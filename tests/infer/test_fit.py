"""The training loop: its schedule, its convergence rule, and resuming from a checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from implicitppl.infer import ImplicitELBO, fit
from implicitppl.infer._fit import _drift, _falls, _Plan, _Runner

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
    options = {"loss": LOSS, "num_steps": 400, "check_every": 50, "progress_bar": False}
    whole = fit(KEY, model, guide, 3.0, **options)
    fit(KEY, model, guide, 3.0, **options, checkpoint=tmp_path)
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    for step in steps:
        if step > 200:
            for file in sorted((tmp_path / str(step)).rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            (tmp_path / str(step)).rmdir()
    resumed = fit(KEY, model, guide, 3.0, **options, checkpoint=tmp_path)
    assert resumed.num_steps == whole.num_steps
    np.testing.assert_array_equal(np.asarray(whole.losses), np.asarray(resumed.losses))
    for name, value in whole.params.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(resumed.params[name]))


def test_a_second_fit_of_equal_shapes_traces_nothing():
    count = 0

    def counted(y: jax.Array) -> None:
        nonlocal count
        count += 1
        model(y)

    guide = AutoNormal(counted)
    options = {"loss": LOSS, "num_steps": 40, "check_every": 20, "progress_bar": False}
    fit(KEY, counted, guide, jnp.array(3.0), **options)
    first = count
    fit(jax.random.key(1), counted, guide, jnp.array(3.5), **options)
    assert count - first <= 1, "`SVI.init` runs the model once; the compiled loop must not"


def test_the_rate_is_constant_and_then_falls_to_a_hundredth():
    runner = _Runner(model, AutoNormal(model), LOSS, _Plan(400, 0.1, 50, 0.01, 0.05))
    state = runner.init(KEY, None, (3.0,), {})
    assert np.isclose(runner._rate(state), 0.1)
    annealing = state._replace(anneal_start=jnp.array(200), step=jnp.array(300))
    assert np.isclose(runner._rate(annealing), 0.1 * (0.01 + 0.99 * 0.5))
    assert np.isclose(runner._rate(annealing._replace(step=jnp.array(400))), 0.001)


def test_falling_and_flat_losses_are_told_apart():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=1000)
    assert not _falls(noise, 0.01)
    assert _falls(noise + np.linspace(1.0, 0.0, 1000), 0.01)
    assert not _falls(1e-4 * np.linspace(1.0, 0.0, 1000), 0.01), "below the tolerance"
    assert _falls(np.full(10, np.nan), 0.01), "nothing is known: go on"


def test_drift_is_in_units_of_the_sd():
    draws = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 10.0, 100.0]
    assert _drift(draws, draws) == 0.0
    assert np.isclose(_drift(draws, draws + 0.5 * draws.std(0)), 0.5, atol=1e-6)
    assert np.isclose(_drift(draws, 2.0 * draws - draws.mean(0)), np.log(2), atol=1e-6)


def test_a_model_that_is_never_finite_is_reported():
    def broken(y: jax.Array) -> None:
        model(y)
        numpyro.factor("f", jnp.nan)

    guide = AutoNormal(model)
    with pytest.raises(FloatingPointError, match="not finite in any of the first"):
        fit(KEY, broken, guide, 3.0, loss=LOSS, num_steps=40, progress_bar=False)


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
