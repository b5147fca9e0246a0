"""The functional ELBO in NumPyro: its value, its optimum, minibatches, and what it refuses."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI

from implicitppl.divergences import (
    DataNoise,
    GaussianKL,
    HeldInputs,
    RegularizedKL,
    ScoreKL,
    UniformBox,
)
from implicitppl.gp import GaussianProcess
from implicitppl.infer import FunctionalELBO, function_posterior
from implicitppl.infer._functional.particles import run_particles
from implicitppl.kernels import RBF, Constant, Linear
from implicitppl.models._call import Call
from implicitppl.processes import (
    BayesianNetwork,
    FeatureProcess,
    ImplicitProcess,
    LinearizedNetwork,
    function,
    stack,
)

NOISE = 0.2
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.uniform(-2, -0.5, 15), RNG.uniform(0.5, 2, 15)])[:, None]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def waves(x):
    """Five features: a line and two waves."""
    return jnp.column_stack([x, jnp.sin(x), jnp.cos(x), jnp.sin(2 * x), jnp.cos(2 * x)]) / 2


class Hidden(eqx.Module):
    """A sampler of functions that does not say its moments."""

    inner: FeatureProcess

    def __call__(self, key, x):
        return self.inner.function(key)(x)


Y = np.asarray(waves(X)) @ RNG.normal(size=5) + NOISE * RNG.normal(size=30)


def prior():
    return FeatureProcess(waves, jnp.zeros(5), jnp.eye(5))


def exact(at, precision=1.0):
    """Mean and standard deviation of f at points, under the likelihood to a power."""
    phi = np.asarray(waves(X))
    covariance = np.linalg.inv(np.eye(5) + precision * phi.T @ phi / NOISE**2)
    mean = covariance @ phi.T @ np.asarray(Y) * precision / NOISE**2
    rows = np.asarray(waves(at))
    return rows @ mean, np.sqrt(np.sum((rows @ covariance) * rows, axis=1))


def model(x, y):
    f = numpyro.sample("f", prior()(x))
    numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)


def fitted(loss, hidden, num_steps=2500, model=model, batch=None):
    start: Any = FeatureProcess(waves, jnp.zeros(5), 0.3 * jnp.eye(5))
    start = ImplicitProcess(Hidden(start)) if hidden else start

    def guide(x, y):
        if batch is not None:
            with numpyro.plate("data", len(x), subsample_size=batch) as rows:
                x = jnp.asarray(x)[rows]
        numpyro.sample("f", eqx_module("q", start)(x))

    optim = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    svi = SVI(model, guide, optim, loss)
    result = svi.run(jax.random.key(0), num_steps, X, Y, progress_bar=False)
    process: Any = function_posterior(guide, result.params, X, Y)["f"]
    return process.sampler.inner if hidden else process


GRID = np.linspace(-4, 4, 41)[:, None]
BOX = UniformBox(10, -4.0, 4.0)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "divergence, hidden, low, high",
    [
        (GaussianKL(1e-3), False, 0.9, 1.1),
        (GaussianKL(1e-3), True, 0.9, 1.1),
        (RegularizedKL(1e-8), False, 0.9, 1.1),
        (ScoreKL(noise=1e-3), True, 0.85, 1.15),
    ],
    ids=["gaussian", "gaussian from particles", "regularised", "score"],
)
def test_the_optimum_is_the_posterior(divergence, hidden, low, high):
    process = fitted(FunctionalELBO(BOX, divergence), hidden)
    mean, deviation = exact(GRID)
    found, variance = process.moments(GRID)
    error = np.abs(np.asarray(found) - mean) / deviation
    ratio = np.sqrt(np.asarray(variance)) / deviation
    assert np.max(error) < 0.05
    assert low < np.min(ratio) and np.max(ratio) < high


@pytest.mark.statistical
def test_a_linearised_line_under_a_linear_kernel_becomes_the_exact_regression():
    # At orthogonal, centred inputs the weights of the exact posterior are independent, as the
    # guide's are.
    rng = np.random.default_rng(3)
    x = np.linalg.qr(np.column_stack([np.ones(30), rng.normal(size=(30, 2))]))[0][:, 1:] * 30**0.5
    y = 0.5 + x @ np.array([1.0, -0.7]) + NOISE * rng.normal(size=30)
    line = GaussianProcess(Linear(2.0) + Constant(0.5))
    exact_line = line.condition(x, y, NOISE)

    def model(x, y):
        f = numpyro.sample("f", line(x))
        numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)

    def guide(x, y):
        network = BayesianNetwork(2, depth=0, key=jax.random.key(1))
        numpyro.sample("f", eqx_module("q", LinearizedNetwork(network))(x))

    def distances(num_steps):
        optim = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
        loss = FunctionalELBO(HeldInputs(3 * x[:5]), RegularizedKL(1e-9))
        svi = SVI(model, guide, optim, loss)
        result = svi.run(jax.random.key(0), num_steps, x, y, progress_bar=False)
        found: Any = function_posterior(guide, result.params, x, y)["f"]
        at = np.random.default_rng(4).normal(size=(40, 2))
        mean, variance = exact_line.moments(at)
        error = jnp.max(jnp.abs(found.mean_at(at) - mean) / jnp.sqrt(variance))
        return float(error), np.abs(np.sqrt(np.asarray(found.moments(at)[1] / variance)) - 1).max()

    error, off = distances(2500)
    assert error < 0.05 and off < 0.05
    error, off = distances(2)
    assert error > 0.5 and off > 0.5


@pytest.mark.statistical
def test_noise_beyond_the_posterior_takes_variance_away():
    # What the bounds above are worth: noise of a fifth of the prior's deviation fails them.
    process = fitted(FunctionalELBO(BOX, GaussianKL(0.2)), hidden=False)
    ratio = jnp.sqrt(process.moments(X)[1]) / exact(X)[1]
    assert float(jnp.min(ratio)) < 0.9


def batched(x, y):
    with numpyro.plate("data", len(x), subsample_size=10) as rows:
        batch = jnp.asarray(x)[rows]
    f = numpyro.sample("f", prior()(batch))
    with numpyro.plate("data", len(x), subsample_size=10):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=jnp.asarray(y)[rows])


@pytest.mark.statistical
def test_weight_one_gives_the_posterior_from_minibatches_and_the_published_one_a_wider():
    points = HeldInputs(GRID[::4])  # with these the divergence of the weights is complete
    ratios = {}
    for weight in (1.0, "N/B"):
        loss = FunctionalELBO(points, GaussianKL(1e-3), weight)
        process = fitted(loss, hidden=False, model=batched, batch=10)
        ratios[weight] = np.asarray(jnp.sqrt(process.moments(X)[1])) / exact(X)[1]
    assert np.all(np.abs(ratios[1.0] - 1) < 0.1)
    tempered = exact(X, precision=1 / 3)[1] / exact(X)[1]
    np.testing.assert_allclose(ratios["N/B"], tempered, rtol=0.1)
    assert np.min(tempered) > 1.5


def gaussian_model(x, y):
    f = numpyro.sample("f", GaussianProcess(RBF())(x))
    numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)


@pytest.mark.statistical
def test_at_the_exact_posterior_the_loss_is_minus_the_log_evidence():
    x = jnp.linspace(-2, 2, 8)
    gp, y = GaussianProcess(RBF()), jnp.sin(2 * x)
    posterior = gp.condition(x, y, NOISE)

    def guide(x, y):
        numpyro.sample("f", posterior(x))

    loss = FunctionalELBO(HeldInputs(jnp.array([3.0])), GaussianKL(1e-4), num_particles=50)
    run = jax.jit(lambda key: loss.loss(key, {}, gaussian_model, guide, x, y))
    values = np.array([float(run(key)) for key in jax.random.split(jax.random.key(0), 40)])
    evidence = float(gp.log_evidence(x, y, NOISE))
    error = values.std(ddof=1) / 40**0.5
    assert abs(values.mean() + evidence) < 4 * error + 1e-3
    assert error < 0.1
    report = loss.report(jax.random.key(1), {}, gaussian_model, guide, x, y, with_growth=False)
    assert report.loss == pytest.approx(-evidence, abs=5 * values.std())


def network_guide(x, y=None, **_):
    network = BayesianNetwork(1, 8, key=jax.random.key(0))
    numpyro.sample("f", eqx_module("q", network)(x))


def test_values_are_those_of_one_function_at_all_points_and_the_model_sees_them():
    seen = []

    def looking(x, y):
        f = numpyro.sample("f", GaussianProcess(RBF())(x))
        seen.append(f)
        numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)
        numpyro.deterministic("copy", f)

    svi = SVI(looking, network_guide, optax.adam(1e-3), FunctionalELBO())
    params = svi.get_params(jax.jit(svi.init)(jax.random.key(0), X, Y))
    calls = Call(looking, (X, Y), {}, params), Call(network_guide, (X, Y), {}, params)
    repeated = HeldInputs(X[:5])

    @jax.jit
    def drawn(key):
        found = run_particles(*calls, repeated, 3, key).compared["f"]
        assert found.x.shape == (35, 1) and found.num_inputs == 30
        assert isinstance(found.prior, GaussianProcess) and isinstance(found.guide, BayesianNetwork)
        return found.values

    values = np.asarray(drawn(jax.random.key(1)))
    assert values.shape == (3, 35)
    np.testing.assert_allclose(values[:, 30:], values[:, :5], rtol=1e-12)
    assert values.std(axis=0).min() > 0  # particles are other functions


def test_all_particles_share_rows_and_batches_of_equal_size_compile_once():
    traces = []

    def counting(x, y):
        traces.append(1)
        batched(x, y)

    def guide(x, y):
        with numpyro.plate("data", len(x), subsample_size=10) as rows:
            pass
        network_guide(jnp.asarray(x)[rows])

    loss = FunctionalELBO(DataNoise(4), num_particles=5)
    svi = SVI(counting, guide, optax.adam(1e-3), loss)
    state = jax.jit(svi.init)(jax.random.key(0), X, Y)
    update = jax.jit(svi.update)
    state, first = update(state, X, Y)
    before = len(traces)
    for scale in (2.0, 3.0):
        state, value = update(state, scale * X, Y)
        assert np.isfinite(value)
    assert len(traces) == before
    calls = (
        Call(counting, (X, Y), {}, svi.get_params(state)),
        Call(guide, (X, Y), {}, svi.get_params(state)),
    )

    def drawn(key):
        step = run_particles(*calls, None, 5, key)
        assert step.batch_ratio == 3.0
        return step.compared["f"].x

    x = jax.eval_shape(drawn, jax.random.key(3))
    assert x.shape == (10, 1)  # unmapped, so the same for all particles


@pytest.mark.statistical
def test_a_minibatch_has_the_log_likelihood_of_all_rows_in_the_mean():
    def guide(x, y, batch):
        if batch:
            with numpyro.plate("data", len(x), subsample_size=10) as rows:
                x = jnp.asarray(x)[rows]
        numpyro.sample("f", prior()(x))

    def whole(x, y, batch):
        model(x, y)

    def part(x, y, batch):
        batched(x, y)

    def mean(model, batch):
        calls = Call(model, (X, Y, batch), {}, {}), Call(guide, (X, Y, batch), {}, {})
        run = jax.jit(lambda key: run_particles(*calls, None, 20, key).loss)
        values = np.array([float(run(k)) for k in jax.random.split(jax.random.key(0), 100)])
        return values.mean(), values.std(ddof=1) / 10

    (all_rows, error), (some_rows, other) = mean(whole, False), mean(part, True)
    assert abs(all_rows - some_rows) < 4 * np.hypot(error, other)
    assert np.hypot(error, other) < 0.1 * abs(all_rows)


@pytest.mark.statistical
def test_counts_agree_with_nuts():
    from numpyro.infer import MCMC, NUTS

    x = jnp.linspace(0, 3, 8)
    counts = jnp.array([1, 0, 2, 3, 5, 4, 7, 3])
    gp = GaussianProcess(RBF(1.0))

    def counted(x, y):
        f = numpyro.sample("f", gp(x))
        numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(1), obs=y)

    kernel_columns = FeatureProcess(lambda at: RBF(1.0).gram(at, x[:, None]), jnp.zeros(8))

    def guide(x, y):
        numpyro.sample("f", eqx_module("q", kernel_columns)(x))

    loss = FunctionalELBO(None, GaussianKL(1e-3))
    svi = SVI(counted, guide, optax.adam(optax.cosine_decay_schedule(0.05, 2500)), loss)
    result = svi.run(jax.random.key(0), 2500, x, counts, progress_bar=False)
    process: Any = function_posterior(guide, result.params, x, counts)["f"]
    mean, variance = process.moments(x)
    mcmc = MCMC(NUTS(counted), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(1), x, counts)
    draws = mcmc.get_samples()["f"]
    deviation = jnp.std(draws, axis=0)
    assert float(jnp.max(jnp.abs(mean - jnp.mean(draws, axis=0)) / deviation)) < 0.2
    ratio = jnp.sqrt(variance) / deviation
    assert float(jnp.min(ratio)) > 0.85 and float(jnp.max(ratio)) < 1.15


def test_a_schedule_of_weights_is_a_sequence_of_losses_of_one_svi():
    svi = SVI(model, network_guide, optax.adam(0.01), FunctionalELBO(None, "gaussian", 0.0, 40))
    start = jax.jit(svi.init)(jax.random.key(0), X, Y)
    first = svi.run(jax.random.key(0), 3, X, Y, progress_bar=False, init_state=start)
    # One key: losses are linear in the weight, with the divergence as slope.
    values = []
    for weight in (0.0, 0.5, 1.0):
        svi.loss = FunctionalELBO(None, "gaussian", weight, 40)
        values.append(float(jax.jit(svi.evaluate)(first.state, X, Y)))
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=1e-9)
    assert values[2] > values[1]
    later = svi.run(jax.random.key(1), 2, X, Y, progress_bar=False, init_state=first.state)
    assert float(later.losses[0]) == pytest.approx(values[2], rel=1e-9)
    assert int(later.state.optim_state[0]) == 5


def test_classes_noise_parameters_and_other_latents_have_gradients():
    labels = jnp.arange(30) % 3
    classes = stack([GaussianProcess(RBF()) for _ in range(3)])
    network = BayesianNetwork(1, 8, out_size=3, key=jax.random.key(0))

    def several(x, y):
        f = numpyro.sample("f", classes(x))
        slope = numpyro.sample("slope", dist.LogNormal(0.0, 1.0))
        width = numpyro.param("width", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("y", dist.Categorical(logits=slope * f / width).to_event(1), obs=y)

    def guide(x, y):
        loc = numpyro.param("loc", 0.1)
        numpyro.sample("slope", dist.LogNormal(loc, 0.3))
        numpyro.sample("f", eqx_module("q", network)(x))

    svi = SVI(several, guide, optax.adam(0.1), FunctionalELBO(num_particles=20))
    state = jax.jit(svi.init)(jax.random.key(0), X, labels)
    before = svi.get_params(state)
    state, loss = jax.jit(svi.update)(state, X, labels)
    after = svi.get_params(state)
    assert np.isfinite(loss)
    for name in ("width", "loc"):
        assert float(after[name]) != float(before[name])
    network_params = after["q$params"], before["q$params"]
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), *network_params)
    assert all(jax.tree.leaves(moved))


def test_parameters_of_the_prior_are_learned_with_the_rest():
    def adapting(x, y):
        length = numpyro.param("length", 0.3, constraint=dist.constraints.positive)
        f = numpyro.sample("f", GaussianProcess(RBF(length))(x))
        numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)

    smooth = FeatureProcess(lambda x: jnp.column_stack([jnp.ones(len(x)), x]), jnp.zeros(2))

    def guide(x, y):
        numpyro.sample("f", smooth(x))

    for divergence in (GaussianKL(), ScoreKL()):
        loss = FunctionalELBO(None, divergence, num_particles=40)

        def value(length, loss=loss):
            return loss.loss(jax.random.key(0), {"length": length}, adapting, guide, X, Y)

        # Lines are smooth: the prior's lengthscale rises.
        assert float(jax.jit(jax.grad(value))(0.3)) < 0


@pytest.mark.smoke
def test_two_calls_of_one_function_are_compared_at_both_sets_of_points():
    def twice(x, y):
        f = function("f", GaussianProcess(RBF()))
        numpyro.sample("y", dist.Normal(f(x), NOISE).to_event(1), obs=y)
        numpyro.sample("sum", dist.Normal(jnp.sum(f(GRID)), 1.0), obs=0.0)

    network = BayesianNetwork(1, 8, key=jax.random.key(0))

    def guide(x, y):
        f = function("f", eqx_module("q", network))
        f(x), f(GRID)

    svi = SVI(twice, guide, optax.adam(1e-2), FunctionalELBO(num_particles=20))
    state = jax.jit(svi.init)(jax.random.key(0), X, Y)
    state, loss = jax.jit(svi.update)(state, X, Y)
    assert np.isfinite(loss)
    calls = (
        Call(twice, (X, Y), {}, svi.get_params(state)),
        Call(guide, (X, Y), {}, svi.get_params(state)),
    )

    @jax.jit
    def drawn(key):
        found = run_particles(*calls, HeldInputs(GRID[:3]), 4, key).compared
        assert list(found) == ["f"] and found["f"].x.shape == (30 + 41 + 3, 1)
        prior: Any = found["f"].prior
        assert prior.evidence is None  # the prior itself, and not given earlier values
        return found["f"].values

    values = drawn(jax.random.key(0))
    np.testing.assert_allclose(values[:, -3:], values[:, 30:33], rtol=1e-12)
