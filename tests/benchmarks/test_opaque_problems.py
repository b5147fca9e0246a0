"""Opaque problems: host and exact curve agree, calls are counted, tables from fixed rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

from benchmarks.hmc import opaque_likelihood as bench
from benchmarks.hmc.opaque_problems import BODIES, COOLING_TRUTH, TIMES, Host, excess, problems
from benchmarks.hmc.run import ERRORS

POINTS = {
    "hares_lynxes": np.log([[0.55, 0.028, 0.8, 0.024, 33.0, 6.0], [0.5, 0.03, 0.9, 0.02, 30.0, 5]]),
    "cooling": np.array([[-2.0, -3.5], [-3.0, -2.0]]),
    "saturation": np.array([[0.0, 1.5], [0.2, 2.0]]),
}


@pytest.mark.parametrize("name", list(POINTS))
def test_host_and_exact_curve_are_the_same(name: str) -> None:
    problem = problems()[name]
    for point in POINTS[name]:
        host, exact = problem.host(point), problem.exact(jnp.asarray(point))
        assert host.shape == exact.shape == problem.out
        np.testing.assert_allclose(exact, host, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cooling", "saturation"])
def test_hosts_take_batches(name: str) -> None:
    problem = problems()[name]
    both = problem.host(POINTS[name])
    expected = np.stack([problem.host(point) for point in POINTS[name]])
    np.testing.assert_allclose(both, expected, rtol=1e-12)


def test_cooling_solves_its_equation() -> None:
    from scipy.integrate import solve_ivp

    k, r = np.exp(np.asarray(COOLING_TRUTH["coefficients"]))
    times = np.arange(1.0, TIMES + 1)
    exact = solve_ivp(
        lambda _, u: -k * u - r * ((1 + u) ** 4 - 1), (0, TIMES), [1.0], t_eval=times, rtol=1e-10
    ).y[0]
    found = excess(COOLING_TRUTH["coefficients"])
    np.testing.assert_allclose(np.exp(found), exact, rtol=2e-3)


@pytest.mark.parametrize("name", list(POINTS))
def test_models_agree_whether_the_curve_is_opaque_or_not(name: str) -> None:
    problem = problems()[name]
    host = Host(problem)

    def joint(model: Callable[..., None]) -> float:
        @jax.jit
        def value(key: jax.Array) -> jax.Array:
            trace = handlers.trace(handlers.seed(model, key)).get_trace(*problem.args)
            sites = [site for site in trace.values() if site["type"] == "sample"]
            return jnp.stack([jnp.sum(s["fn"].log_prob(s["value"])) for s in sites]).sum()

        return float(value(jax.random.key(0)))

    opaque = joint(host.model)
    exact = joint(lambda *args: problem.model(problem.exact, *args))
    np.testing.assert_allclose(opaque, exact, rtol=1e-3)
    assert host.calls == 1


def test_calls_count_points_of_a_batch() -> None:
    host = Host(problems()["cooling"])
    jax.vmap(lambda x: handlers.seed(host.curve, 0)(x))(jnp.zeros((5, 2))).block_until_ready()
    assert host.calls == 5


def test_cooling_has_as_many_levels_as_bodies() -> None:
    problem = problems()["cooling"]
    trace = handlers.trace(handlers.seed(Host(problem).model, 0)).get_trace(*problem.args)
    assert trace["z"]["value"].shape == (BODIES,)


def test_report_has_medians_over_seeds() -> None:
    figures = ["rhat", "evaluations_to_400", "bulk_per_evaluation", "tail_per_evaluation"]
    figures += [*ERRORS, "cpu_seconds"]
    rows = [
        {"problem": "cooling", "method": method, "seed": seed} | dict.fromkeys(figures, value)
        for method in ("score_hmc", "nuts")
        for seed, value in enumerate((1.0, 2.0, 9.0))
    ]
    lines = bench.report(rows).splitlines()
    assert lines[2].startswith("| cooling | ScoreHMC | 3 | 2.000 | 2 | 2e+03 |")
    assert lines[3].startswith("| cooling | NUTS | 3 |")
