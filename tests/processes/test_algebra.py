"""Sums, multiples and stacks of processes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

from implicitppl.distributions import ImplicitDensityError
from implicitppl.gp import GaussianProcess
from implicitppl.kernels import RBF, Linear, Matern32
from implicitppl.processes import (
    AbstractGaussianProcess,
    FeatureProcess,
    PiecewiseConstant,
    RandomFeatures,
    RandomPeriodic,
    stack,
)
from implicitppl.processes._function_values import FunctionValues
from implicitppl.processes._multi_output import StackedValues
from implicitppl.processes._process import SumProcess

KEY = jax.random.key(0)
X = np.linspace(0.1, 0.9, 5)[:, None]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def priors():
    return GaussianProcess(RBF(0.5, 2.0), 0.3), GaussianProcess(Matern32(0.4), lambda x: x[0])


def gaussians():
    first, second = priors()
    features = FeatureProcess(RandomFeatures.from_kernel(RBF(0.3), 1, 6, key=KEY))
    return {
        "priors": (first, second),
        "posterior": (first.condition(X[:2], jnp.arange(2.0), 0.1), second),
        "features": (features, features),
        "features and prior": (first, features),
    }


@pytest.mark.parametrize("name", ["priors", "posterior", "features", "features and prior"])
def test_gaussian_sums_and_multiples_are_gaussian_with_exact_moments(name):
    first, second = gaussians()[name]
    process = sum([2.0 * first, second * -0.5])
    assert isinstance(process, AbstractGaussianProcess)
    assert isinstance(process, GaussianProcess) == (name == "priors")

    @jax.jit
    def moments(x):
        mean = 2 * first.mean_at(x) - 0.5 * second.mean_at(x)
        covariance = 4 * first.covariance(x, x[:3]) + 0.25 * second.covariance(x, x[:3])
        pairs = [
            (process.mean_at(x), mean),
            (process.covariance(x, x[:3]), covariance),
            (process(x).mean, mean),
            (process(x).variance, jnp.diag(process.covariance(x))),
        ]
        return pairs, process(x, 0.1).log_prob(mean)

    pairs, log_prob = moments(X)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isfinite(log_prob)


def test_draws_of_a_sum_are_sums_of_draws():
    first, second = RandomPeriodic(), PiecewiseConstant()
    process = first + 3.0 * second
    assert isinstance(process, SumProcess) and process.has_weight_space
    keys = jax.random.split(KEY)
    parts = jax.jit(lambda keys: (first.draw(keys[0], 4)(X), second.draw(keys[1], 4)(X)))(keys)
    expected = np.asarray(parts[0]) + 3 * np.asarray(parts[1])
    np.testing.assert_allclose(process.draw(KEY, 4)(X), expected, rtol=1e-12)
    np.testing.assert_array_equal(process(X).sample(KEY, (4,)), process.draw(KEY, 4)(X))
    with pytest.raises(ImplicitDensityError, match="`SumProcess`"):
        process(X).log_prob(jnp.zeros(5))


@pytest.mark.parametrize("build", ["implicit", "gaussian"])
def test_sums_have_the_variance_of_both(build):
    num = 20_000
    first, _ = priors()
    if build == "gaussian":
        process = first.condition(X[:1], jnp.ones(1), 0.5) + first
        exact = process(X).covariance_matrix
    else:
        process = first + PiecewiseConstant()
        exact = first.covariance(X) + np.exp(-3 * np.abs(X - X.T)) / 12
        assert isinstance(process(X), FunctionValues) and not process.has_weight_space

    @jax.jit
    def drawn(key):
        draws = process.draw(key, num)
        return jnp.concatenate([draws(X[:2]), draws(X[2:])], axis=1)

    exact, found = np.asarray(exact), np.cov(drawn(KEY).T)
    spread = np.diag(exact)
    errors = np.sqrt((exact**2 + spread[:, None] * spread[None, :]) / num)
    assert np.max(np.abs(found - exact) / errors) < 4
    assert np.max(np.abs(found - 1.1 * exact) / errors) > 4


def test_a_stack_of_gaussians_has_the_density_of_independent_outputs():
    first, second = priors()
    process = stack([first, second, first])
    values = process(X)
    assert isinstance(values, StackedValues) and values.event_shape == (5, 3)
    assert values.support == constraints.independent(constraints.real, 2)

    @partial(jax.jit, static_argnums=0)
    def drawn(shape):
        y = values.sample(KEY, shape)
        expected = sum(p(X).log_prob(y[..., i]) for i, p in enumerate([first, second, first]))
        return y, values.log_prob(y), expected

    for shape in [(), (2,), (2, 3)]:
        y, log_prob, expected = drawn(shape)
        assert y.shape == (*shape, 5, 3)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(values.mean)[:, 1], second(X).mean)
    np.testing.assert_allclose(np.asarray(values.variance)[:, 1], second(X).variance)
    draws = np.asarray(jax.jit(lambda key: values.sample(key, (4000,)))(KEY))
    across = np.corrcoef(draws[:, 0, 0], draws[:, 0, 2])[0, 1]
    assert abs(float(across)) < 4 / 4000**0.5  # equal processes, independent outputs


def test_a_stack_in_a_stack_stands_for_its_parts():
    first, second = priors()
    nested, flat = stack([stack([first, second]), first]), stack([first, second, first])
    assert isinstance(nested(X), StackedValues) and nested(X).event_shape == (5, 3)
    y = nested(X).sample(KEY)
    np.testing.assert_allclose(nested(X).log_prob(y), flat(X).log_prob(y))


def test_a_stack_with_an_implicit_output_has_no_density():
    process = stack([PiecewiseConstant(), GaussianProcess(RBF())])
    assert process(X).event_shape == (5, 2)
    with pytest.raises(ImplicitDensityError, match="`MultiOutput`"):
        process(X).log_prob(jnp.zeros((5, 2)))
    nested = stack([stack([PiecewiseConstant(), RandomPeriodic()]), RandomPeriodic()])
    assert nested(X).event_shape == (5, 3) and nested.draw(KEY, 4)(X).shape == (4, 5, 3)


BAD = {
    "no process": (lambda: stack([]), ValueError, "at least one process; got none"),
    "a kernel": (lambda: stack([RBF()]), ValueError, "must be processes; got RBF"),
    "shapes": (
        lambda: (stack([RandomPeriodic()] * 2) + RandomPeriodic())(X),
        ValueError,
        r"must have values of one shape; got \(5, 2\) and \(5,\)",
    ),
    "a number": (lambda: RandomPeriodic() + 1.0, TypeError, "unsupported operand"),
    "a kernel, added": (lambda: RandomPeriodic() + Linear(), TypeError, "unsupported operand"),
    "an array": (lambda: RandomPeriodic() * jnp.ones(2), TypeError, "."),
    "value": (
        lambda: stack([GaussianProcess(RBF())] * 2)(X).log_prob(jnp.zeros(5)),
        ValueError,
        r"`value` must end in \(5, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, error, message = BAD[name]
    with pytest.raises(error, match=message):
        build()
