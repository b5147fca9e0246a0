"""Programs are kept for a second call, but not when what they hold has been rebound."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from implicitppl._train.programs import Captured
from implicitppl.infer import fit

Y = jnp.array(3.0)
SCALE = 2.0


def helper() -> jax.Array:
    return Y * SCALE


def model() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu, 0.1), obs=helper())


def closing_over(value: jax.Array):
    def inner() -> jax.Array:
        return (lambda: value)()

    return inner


def test_globals_are_found_through_functions_that_are_called(monkeypatch):
    before = Captured(model)
    assert any(value is Y for value in before.values)
    assert before == Captured(model) and hash(before) == hash(Captured(model))
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert before == Captured(model), "an equal number is the same"
    monkeypatch.setitem(globals(), "SCALE", 2.5)
    assert before != Captured(model)


def test_closures_partials_methods_and_models_of_guides_are_seen():
    a, b = jnp.zeros(2), jnp.zeros(2)
    assert Captured(closing_over(a)) == Captured(closing_over(a))
    assert Captured(closing_over(a)) != Captured(closing_over(b))
    assert Captured(functools.partial(model)) == Captured(model)
    assert any(value is Y for value in Captured(AutoNormal(model)).values)

    class Holder:
        def method(self) -> jax.Array:
            return Y

    assert any(value is Y for value in Captured(Holder().method).values)


def test_a_fit_after_new_data_in_a_global_is_a_fit_to_the_new_data(monkeypatch):
    guide, loss = AutoNormal(model), Trace_ELBO(8)

    def mean() -> float:
        key = jax.random.key(0)
        options: dict[str, Any] = {"num_steps": 1500, "learning_rate": 0.05, "progress_bar": False}
        return float(fit(key, model, guide, loss=loss, **options).params["mu_auto_loc"])

    assert abs(mean() - 6.0) < 0.1
    monkeypatch.setitem(globals(), "Y", jnp.array(-3.0))
    assert abs(mean() + 6.0) < 0.1
