"""NumPyro models as priors over functions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from implicitppl.processes import check_coherent, from_model

KEY = jax.random.key(0)
X = jnp.linspace(0, 2, 5)[:, None]


def line(x):
    slope = numpyro.sample("slope", dist.Normal(1.0, 2.0))
    shifted = numpyro.sample("shifted", dist.Bernoulli(0.25))
    return slope * x[:, 0] + 3.0 * shifted


def frayed(x):
    with numpyro.plate("points", x.shape[0]):
        return numpyro.sample("f", dist.Normal(x[:, 0], 1.0))


def test_a_model_is_a_process_with_its_moments():
    num = 20_000
    process = from_model(line)
    draws = process.sample(KEY, X, num)
    covariance = 4 * X * X.T + 9 * 0.25 * 0.75
    mean = X[:, 0] + 0.75
    found = jnp.cov(draws.T)
    centred = draws - mean
    errors = jnp.std(centred[:, :, None] * centred[:, None, :], axis=0) / num**0.5
    assert jnp.max(jnp.abs(draws.mean(0) - mean) / jnp.sqrt(jnp.diag(covariance) / num)) < 4
    assert jnp.max(jnp.abs(found - covariance) / errors) < 4
    assert jnp.max(jnp.abs(found - 1.1 * covariance) / errors) > 4
    check_coherent(process, X, key=KEY)


def test_a_site_of_another_model_hides_the_sites_of_the_process():
    def outer():
        return numpyro.sample("f", from_model(line)(X))

    trace = numpyro.handlers.trace(numpyro.handlers.seed(outer, 0)).get_trace()
    assert list(trace) == ["f"] and trace["f"]["value"].shape == (5,)
    jitted = jax.jit(lambda key: from_model(line).draw(key, 3)(X))
    np.testing.assert_allclose(jitted(KEY), from_model(line).draw(KEY, 3)(X), atol=1e-5)


def test_noise_for_each_point_is_found_by_the_check():
    with pytest.raises(ValueError, match="`ModelProcess` does not draw functions"):
        check_coherent(from_model(frayed), X, key=KEY)


def observed(x):
    numpyro.sample("y", dist.Normal(), obs=0.0)
    return x[:, 0]


def with_factor(x):
    numpyro.factor("penalty", -1.0)
    return x[:, 0]


def with_parameter(x):
    return numpyro.param("a", 1.0) * x[:, 0]


BAD = {
    "observed": (lambda: from_model(observed)(X), "site `y` of the model is observed"),
    "factor": (lambda: from_model(with_factor)(X), "site `penalty` of the model is observed"),
    "parameter": (lambda: from_model(with_parameter)(X), "site `a` of the model is a parameter"),
    "no model": (lambda: from_model(3), "`model` must be a function of points; got 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
