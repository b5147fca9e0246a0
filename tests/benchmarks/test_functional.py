"""The functional benchmark: what its figures mean, that peers learn, what its tables say."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import read
from benchmarks.functional import methods as methods
from benchmarks.functional import ours as functional_ours
from benchmarks.functional import run as bench_functional
from benchmarks.functional import tables as functional_tables
from benchmarks.functional import weights as functional_weights
from benchmarks.functional.gp import fit_process
from benchmarks.functional.methods import METHODS, Prediction
from benchmarks.functional.ours import Functional
from benchmarks.gp.data import split
from benchmarks.gp.methods import Settings

pytest.importorskip("sklearn")


def test_one_gaussian_scores_as_a_normal_in_the_units_of_the_data() -> None:
    found = split("diabetes", 1)
    prediction = Prediction(np.full((1, 45), 0.3), np.full((1, 45), 0.7), {})
    y = found.scale * found.y_test
    got = methods.scores(found, prediction)
    expected = norm.logpdf(y, 0.3 * found.scale, 0.7 * found.scale).mean()
    np.testing.assert_allclose(got["ll"], expected)
    np.testing.assert_allclose(got["rmse"], np.sqrt(np.mean((y - 0.3 * found.scale) ** 2)))


def test_particles_score_as_a_mixture_for_each_test_point() -> None:
    found = split("diabetes", 1)
    mean = np.random.default_rng(0).standard_normal((3, 45))
    sd = np.array([[0.5], [0.7], [1.0]])
    density = norm.pdf(found.y_test, mean, sd).mean(axis=0)
    got = methods.scores(found, Prediction(mean, sd, {}))
    np.testing.assert_allclose(got["ll"], np.log(density).mean() - np.log(found.scale))
    # The density of the mean of the particles, or a mean of log densities, is another figure.
    mean_of_logs = norm.logpdf(found.y_test, mean, sd).mean() - np.log(found.scale)
    assert got["ll"] - mean_of_logs > 0.1
    # A mixture does not underflow far from all of its particles.
    assert np.isfinite(methods.scores(found, Prediction(mean + 1e3, sd, {}))["ll"])


def test_a_subset_is_the_first_training_rows_and_all_test_rows() -> None:
    few, whole = split("diabetes", 3, max_train=100), split("diabetes", 3)
    assert few.x.shape == (100, 10)
    np.testing.assert_allclose([few.y.mean(), few.y.std()], [0, 1], atol=1e-12)
    # Both are affine images of the same rows of the table.
    assert np.corrcoef(few.y_test, whole.y_test)[0, 1] == pytest.approx(1)
    assert np.corrcoef(few.y, whole.y[:100])[0, 1] == pytest.approx(1)


def test_the_prior_of_the_network_is_the_one_that_is_stated() -> None:
    # E f(x)^2 = 1 + E relu(u)^2 = 1 + (1 + |x|^2 / D) / 2, for u ~ N(0, 1 + |x|^2 / D).
    num_draws, x = 4000, jnp.array([[1.0, -2.0, 0.5]])
    keys = jax.random.split(jax.random.key(0), 4)
    parts = zip(keys, methods.RELU.shapes(3).items(), strict=True)
    draws = {n: s * jax.random.normal(k, (num_draws, *shape)) for k, (n, (shape, s)) in parts}
    squares = np.asarray(jax.vmap(lambda w: methods.RELU(w, x))(draws))[:, 0] ** 2
    expected = 1 + (1 + 5.25 / 3) / 2
    error = squares.std() / np.sqrt(num_draws)
    assert abs(squares.mean() - expected) < 4 * error
    assert abs(squares.mean() - (expected - 1)) > 4 * error  # without the output's bias


def test_the_network_of_sine_units_is_that_of_guide_and_weight_space() -> None:
    # One set of weights, once in NumPy, once in weight space and once as the mean of the guide.
    settings = bench_functional.SETTINGS["kin8nm"]["fBNN, sine"]._replace(initial_scale=1e-6)
    guide: Any = eqx.filter_jit(functional_ours.network)(jax.random.key(0), 3, settings)
    first, last = guide.layers
    x = np.random.default_rng(5).standard_normal((7, 3)).astype(np.float32)
    expected = np.sin(x @ np.asarray(first.weight).T + first.bias) @ np.asarray(last.weight)[0]
    drawn = eqx.filter_jit(lambda guide: guide.draw(jax.random.key(1), 1)(x)[0])(guide)
    np.testing.assert_allclose(drawn, expected, atol=1e-3)
    weights = {"w1": first.weight.T, "b1": first.bias, "w2": last.weight[0], "b2": last.bias[0]}
    found = jax.jit(lambda weights: methods.SINE(weights, jnp.asarray(x)))(weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    shapes = {name: shape for name, (shape, _) in methods.SINE.shapes(3).items()}
    assert shapes == {name: value.shape for name, value in weights.items()}
    assert first.weight.shape == (200, 3)


def test_the_weight_of_the_rule_is_between_1_and_n_over_b() -> None:
    data = functional_weights.held_out(split("diabetes", 1))
    settings = bench_functional.SETTINGS["diabetes"]["fBNN"]
    with jax.enable_x64(True):
        fit = fit_process(data, settings.process)
        found = functional_weights.weights(data, settings, fit)
        # More of the rows in a batch see more of the divergence.
        larger = functional_weights.weights(data, settings._replace(batch_size=256), fit)
    assert 1 < larger["batch_weight"] < found["batch_weight"] < found["N/B"] == len(data.y) / 64


def test_every_fit_has_a_key_of_its_own_and_the_first_is_that_of_one_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[tuple[int, ...]] = []

    def fitted(*arguments: Any) -> Any:
        used.append(tuple(np.asarray(jax.random.key_data(arguments[-1])).tolist()))
        return None, Prediction(np.full((2, 3), len(used)), np.ones((2, 1)), {"train_seconds": 1.0})

    monkeypatch.setattr(functional_ours, "fitted", fitted)
    monkeypatch.setattr(functional_ours, "objective", lambda *_: -float(len(used)))
    monkeypatch.setattr(functional_ours, "fit_process", lambda *_: SimpleNamespace(process=None))
    data, settings = split("diabetes", 2), bench_functional.SETTINGS["diabetes"]["fBNN"]
    found = functional_ours.ours(data, settings._replace(num_fits=3), (0.0, 0.1))
    assert len(set(used)) == 3 and used[:3] == used[3:]
    assert found[0.1].mean[:, 0].tolist() == [4, 4, 5, 5, 6, 6]
    assert found[0.1].info["objective_all_rows"] == -5.0 and found[0.1].info["train_seconds"] == 3.0
    functional_ours.ours(data, settings, (0.0,))
    assert used[6:] == used[:1]


def test_fits_are_mixed_with_their_own_noise_and_their_seconds_add_up() -> None:
    rng = np.random.default_rng(6)
    parts = [
        Prediction(
            rng.normal(size=(4, 3)), np.full((4, 1), sd), {"noise_sd": sd, "train_seconds": 5}
        )
        for sd in (0.1, 0.3)
    ]
    found = functional_ours.mixture(parts)
    np.testing.assert_array_equal(found.mean, np.concatenate([p.mean for p in parts]))
    np.testing.assert_array_equal(found.noise_sd[:, 0], 4 * [0.1] + 4 * [0.3])
    assert found.info == {"noise_sd": pytest.approx(0.2), "train_seconds": 10}


def test_log_joint_of_the_ensemble_is_that_of_the_model() -> None:
    from numpyro.infer.util import log_density

    rng = np.random.default_rng(1)
    x, y, floor, log_noise = rng.standard_normal((6, 3)), rng.standard_normal(6), 0.05, -1.0
    weights = {n: rng.standard_normal(shape) for n, (shape, _) in methods.RELU.shapes(3).items()}

    @jax.jit
    def densities(weights: Any, x: jax.Array, y: jax.Array, floor: jax.Array) -> Any:
        sites = weights | {"noise": jnp.exp(log_noise)}
        expected, _ = log_density(methods.RELU.model, (x, y, floor), {}, sites)
        got = methods.RELU.log_joint(weights | {"log_noise": log_noise}, x, y, floor)
        return got, expected

    got, expected = densities(weights, x, y, floor)
    # The density of log s is that of s times s.
    np.testing.assert_allclose(got, expected + log_noise, rtol=1e-5)


def test_the_process_is_conditioned_with_the_floor_where_its_noise_is_below() -> None:
    rng = np.random.default_rng(2)
    x = rng.uniform(-2, 2, (30, 1))
    y = np.sin(2 * x[:, 0])
    data = split("diabetes", 1)._replace(x=x, y=y, x_test=x[:5] + 0.1, y_test=y[:5])
    with jax.enable_x64(True):
        found = methods.exact_gp(data, Settings(60, 0.1), (0.0, 0.3))
    assert found[0.0].info["noise_sd"] < 0.3 == found[0.3].info["noise_sd"]
    assert found[0.0].info["log_evidence"] == found[0.3].info["log_evidence"]
    assert np.all(found[0.3].noise_sd >= 0.3)
    assert np.all(found[0.3].noise_sd > found[0.0].noise_sd)


@pytest.mark.slow
@pytest.mark.parametrize(
    "own", [{}, {"guide": "linearised", "num_particles": 8, "divergence": "regularized"}]
)
def test_functional_inference_nears_the_process_that_is_its_prior(own: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    x = np.linspace(-2, 2, 24)[:, None]
    y = np.sin(2 * x[:, 0]) + 0.1 * rng.standard_normal(24)
    x_test = np.linspace(-1.9, 1.9, 9)[:, None]
    data = split("diabetes", 1)._replace(x=x, y=y, x_test=x_test, y_test=np.zeros(9))
    fit = Settings(60, 0.1)
    long = Functional(1000, 0.02, 16, 8, 80, 0.01, 0.01, process=fit)._replace(strength=4e-6, **own)
    with jax.enable_x64(True):
        process = methods.exact_gp(data, fit, (0.0,))[0.0]
        found = {n: methods.ours(data, long._replace(num_steps=n), (0.0,))[0.0] for n in (2, 1000)}

    def distance(steps: int) -> float:
        return float(np.sqrt(np.mean((found[steps].mean.mean(axis=0) - process.mean[0]) ** 2)))

    # Within the standard deviation of the noise, and not so before training.
    assert distance(1000) < 0.1 < distance(2)
    assert found[1000].info["objective_all_rows"] > found[2].info["objective_all_rows"]


def test_how_nuts_mixed_is_said_once_for_a_data_set() -> None:
    more = {"divergences": 0, "mean_leapfrogs": 1000.4, "train_seconds": 61.2}
    rows = [row("GP", 1)]
    rows += [row("NUTS", s, rhat_median=1 + s / 10, rhat_max=2.0 * s, **more) for s in (1, 2)]
    assert functional_tables.mixing(rows) == (
        "NUTS on yacht, least noise 0, 2 splits: R-hat of the function 1.10 to 1.20 (median over "
        "test inputs), 2.0 to 4.0 (largest); 0 divergences, 1000 leapfrogs a draw, 61 CPU s."
    )
    assert functional_tables.mixing([row("GP", 1)]) == ""


def test_ours_is_compared_on_the_splits_that_both_have() -> None:
    rows = [row("GP", s) for s in (1, 2, 6)]
    rows += [row("fBNN", s, rmse=1.1 * s, ll=0.5 - s) for s in (1, 2)]
    assert "| yacht | 0 | 2 | 10.0 (0.0) / 0.500 (0.000) |" in functional_tables.against(rows)
    assert "| yacht | 0 | 3 | -9.1 (0.0) / -0.500 (0.000), 2 splits |" in functional_tables.against(
        rows, "GP"
    )


@pytest.mark.exhaustive
def test_quick_tier_learns_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--quick", "--out", str(out)]
    bench_functional.main([*arguments, "--methods", "GP", "--floors", "0"])
    bench_functional.main(arguments)
    rows = read(out)
    keys = [tuple(r[k] for k in bench_functional.KEY) for r in rows]
    assert len(set(keys)) == len(rows) == 7 * 2 * 2
    assert not any("error" in r for r in rows)
    # Learned: better than predicting the training mean, by as much as there is to learn.
    for row in rows:
        constant = split("diabetes", row["split"])
        base = constant.scale * np.sqrt(np.mean(constant.y_test**2))
        assert row["rmse"] < 0.9 * base
        assert row["noise_sd"] >= row["floor"]
    bench_functional.main(arguments)
    assert read(out) == rows, "rows that are there are not run again"
    assert "| diabetes | 0.05 | 2 |" in functional_tables.tables(rows, [], [])


@pytest.mark.exhaustive
def test_nuts_agrees_with_a_conjugate_posterior_where_the_network_is_linear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only the output's bias is left: y ~ N(b, (floor + s)^2), b ~ N(0, 1), and s is nearly known.
    class Bias(methods.Network):
        def shapes(self, num_inputs: int) -> dict[str, tuple[tuple[int, ...], float]]:
            return {"b2": ((), 1.0)}

        def __call__(self, weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
            return weights["b2"] + 0 * x[:, 0]

    monkeypatch.setattr(methods, "RELU", Bias("relu", 1))
    monkeypatch.setattr(methods, "NOISE_PRIOR", (float(np.log(0.5)), 1e-3))
    rng = np.random.default_rng(3)
    y = 0.4 + 0.5 * rng.standard_normal(20)
    data = split("diabetes", 1)._replace(x=np.ones((20, 2)), y=y, x_test=np.ones((1, 2)))
    with jax.enable_x64(True):
        found = methods.nuts(data, Settings(400, 0.0), (0.0,))[0.0]
    variance = 1 / (1 + 20 / 0.25)
    mean = variance * y.sum() / 0.25
    error = 4 * np.sqrt(variance / 200)  # 800 draws, at least a quarter of them effective
    assert abs(found.mean.mean() - mean) < error < abs(found.mean.mean())
    assert found.mean.var() == pytest.approx(variance, rel=0.3)
    assert found.info["rhat_max"] < 1.05 and found.info["divergences"] == 0


def row(method: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "data": "yacht",
        "split": seed,
        "method": method,
        "floor": 0.0,
        "num_train": 277,
        "num_steps": 1000,
        "is_first": seed == 1,
        "rmse": float(seed),
        "ll": -float(seed),
        "noise_sd": 0.1,
        "train_seconds": 5.0 if seed == 1 else 2.0,
        "cpu_seconds": 3.0,
        "date": "2026-01-01",
        "versions": {"jax": "0.10"},
        **more,
    }


def test_tables_keep_floors_apart_and_name_failures() -> None:
    rows = [row("GP", s) for s in (1, 2, 6)] + [row("GP", s, floor=0.05) for s in (1, 3)]
    rows += [row("MFVI", 1), row("MFVI", 2, error="ValueError: no")]
    text = functional_tables.tables(rows, [], [])
    error = np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert f"| yacht | 0 | 3 | 3.000 ({error:.3f}) | 1.000, 1 split only |" in text
    assert "| yacht | 0.05 | 2 | 2.000 (1.000) | - |" in text
    assert "| yacht | 0 | 2.000 / -2.000 | 1.000 / -1.000 |" in text
    assert "| yacht | 277 | GP | 1,000 | 2.0 |" in text, "the first fit compiles"
    assert text.endswith("Failed: yacht 2, MFVI: ValueError: no.")


def test_weights_are_judged_on_the_last_training_rows() -> None:
    whole = split("diabetes", 1)
    held = functional_weights.held_out(whole)
    np.testing.assert_array_equal(np.concatenate([held.y, held.y_test]), whole.y)
    np.testing.assert_array_equal(np.concatenate([held.x, held.x_test]), whole.x)
    assert len(held.y_test) == len(whole.y) // 10


def test_weights_are_shown_beside_the_process() -> None:
    more = {"rule": "N/B", "weight": 4.0, "batch_size": 64, "posterior_sd": 0.5}
    text = functional_tables.weights([row("fBNN", 1, process_rmse=0.7, process_ll=0.2, **more)])
    assert (
        "| yacht | 64 of 277 | N/B | 4.00 | 1.000 / -1.000 | 0.700 / 0.200 | 0.500 | 0.100 |"
        in text
    )


def test_longer_training_is_compared_on_the_same_split() -> None:
    rows = [row("MFVI", 1, elbo=10.0), row("MFVI", 2, elbo=0.0)]
    longer = [row("MFVI", 1, elbo=11.0, num_steps=2000, rmse=0.9)]
    text = functional_tables.convergence(rows, longer)
    assert "| 1,000 -> 2,000 | 10.0 -> 11.0 | 1.000 -> 0.900 | -1.000 -> -1.000 |" in text


def test_result_rows_are_those_of_the_protocol() -> None:
    rows = read(RESULTS / "functional.jsonl")
    keys = [tuple(r[k] for k in bench_functional.KEY) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {r["method"] for r in rows} <= set(METHODS)
    assert all(r["num_train"] <= bench_functional.MAX_TRAIN for r in rows)
    assert all(r["num_steps"] == bench_functional.SETTINGS[r["data"]][r["method"]][0] for r in rows)


def test_tables_of_the_page_are_those_of_the_result_files() -> None:
    functional_tables.main(["--check"])
