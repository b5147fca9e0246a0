"""Priors over kernels: which sites there are, what is held, and inference that recovers a truth."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.diagnostics import split_gelman_rubin
from numpyro.distributions import Exponential, HalfNormal, LogNormal, Normal
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

from implicitppl.distributions import kernel_at, random_kernel
from implicitppl.distributions._kernel_prior import kernel_prior
from implicitppl.gp import GaussianProcess, fit
from implicitppl.kernels import (
    RBF,
    Linear,
    NeuralKernelNetwork,
    Periodic,
    SpectralMixture,
    parameters,
)
from implicitppl.kernels._parameters import Parameter


def _sites(kernel, prior=None, seed=0):
    model = numpyro.handlers.seed(lambda: random_kernel("k", kernel, prior), seed)
    trace = numpyro.handlers.trace(model).get_trace()
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def _network():
    primitives = (RBF(jnp.array([0.5, 2.0])), Periodic(1.0, period=2.0), Linear(0.3))
    return NeuralKernelNetwork.from_widths(primitives, (4,), key=jax.random.key(0))


KERNELS = {
    "RBF": lambda: RBF(jnp.array([0.5, 2.0])),
    "sum": lambda: 2.0 * RBF() + Periodic().on(1),
    "network": _network,
    "mixture": lambda: SpectralMixture(jnp.ones(2), jnp.ones((2, 2)), jnp.ones((2, 2))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_parameter_has_a_site_of_its_shape(name):
    kernel = KERNELS[name]()
    sites = _sites(kernel)
    expected = {f"k/{key}": parameter for key, parameter in parameters(kernel).items()}
    assert set(sites) == set(expected)
    for key, parameter in expected.items():
        value = sites[key]["value"]
        assert value.shape == parameter.value.shape
        assert not parameter.is_positive or jnp.all(value > 0)


def test_the_returned_kernel_has_the_sampled_values():
    kernel = KERNELS["sum"]()
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=3):
        drawn = random_kernel("k", kernel)
    values = {key: site["value"] for key, site in trace.items() if site["type"] == "sample"}
    for key, parameter in parameters(drawn).items():
        np.testing.assert_array_equal(parameter.value, values[f"k/{key}"])
    again = kernel_at(kernel, values, "k")
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "parameter, family, mean",
    [
        (Parameter(jnp.array(3.0), "lengthscale", True), LogNormal, 3.0 * np.exp(0.5)),
        (Parameter(jnp.array(3.0), "period", True), LogNormal, 3.0 * np.exp(0.25**2 / 2)),
        (Parameter(jnp.ones((2, 5)), "weight", True), Exponential, 1 / 5),
        (Parameter(jnp.ones(4), "bias", True), Exponential, 0.1),
        (Parameter(jnp.array(0.0), "mean", False), Normal, 0.0),
        (Parameter(jnp.array(4.0), "frequency", False), Normal, 4.0),
        (Parameter(jnp.array(0.0), "frequency", False), Normal, 0.0),
    ],
)
def test_default_priors_go_by_kind(parameter, family, mean):
    prior = kernel_prior(parameter)
    assert isinstance(prior, family)
    np.testing.assert_allclose(prior.mean, np.full(parameter.value.shape, mean), rtol=1e-5)


def test_priors_by_name_numbers_and_functions():
    sites = _sites(RBF(), {"variance": HalfNormal(2.0), "lengthscale": 0.7})
    assert list(sites) == ["k/variance"]
    model = numpyro.handlers.seed(
        lambda: random_kernel("k", RBF(), {"lengthscale": 0.7, "variance": 2.0}), 0
    )
    assert (float(model().lengthscale), float(model().variance)) == pytest.approx((0.7, 2.0))
    sites = _sites(RBF(), lambda name, parameter: Exponential() if name == "variance" else 1.0)
    assert list(sites) == ["k/variance"]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"`prior` names \['scale'\]; the kernel's parameters are"):
        _sites(RBF(), {"scale": HalfNormal()})
    with pytest.raises(ValueError, match="a distribution or a number for 'variance'; got 'wide'"):
        _sites(RBF(), {"variance": "wide"})
    with pytest.raises(ValueError, match="none of the kernel's parameters"):
        kernel_at(RBF(), {"lengthscale": 1.0}, "k")


X = jnp.linspace(-3, 3, 25)


def _regression(x, y=None):
    kernel = random_kernel("k", RBF(), {"variance": 1.0})
    noise = numpyro.sample("noise", HalfNormal(0.5))
    numpyro.sample("y", GaussianProcess(kernel)(x, noise), obs=y)


@pytest.fixture(scope="module")
def outputs():
    noise = jax.random.normal(jax.random.key(0), X.shape)
    return jnp.sin(2 * X) + 0.1 * noise


@pytest.mark.smoke
def test_svi_moves_towards_the_maximum_of_the_evidence(outputs):
    guide = AutoNormal(_regression)
    svi = SVI(_regression, guide, Adam(0.05), Trace_ELBO())
    start = jax.jit(svi.init)(jax.random.key(1), X, outputs)
    result = svi.run(jax.random.key(1), 600, X, outputs, progress_bar=False, init_state=start)
    median = guide.median(result.params)
    best = fit(GaussianProcess(RBF()), X, outputs, fixed=["kernel.variance"], num_steps=200)
    ratio = median["k/lengthscale"] / best.process.kernel.lengthscale
    assert 0.8 < float(ratio) < 1.25
    assert 0.7 < float(median["noise"] / best.noise_scale) < 1.5


@pytest.mark.slow
def test_nuts_agrees_with_quadrature(outputs):
    """Posterior of (log lengthscale, log noise) against a fine grid; a wrong prior is seen."""
    mcmc = MCMC(
        NUTS(_regression),
        num_warmup=400,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(2), X, outputs)
    draws = mcmc.get_samples(group_by_chain=True)
    log_length = np.log(draws["k/lengthscale"])
    assert float(split_gelman_rubin(log_length)) < 1.01

    lengths = jnp.exp(jnp.linspace(-2.5, 1.5, 120))
    noises = jnp.exp(jnp.linspace(-5, 1, 120))

    def density(length, noise, width):
        prior = LogNormal(0, width).log_prob(length) + HalfNormal(0.5).log_prob(noise)
        likelihood = GaussianProcess(RBF(length)).log_evidence(X, outputs, noise)
        return likelihood + prior + jnp.log(length) + jnp.log(noise)

    def mean(width):
        cells = jax.vmap(lambda a: jax.vmap(lambda b: density(a, b, width))(noises))(lengths)
        weights = jax.nn.softmax(cells.reshape(-1)).reshape(cells.shape).sum(1)
        return float(weights @ jnp.log(lengths))

    ess = numpyro.diagnostics.effective_sample_size(log_length)
    error = log_length.std() / np.sqrt(ess)
    assert abs(log_length.mean() - mean(1.0)) < 4 * error
    assert abs(log_length.mean() - mean(0.1)) > 4 * error


def test_draws_of_a_posterior_are_a_batch_of_kernels():
    prior = Predictive(_regression, num_samples=7)(jax.random.key(0), X)
    point = jnp.zeros(1)
    values = jax.vmap(lambda draw: kernel_at(RBF(), draw, "k")(point, point + 1))(
        {"k/lengthscale": prior["k/lengthscale"]}
    )
    np.testing.assert_allclose(values, np.exp(-0.5 / prior["k/lengthscale"] ** 2), rtol=1e-5)
