"""The score benchmark: true scores, and verdicts that can go either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import score_tables as tables
from benchmarks.bench_score import kde_scott
from benchmarks.score_problems import BEND, DENSITIES, MODE, VARIANCE, density

LOG_DENSITIES = {
    "normal": lambda x: -0.5 * jnp.sum(x**2),
    "banana": lambda x: (
        -0.5
        * (x[0] ** 2 / VARIANCE + (x[1] - BEND * (x[0] ** 2 - VARIANCE)) ** 2 + jnp.sum(x[2:] ** 2))
    ),
    "mixture": lambda x: -0.5 * jnp.sum(x**2) + jnp.logaddexp(MODE * x[0], -MODE * x[0]),
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
