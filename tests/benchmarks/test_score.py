"""The score benchmark: true scores, and verdicts that can go either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.score import tables as tables
from benchmarks.score.problems import BEND, DENSITIES, FREEDOM, MODE, VARIANCE, density
from benchmarks.score.run import kde_scott

LOG_DENSITIES = {
    "normal": lambda x: -0.5 * jnp.sum(x**2),
    "banana": lambda x: (
        -0.5
        * (x[0] ** 2 / VARIANCE + (x[1] - BEND * (x[0] ** 2 - VARIANCE)) ** 2 + jnp.sum(x[2:] ** 2))
    ),
    "mixture": lambda x: -0.5 * jnp.sum(x**2) + jnp.logaddexp(MODE * x[0], -MODE * x[0]),
    "student": lambda x: -0.5 * (FREEDOM + 1) * jnp.sum(jnp.log1p(x**2 / FREEDOM)),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_true_scores_are_gradients_of_the_log_density(name):
    with jax.enable_x64(True):
        problem = density(name, 50, 3, 0)
        expected = jax.vmap(jax.grad(LOG_DENSITIES[name]))(jnp.asarray(problem.queries))
        np.testing.assert_allclose(problem.truth, expected, atol=1e-9)
    # Stein's identity: samples and scores belong together.
    stein = np.mean(problem.queries * problem.truth, axis=0)
    np.testing.assert_allclose(stein, -1, atol=0.35)


def test_kde_of_the_peer_is_the_gradient_of_its_log_density():
    sklearn = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(40, 2)), rng.normal(size=(3, 2))
    model = sklearn.KernelDensity(bandwidth="scott").fit(x)
    step = 1e-5 * np.eye(2)
    slopes = [(model.score_samples(q + e) - model.score_samples(q - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(kde_scott(x, q), np.stack(slopes, axis=1), rtol=1e-4)


def row(estimator: str, *mse: float) -> dict:
    return {
        "problem": "normal",
        "size": 100,
        "dim": 10,
        "estimator": estimator,
        "mse": list(mse),
        "one_ms": 1.0,
        "all_ms": 2.0,
        "date": "2026-01-01",
        "versions": {"jax": "0.10"},
    }


def test_verdicts():
    good = [row("select", 1.0, 1.2), row("Gaussian", 1.1, 1.0), row("SSGE", 3.0, 3.1)]
    (found,) = tables.by_cell(good).values()
    assert tables.won(found)
    assert tables.beaten(found) == []
    bad = [row("select", 2.0, 2.1), *good[1:]]
    (found,) = tables.by_cell(bad).values()
    assert not tables.won(found)
    assert tables.beaten(found) == ["Gaussian"]
    assert "not in normal (100, 10)" in tables.summary(tables.by_cell(bad))


def test_the_tuned_row_wins_nothing():
    rows = [row("select", 1.0, 1.0), row("Gaussian", 2.0, 2.0), row("SSGE", 3.0, 3.0)]
    (found,) = tables.by_cell([*rows, row(tables.TUNED, 0.1, 0.1)]).values()
    assert tables.best_other(found) == "Gaussian"
    assert tables.won(found)
    assert "**1 (0)**" in tables.error_table(tables.by_cell(rows))


def test_speed_compares_with_the_peer_of_no_larger_error():
    def timed(name: str, error: float, fit: float | None, one: float, every: float) -> dict:
        times = {"one_ms": one, "all_ms": every} | ({} if fit is None else {"fit_ms": fit})
        return row(name, error, error) | {"size": 2000} | times

    rows = [
        timed("select", 0.1, 900.0, 1.0, 2.0),
        timed("SSGE", 0.5, 90.0, 1.0, 4.0),
        timed("Stein", 0.9, 9.0, 1.0, 4.0),
        timed("Gaussian", 0.2, 0.1, 0.1, 0.1),
        timed("SSGE PyTorch", 0.6, None, 455.0, 500.0),
        timed("npse SSGE", 0.8, None, 2000.0, 2000.0),
    ]
    text = tables.speed(tables.by_cell(rows))
    assert "250 and 125 times less than the fastest peer (SSGE PyTorch, 500 ms)" in text
    assert "smallest error is SSGE PyTorch (0.6, 455 ms" in text
    assert "SSGE, with 0.5, needs 91 ms, 5.0 times less" in text
