"""Networks with random weights, noise inputs or members: moments, guides, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI

from implicitppl.processes import BayesianNetwork, NetworkEnsemble, NoiseNetwork

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 5)[:, None]


def test_a_linear_network_has_the_covariance_of_its_weights():
    num = 20_000
    network = BayesianNetwork.prior(2, depth=0, weight_scale=2.0, bias_scale=0.5)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    draws = np.asarray(jax.jit(lambda key, x: network.sample(key, x, num))(KEY, x))
    covariance = 2.0**2 / 2 * x @ x.T + 0.25
    spread = np.diag(covariance)
    errors = np.sqrt((covariance**2 + spread[:, None] * spread[None, :]) / num)
    assert np.max(np.abs(draws.mean(0)) / np.sqrt(spread / num)) < 4
    assert np.max(np.abs(np.cov(draws.T) - covariance) / errors) < 4
    assert np.max(np.abs(1.1 * np.cov(draws.T) - covariance) / errors) > 4


@pytest.mark.statistical
@pytest.mark.parametrize("width", [5, 80])
def test_the_variance_of_a_prior_is_that_of_relu_units_at_any_width(width):
    """Var f = w^2 E[relu(h)^2] + b^2 with h ~ N(0, v), E[relu(h)^2] = v / 2."""
    num = 20_000
    network = BayesianNetwork.prior(1, width, weight_scale=1.5, bias_scale=0.5)
    draws = network.sample(KEY, jnp.array([0.0, 1.0]), num)
    first = 1.5**2 * jnp.array([0.0, 1.0]) + 0.25
    exact = 1.5**2 * first / 2 + 0.25
    squares = draws**2  # tails are heavier than normal: the error is that of the squares
    error = squares.std(0) / math.sqrt(num)
    assert jnp.all(jnp.abs(squares.mean(0) - exact) < 4 * error)
    assert jnp.any(jnp.abs(squares.mean(0) - 1.1 * exact) > 4 * error)


def test_a_learned_network_starts_at_the_stated_scales():
    network = BayesianNetwork(3, 200, 2, key=KEY, initial_scale=0.01)
    sizes = [(3, 200), (200, 200), (200, 1)]
    for layer, (fan_in, fan_out) in zip(network.layers, sizes, strict=True):
        assert layer.weight.shape == (fan_out, fan_in) and np.all(np.asarray(layer.bias) == 0)
        xavier = math.sqrt(2 / (fan_in + fan_out))
        error = 4 / math.sqrt(2 * layer.weight.size)
        assert abs(np.std(np.asarray(layer.weight)) / xavier - 1) < error
        assert np.allclose(np.exp(layer.weight_log_scale), 0.01)
    still = BayesianNetwork(1, key=KEY, initial_scale=1e-12)
    first, second = (np.asarray(layer.weight) for layer in still.layers)
    expected = (np.maximum(np.asarray(X) @ first.T, 0) @ second.T)[:, 0]
    sample = np.asarray(jax.jit(lambda key: still.sample(key, X, 1))(KEY))
    np.testing.assert_allclose(sample[0], expected, atol=1e-5)


def test_an_ensemble_draws_every_member_and_nothing_else():
    ensemble = NetworkEnsemble(3, 1, width=4, key=KEY)
    draws = np.asarray(jax.jit(lambda key: ensemble.sample(key, X, 300))(KEY))
    members = np.unique(draws.round(5), axis=0)
    assert len(members) == 3
    shares = [np.mean(np.all(draws.round(5) == member, axis=1)) for member in members]
    assert max(abs(share - 1 / 3) for share in shares) < 4 * math.sqrt(2 / 9 / 300)


def test_noise_moves_the_whole_function():
    network = NoiseNetwork(1, 2, 20, key=KEY)
    draws = np.asarray(jax.jit(lambda key: network.sample(key, X, 50))(KEY))
    assert np.all(np.std(draws, axis=0) > 1e-2)
    assert np.max(np.abs(np.corrcoef(draws.T)[0])) > 0.2  # not noise of each point


LEARNED = {
    "weights": lambda: BayesianNetwork(1, 8, key=KEY),
    "noise": lambda: NoiseNetwork(1, 3, 8, key=KEY),
    "ensemble": lambda: NetworkEnsemble(3, 1, 8, key=KEY, activation=jnp.tanh),
}


class MeanSquares:
    """A loss of its own: the mean square of what the guide draws, less the data's function."""

    can_infer_discrete = False

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        def one(key):
            seeded = numpyro.handlers.seed(guide, key)
            seeded = numpyro.handlers.substitute(seeded, data=param_map)
            trace = numpyro.handlers.trace(seeded).get_trace(*args, **kwargs)
            return jnp.mean((trace["f"]["value"] - args[0][:, 0] ** 2) ** 2)

        return jnp.mean(jax.vmap(one)(jax.random.split(rng_key, 16)))


@pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED.keys())
def test_a_guide_registers_and_learns_the_network(make):
    network = make()

    def guide(x):
        return numpyro.sample("f", eqx_module("q", network)(x))

    trace = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace(X)
    assert trace["f"]["value"].shape == (5,) and "q$params" in trace
    assert trace["f"]["fn"].process.function(KEY)(X).shape == (5,)

    svi = SVI(guide, guide, optax.adam(0.02), MeanSquares())
    state = jax.jit(svi.init)(KEY, X)
    state, losses = jax.lax.scan(lambda s, _: svi.update(s, X), state, length=150)
    losses = np.asarray(losses)
    assert np.all(np.isfinite(losses)) and losses[-10:].mean() < 0.2 * losses[:3].mean()
    moved = jax.tree.map(
        lambda a, b: np.any(np.asarray(a) != np.asarray(b)),
        svi.get_params(state)["q$params"],
        trace["q$params"]["value"],
    )
    assert all(jax.tree.leaves(moved))


BAD = {
    "width": (lambda: BayesianNetwork(1, 0, key=KEY), "`width` must be at least 1; got 0"),
    "depth": (lambda: NoiseNetwork(1, depth=-1, key=KEY), "`depth` must be at least 0; got -1"),
    "noise": (lambda: NoiseNetwork(1, 0, key=KEY), "`noise_size` must be at least 1; got 0"),
    "members": (lambda: NetworkEnsemble(0, 1, key=KEY), "`num_networks` must be at least 1"),
    "scale": (lambda: BayesianNetwork(1, key=KEY, initial_scale=0.0), "`initial_scale` must be"),
    "prior scale": (lambda: BayesianNetwork.prior(1, weight_scale=-1.0), "`weight_scale` must be"),
    "coordinates": (lambda: BayesianNetwork(2, key=KEY)(X), "must have 2 coordinates .* got 1"),
    "coordinates, noise": (lambda: NoiseNetwork(2, key=KEY)(X), "must have 2 coordinates"),
    "coordinates, ensemble": (lambda: NetworkEnsemble(2, 2, key=KEY)(X), "must have 2 coordinates"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
