"""A network made linear in its weights: moments, draws, what it shares with the network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from numpyro.contrib.module import eqx_module
from scipy.stats import multivariate_normal

from implicitppl.processes import (
    AbstractGaussianProcess,
    BayesianNetwork,
    LinearizedNetwork,
    NoiseNetwork,
)

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(5, 2))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def network(depth=2, activation=jnp.tanh):
    """A network of 2 inputs whose means and scales all differ."""
    start = BayesianNetwork(2, 4, depth, key=KEY, activation=activation)
    flat, build = ravel_pytree(start)
    return build(flat + 0.3 * jnp.asarray(np.random.default_rng(1).normal(size=flat.shape)))


def by_hand(start, x):
    """Mean, Jacobian by differences of all weights at once, and variances of the weights."""
    flat, build = ravel_pytree(start.means)
    scales = [(la.weight_log_scale, la.bias_log_scale) for la in start.layers]
    variances = np.exp(2 * np.asarray(ravel_pytree(scales)[0]))

    @jax.jit
    @jax.vmap
    def values(weights):
        return start.evaluate(build(weights), jnp.asarray(x))

    step = 1e-6
    steps = step * np.eye(flat.size)
    columns = (np.asarray(values(flat + steps)) - np.asarray(values(flat - steps))) / (2 * step)
    return np.asarray(start.evaluate(start.means, jnp.asarray(x))), columns.T, variances


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu])
def test_moments_are_those_of_an_explicit_jacobian(activation):
    start = network(activation=activation)
    process = LinearizedNetwork(start)
    mean, jacobian, variances = by_hand(start, X)
    covariance = (jacobian * variances) @ jacobian.T
    assert isinstance(process, AbstractGaussianProcess)
    y = np.linspace(-1, 1, 5)

    @eqx.filter_jit
    def evaluate(process, x, y):
        matrices = process.covariance(x), process.covariance(x, x[:2])
        return process.mean_at(x), *matrices, process.moments(x), process(x).log_prob(y)

    found_mean, square, rectangle, moments, log_prob = evaluate(process, X, y)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-10)
    np.testing.assert_allclose(square, covariance, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(rectangle, covariance[:, :2], rtol=1e-6)
    for found, expected in zip(moments, (mean, np.diag(covariance)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    dense = multivariate_normal(mean, covariance)
    assert float(log_prob) == pytest.approx(dense.logpdf(y), rel=1e-4)


def test_draws_are_the_expansion_at_weights_of_the_network_with_the_same_keys():
    start = network()
    mean, jacobian, _ = by_hand(start, X)
    change = jax.jit(jax.vmap(lambda key: ravel_pytree(start.deviate(key))[0]))
    changes = np.asarray(change(jax.random.split(KEY, 3)))
    drawn = jax.jit(lambda key: LinearizedNetwork(start).draw(key, 3)(X))(KEY)
    np.testing.assert_allclose(drawn, mean + changes @ jacobian.T, rtol=1e-6)


@pytest.mark.statistical
def test_draws_have_the_stated_moments():
    process, num = LinearizedNetwork(network()), 20_000
    draws, covariance = process.sample(KEY, X, num), process.covariance(X)
    spread = jnp.diag(covariance)
    errors = jnp.sqrt((covariance**2 + spread[:, None] * spread[None, :]) / num)
    assert jnp.max(jnp.abs(draws.mean(0) - process.mean_at(X)) / jnp.sqrt(spread / num)) < 4
    assert jnp.max(jnp.abs(jnp.cov(draws.T) - covariance) / errors) < 4
    assert jnp.max(jnp.abs(jnp.cov(draws.T) - 1.1 * covariance) / errors) > 4


def test_at_depth_0_it_is_the_network_and_with_units_it_nears_it_as_scales_fall():
    @eqx.filter_jit
    def distance(start):
        drawn, exact = LinearizedNetwork(start).draw(KEY, 50)(X), start.draw(KEY, 50)(X)
        return jnp.max(jnp.abs(drawn - exact))

    assert distance(network(depth=0)) < 1e-12
    start = network()
    smaller = eqx.tree_at(
        lambda n: [s for la in n.layers for s in (la.weight_log_scale, la.bias_log_scale)],
        start,
        replace_fn=lambda leaf: leaf - jnp.log(100.0),
    )
    # What is left out is of second order: scales 100 times smaller, 10,000 times less of it.
    assert distance(start) > 0.01
    assert float(distance(smaller)) == pytest.approx(1e-4 * float(distance(start)), rel=0.5)


def test_gradients_reach_means_through_the_jacobian():
    _, build = ravel_pytree(network())

    @jax.jit
    def spread(flat):
        return jnp.sum(LinearizedNetwork(build(flat)).covariance(X))

    flat = ravel_pytree(network())[0]
    check_grads(spread, (flat,), order=1, modes=["rev"], rtol=1e-5)
    slopes = build(jax.grad(spread)(flat))
    assert jnp.all(slopes.layers[0].weight != 0)  # with the Jacobian held fixed they would be 0
    assert jnp.all(slopes.layers[0].weight_log_scale != 0)


def test_a_guide_registers_the_leaves_of_the_network():
    start = network()

    def guide(q):
        numpyro.sample("f", eqx_module("q", q)(X))

    traces = [
        numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace(q)
        for q in (start, LinearizedNetwork(start))
    ]
    own, ours = (jax.tree.leaves(trace["q$params"]["value"]) for trace in traces)
    assert len(own) == len(ours) == 12
    assert all(np.array_equal(a, b) for a, b in zip(own, ours, strict=True))


def test_a_float32_network_is_exact_at_float64_points():
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network())
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), single)
    found, points = LinearizedNetwork(single), jnp.asarray(X, jnp.float32)
    covariance = eqx.filter_jit(lambda process, x: process.covariance(x))
    sample = jax.jit(lambda key: found.sample(key, points))(KEY)
    assert sample.dtype == covariance(found, points).dtype == jnp.float32
    expected = covariance(LinearizedNetwork(double), X)
    assert covariance(found, X).dtype == jnp.float64
    np.testing.assert_allclose(covariance(found, X), expected, rtol=1e-6)
    smallest = np.linalg.eigvalsh(covariance(found, np.linspace(-1, 1, 100).reshape(50, 2)))[0]
    assert smallest > -1e-12  # a Jacobian of float32 would leave -1e-7


def test_thousands_of_points_need_no_square_matrix():
    process = LinearizedNetwork(network())
    many = jnp.linspace(-1, 1, 8000).reshape(4000, 2)

    def largest(fn):
        jaxpr = jax.make_jaxpr(fn)(many)
        return max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)

    weights = ravel_pytree(process.network.means)[0].size
    assert largest(lambda x: process.draw(KEY, 3)(x)) <= 4000 * 3 * 4
    assert largest(lambda x: process.moments(x)[1]) <= 4000 * weights
    assert largest(process.covariance) == 4000**2


BAD = {
    "other": (
        lambda: LinearizedNetwork(NoiseNetwork(2, key=KEY)),
        "`network` must be a `BayesianNetwork`; got NoiseNetwork",
    ),
    "outputs": (
        lambda: LinearizedNetwork(BayesianNetwork(2, out_size=3, key=KEY)),
        "`network` must have one output, and `stack` makes several; got 3",
    ),
    "coordinates": (
        lambda: LinearizedNetwork(BayesianNetwork(2, key=KEY)).covariance(X[:, :1]),
        "must have 2 coordinates",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
