"""First results: a second data set of equal shape compiles nothing, from the fit to the report."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from implicitppl.diagnostics import report
from implicitppl.infer import AutoImplicit, fit
from implicitppl.models import posterior_target
from tests.helpers import compilations

SHORT: dict[str, Any] = {"num_steps": 40, "check_every": 10, "progress_bar": False}


def regression(x: Any, y: Any) -> None:
    slope = numpyro.sample("slope", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(x @ slope, sigma).to_event(1), obs=y)


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    x = jnp.array([[0.0, 1.0], [1.0, 2.0], [2.0, -1.0], [0.5, 0.5]])
    return (x, jnp.array([1.0, 2.0, 0.0, 1.5])), (x + 1.0, jnp.array([0.0, 1.0, -1.0, 0.5]))


def test_a_second_data_set_compiles_nothing_from_the_fit_to_the_report(data):
    guide = AutoImplicit(regression, num_starts=2)
    keys = jax.random.split(jax.random.key(0), 3)

    def first_results(args: tuple[Any, ...]) -> tuple[Any, Any]:
        result = fit(keys[0], regression, guide, *args, **SHORT)
        draws = guide.sample_posterior(keys[1], result.params, *args, sample_shape=(8,))
        options: dict[str, Any] = {"num_samples": 64, "num_chains": 16, "num_steps": 2}
        table = report(keys[2], regression, guide, result, model_args=args, **options)
        return jax.block_until_ready(draws), table

    with compilations() as names:
        draws, table = first_results(data[0])
    assert names, "the first data set compiled nothing: this check would see no retrace either"
    with compilations() as names:
        other_draws, other_table = first_results(data[1])
    assert names == []
    assert not jnp.allclose(draws["slope"], other_draws["slope"]), "the data must have an effect"
    assert table.to_dict() != other_table.to_dict()


def test_a_global_that_changes_is_seen_by_the_next_target(data):
    """Programs are shared between targets of a model, unless what it reads outside has changed."""
    scale = 1.0

    def model() -> None:
        numpyro.sample("z", dist.Normal(0.0, scale))

    z = jnp.array([[1.0]])
    first = float(posterior_target(model).scores(z)[0, 0])
    scale = 2.0
    second = float(posterior_target(model).scores(z)[0, 0])
    assert (first, second) == pytest.approx((-1.0, -0.25))
