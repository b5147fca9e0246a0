"""What is said of an objective, and predictions from a trained guide."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module
from scipy import stats

from implicitppl.divergences import DataNoise, GaussianKL, HeldInputs, RegularizedKL
from implicitppl.divergences._divergence import make_pair
from implicitppl.divergences._gaussian import Moments, gaussian_kl, sample_moments
from implicitppl.divergences._growth import overstatement
from implicitppl.gp import GaussianProcess
from implicitppl.infer import FunctionalELBO, FunctionSamples, function_posterior, predict
from implicitppl.infer._functional.report import drawn_prior
from implicitppl.kernels import RBF, Matern12
from implicitppl.processes import BayesianNetwork, FeatureProcess, LinearizedNetwork

X = jnp.linspace(-1, 1, 10)[:, None]
Y = jnp.sin(3 * X[:, 0])
NETWORK = BayesianNetwork(1, 20, key=jax.random.key(0))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def model(x, y):
    f = numpyro.sample("f", GaussianProcess(Matern12(0.5))(x))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def guide(x, y=None):
    numpyro.sample("f", eqx_module("q", NETWORK)(x))


def params():
    return {"q$params": eqx.filter(NETWORK, eqx.is_inexact_array)}


def test_a_report_adds_up_and_shows_a_divergence_that_does_not_settle():
    loss = FunctionalELBO(DataNoise(20), "gaussian", 0.5, num_particles=60, noise=0.05)
    report = loss.report(jax.random.key(0), params(), model, guide, X, Y, strength=0.01)
    expected = 0.5 * report.divergence_value - report.expected_log_density
    assert report.loss == pytest.approx(expected)
    found = report.growth[0]
    assert found.name == "f" and found.num_points == (30, 50, 90)
    # A network has no finite divergence from a Matern process.
    assert found.noisy[0] < found.noisy[1] < found.noisy[2]
    assert found.noisy[2] > 2 * found.noisy[0]
    assert found.regularized[2] == pytest.approx(found.regularized[0], rel=0.2)
    text = str(report)
    for part in ("weighted by 0.5 (no bound)", "60 particles", "90 points", "noise 0.05"):
        assert part in text
    assert not report.warnings


def test_a_report_warns_of_too_few_particles_and_of_too_much_noise():
    loss = FunctionalELBO(DataNoise(20), "gaussian", num_particles=20, noise=1.0)
    report = loss.report(jax.random.key(0), params(), model, guide, X, Y)
    few, noise = sorted(report.warnings, key=len)
    assert "20 particles at 30 values; their covariance has rank 19" in few
    assert "noise of the divergence" in noise
    assert report.objective.startswith("negative functional ELBO (estimate")


def test_few_particles_overstate_a_divergence_by_what_the_report_says():
    size, num = 8, 12
    root = np.eye(size) + 0.3 * np.tril(np.ones((size, size)))
    prior = Moments(jnp.zeros(size), 2 * jnp.eye(size))
    kl = jax.jit(lambda guide: gaussian_kl(guide, prior, 0.0))
    exact = float(kl(Moments(jnp.ones(size), jnp.asarray(root @ root.T))))
    normal = np.random.default_rng(0).normal(size=(1000, num, size))
    estimate = jax.jit(lambda values: gaussian_kl(sample_moments(values), prior, 0.0))
    found = np.array([estimate(1 + draws @ root.T) for draws in normal])
    # The mean of the draws adds its own variance to the square of the means' distance.
    found = found - 0.25 * np.trace(root @ root.T) / num - exact
    expected = float(overstatement(num, size))
    assert expected > 2
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 1000**0.5)


def test_a_report_says_so_between_n_and_twice_n_particles_and_may_leave_the_growth_out():
    loss = FunctionalELBO(DataNoise(20), RegularizedKL(1e-3), num_particles=45)
    at = (jax.random.key(0), params(), model, guide, X, Y)
    report = loss.report(*at, with_growth=False)
    assert report.growth == () and "more points" not in str(report)
    said = (
        f"45 particles at 30 values overstate the divergence by up to {overstatement(45, 30):.3g}"
    )
    assert any(said in warning for warning in report.warnings)
    shown = loss.report(*at).growth[0].regularized
    given = loss.report(*at, strength=1e-3).growth[0].regularized
    other = loss.report(*at, strength=1e-2).growth[0].regularized
    assert shown == given != other


@pytest.mark.slow
def test_moments_of_a_linearised_network_are_exact_from_any_number_of_particles():
    def linearised(x, y=None):
        numpyro.sample("f", eqx_module("q", LinearizedNetwork(NETWORK))(x))

    loss = FunctionalELBO(HeldInputs(X[:3] + 0.05), RegularizedKL(1e-4), num_particles=2)
    known = params()
    wrapped = {"q$params": LinearizedNetwork(known["q$params"])}
    keys = (jax.random.key(1), jax.random.key(2))

    def report(key, params, guide):
        return loss.report(key, params, model, guide, X, Y, with_growth=False)

    found, again = (report(key, wrapped, linearised) for key in keys)
    drawn, other = (report(key, known, guide) for key in keys)
    assert found.is_exact and "2 particles, the guide's moments are exact" in str(found)
    assert not drawn.is_exact and "2 particles, the guide's moments are theirs" in str(drawn)
    assert not any("more particles" in text for text in found.warnings)
    assert any("more particles" in text for text in drawn.warnings)
    # Other particles at the same points leave an exact divergence as it is.
    assert again.divergence_value == pytest.approx(found.divergence_value, rel=1e-9)
    assert other.divergence_value != pytest.approx(drawn.divergence_value, rel=1e-2)


def test_a_report_says_by_how_much_draws_of_the_prior_overstate_the_divergence():
    """The guide is the prior, in another form that has to be drawn: the divergence is 0."""
    exact = GaussianProcess(Matern12(0.3))
    drawn = exact + 1e-9 * BayesianNetwork(1, depth=0, key=jax.random.key(0))
    points = jnp.linspace(0, 1, 150)[:, None]
    divergence = GaussianKL(0.01)

    @eqx.filter_jit
    def pair_of(guide, prior, x):
        pair = make_pair(jnp.zeros((4, len(x))), guide, prior, x, jax.random.key(1))
        return pair, divergence(pair, jax.random.key(2)), divergence.added_variance(pair)

    pair, value, noise = pair_of(exact, drawn, points)
    (text,) = drawn_prior("f", pair, noise)
    stated = re.search(r"1500 draws at 150 values; .* about ([\d.]+) nats, and by 11%", text)
    assert stated and float(stated[1]) == pytest.approx(float(value), rel=0.05)
    few, _, noise_of_few = pair_of(exact, drawn, points[:9])
    assert drawn_prior("f", few, noise_of_few) == []
    known, _, noise = pair_of(exact, exact, points)
    assert drawn_prior("f", known, noise) == []


def test_a_minibatch_is_never_called_a_bound():
    def batched(x, y):
        with numpyro.plate("data", 10, subsample_size=5) as rows:
            pass
        f = numpyro.sample("f", GaussianProcess(RBF())(x[rows]))
        with numpyro.plate("data", 10, subsample_size=5):
            numpyro.sample("y", dist.Normal(f, 0.1), obs=y[rows])

    def batched_guide(x, y):
        with numpyro.plate("data", 10, subsample_size=5) as rows:
            pass
        guide(x[rows])

    loss = FunctionalELBO(DataNoise(4), "gaussian", "N/B", num_particles=20)
    at = jax.random.key(0), params(), batched, batched_guide, X, Y
    report = loss.report(*at, with_growth=False)
    assert report.weight == 2.0 and "no bound" in report.objective
    assert "ELBO" not in report.objective


def test_a_trained_guide_is_asked_anywhere_without_its_data():
    process = function_posterior(guide, params(), jnp.zeros((1, 1)))["f"]
    key, grid = jax.random.key(1), jnp.linspace(-2, 2, 5000)
    found = predict(process, key, grid, 6)
    again = predict(process, key, grid[4100:4200], 6)
    np.testing.assert_allclose(again.values, found.values[:, 4100:4200], rtol=1e-12)
    assert found.mean.shape == found.variance.shape == (5000,)
    with pytest.raises(ValueError, match="the guide draws no function"):
        function_posterior(lambda: numpyro.sample("z", dist.Normal()), {})


def test_moments_and_densities_of_draws_are_those_of_dense_formulas():
    values = np.random.default_rng(0).normal(1, 2, size=(7, 12))
    found, y = FunctionSamples(jnp.zeros((12, 1)), jnp.asarray(values)), np.linspace(-1, 1, 12)
    dense = np.cov(values, rowvar=False)
    np.testing.assert_allclose(found.covariance(jnp.arange(12)), dense, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.variance, np.diag(dense), rtol=1e-10)
    rows, columns = jnp.array([3, 1]), jnp.array([0, 5, 2])
    np.testing.assert_allclose(found.covariance(rows, columns), dense[np.ix_(rows, columns)])
    joint = stats.multivariate_normal(values.mean(axis=0), dense + 0.09 * np.eye(12))
    assert float(found.joint_log_prob(y, 0.3)) == pytest.approx(joint.logpdf(y), rel=1e-9)
    noise = np.linspace(0.1, 0.6, 12)  # one for every value
    joint = stats.multivariate_normal(values.mean(axis=0), dense + np.diag(noise**2))
    found_joint = found.joint_log_prob(y, noise)
    assert found_joint.shape == ()
    assert float(found_joint) == pytest.approx(joint.logpdf(y), rel=1e-9)
    mixture = np.log(np.mean(stats.norm(values, 0.3).pdf(y), axis=0))
    np.testing.assert_allclose(found.log_prob(y, 0.3), mixture, rtol=1e-10)


def test_a_gaussian_process_is_predicted_jointly():
    posterior = GaussianProcess(RBF(0.5)).condition(X, Y, 0.1)
    grid = jnp.linspace(-1, 1, 15)
    found = predict(posterior, jax.random.key(0), grid, 4000)
    exact = np.asarray(posterior.covariance(grid))
    spread = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / 4000)
    assert np.max(np.abs(np.asarray(found.covariance(jnp.arange(15))) - exact) / spread) < 5


class KnownWeights(FeatureProcess):
    """Functions of normal weights that know their divergence from standard normal weights."""

    def divergence_from(self, prior):
        tril = self.scale_tril
        terms = jnp.sum(tril**2) + jnp.sum(self.loc**2) - self.loc.shape[0]
        return 0.5 * terms - jnp.sum(jnp.log(jnp.diagonal(tril)))


def test_a_divergence_that_the_guide_knows_replaces_the_one_at_points():
    tril = jnp.array([[0.5, 0.0], [0.1, 0.3]])

    def features(x):
        return jnp.column_stack([x, jnp.cos(2 * x)])

    prior = FeatureProcess(features, jnp.zeros(2), jnp.eye(2))
    loc = jnp.array([0.4, -1.0])

    def line(x, y):
        f = numpyro.sample("f", prior(x))
        numpyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)

    def report_of(kind):
        loss = FunctionalELBO(None, GaussianKL(1e-4), num_particles=16)
        call = (line, lambda x, y: numpyro.sample("f", kind(features, loc, tril)(x)), X, Y)
        value = loss.loss(jax.random.key(0), {}, *call)
        return float(value), loss.report(jax.random.key(0), {}, *call)

    value, known = report_of(KnownWeights)
    at_points, compared = report_of(FeatureProcess)
    covariance = np.asarray(tril @ tril.T)
    exact = float(0.5 * (np.trace(covariance) + loc @ loc - 2 - np.linalg.slogdet(covariance)[1]))
    assert known.divergence_value == pytest.approx(exact, rel=1e-12) and known.is_exact
    assert known.growth == () and known.warnings == () and len(compared.growth) == 1
    # Ten points determine two weights, but for noise of 1e-4 of the prior's deviation.
    assert compared.divergence_value == pytest.approx(exact, rel=1e-3)
    assert value - at_points == pytest.approx(exact - compared.divergence_value, abs=1e-8)
