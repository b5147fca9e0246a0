"""The report, and the unconstrained coordinates under it, on models with known answers."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from scipy import stats

from implicitppl.diagnostics import report
from implicitppl.diagnostics._guide_draws import GuideDraws, guide_draws
from implicitppl.diagnostics._guide_report.rows import psis_rows
from implicitppl.models import posterior_target

COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
ROOT = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)


def correlated():
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), scale_tril=ROOT))


def constrained():
    """One site of each kind of support, and one whose support depends on another."""
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("k", 2):
        numpyro.sample("rate", dist.Uniform(0.0, 1.0 + scale))
    numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))


def fixed_supports():
    """The same, without the dependence, which NumPyro's AutoNormal does not follow."""
    numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("k", 2):
        numpyro.sample("rate", dist.Uniform(0.0, 3.0))
    numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))


def _init(model, guide):
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.1), numpyro.infer.Trace_ELBO())
    return jax.jit(lambda key: svi.get_params(svi.init(key)))(random.key(0))


@pytest.fixture(scope="module")
def correlated_target():
    return posterior_target(correlated)


def _exact_fit(scale_tril):
    guide = AutoMultivariateNormal(correlated)
    _init(correlated, guide)
    return guide, {"auto_loc": jnp.zeros(2), "auto_scale_tril": scale_tril}


def test_constrain_and_unconstrain_are_inverse():
    target = posterior_target(constrained)
    assert target.names == ("scale", "rate[0]", "rate[1]", "share[0]", "share[1]")
    z = random.normal(random.key(0), (6, 5))
    x = jax.jit(target.constrain)(z)
    back, volume = jax.jit(target.unconstrain)(x)
    np.testing.assert_allclose(back, z, atol=1e-4)

    def flat(row):
        x = {k: v[0] for k, v in target.constrain(row[None]).items()}
        return jnp.concatenate([x["scale"][None], x["rate"], x["share"][:2]])

    brute = np.linalg.slogdet(jax.jit(jax.vmap(jax.jacfwd(flat)))(z))[1]
    # Jacobians of single sites: the dependence of `rate` on `scale` is triangular
    np.testing.assert_allclose(volume, brute, atol=1e-3)
    prior = (
        stats.halfnorm(scale=2.0).logpdf(x["scale"])
        - 2 * np.log1p(x["scale"])
        + np.log(2.0)  # Dirichlet(1, 1, 1)
    )
    np.testing.assert_allclose(target.log_densities(z), prior + volume, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("guide_class", [AutoNormal, AutoMultivariateNormal, AutoIAFNormal])
def test_guide_densities_integrate_to_one(guide_class):
    """E_q[r / q] = 1 for a narrow normalised density r inside q."""
    guide = guide_class(fixed_supports)
    params = _init(fixed_supports, guide)
    target = posterior_target(fixed_supports)
    draws = guide_draws(random.key(1), guide, params, target, 4000)
    centre, sd = draws.samples.mean(0), 0.7 * draws.samples.std(0)
    inside = dist.Normal(centre, sd).log_prob(draws.samples).sum(1)
    weights = np.exp(np.asarray(inside - draws.log_density))
    error = weights.std() / np.sqrt(len(weights))
    assert abs(weights.mean() - 1) < 4 * error
    assert error < 0.1
    halved = np.exp(np.asarray(inside - draws.log_density)) * 2  # power: a missing log 2 is seen
    assert abs(halved.mean() - 1) > 4 * error


def test_function_guides_have_a_density_only_without_mixing(correlated_target):
    def plain():
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), scale_tril=ROOT))

    def mixture():
        z = numpyro.sample("z", dist.Normal(0, 1), infer={"is_auxiliary": True})
        numpyro.sample("x", dist.Normal(z, 1).expand([2]).to_event(1))

    known = guide_draws(random.key(0), plain, {}, correlated_target, 50)
    exact = stats.multivariate_normal(cov=COVARIANCE).logpdf(known.samples)
    np.testing.assert_allclose(known.log_density, exact, atol=1e-4)
    assert guide_draws(random.key(0), mixture, {}, correlated_target, 50).log_density is None
    with pytest.raises(ValueError, match=r"draw every latent site of the model; \['x'\] missing"):
        guide_draws(random.key(0), lambda: None, {}, correlated_target, 50)


@pytest.mark.smoke
def test_an_exact_guide_passes_and_the_report_prints():
    guide, params = _exact_fit(ROOT)
    out = report(random.key(3), correlated, guide, SimpleNamespace(params=params), num_chains=128)
    assert out.ok
    assert out["Stein slope"].verdict == "ok"
    assert out["NUTS drift of mean (sd)"].verdict in ("ok", "unclear")
    assert out["Pareto k-hat"].value < 0.5
    text = str(out)
    assert "cannot see" in text and "separated modes" in text and "2000 guide draws" in text
    assert json.loads(json.dumps(out.to_dict()))["ok"] is True
    with pytest.raises(KeyError, match="no row 'x'"):
        out["x"]


@pytest.mark.slow
def test_the_mean_field_optimum_is_rejected_by_what_can_see_it():
    # KL(q, p) optimum among independent Gaussians: variance 1 - .8^2
    guide, params = _exact_fit(0.6 * jnp.eye(2))
    out = report(random.key(3), correlated, guide, params, num_chains=128)
    assert not out.ok
    assert out["KSD^2 (U-statistic)"].verdict == "bad"
    assert out["NUTS drift of sd (ratio)"].verdict == "bad"
    # blind spot: along the coordinates the slopes of a KL optimum are 1
    assert out["Stein slope"].verdict == "ok"
    assert out["Stein slope, worst direction"].verdict == "bad"


@pytest.mark.slow
def test_reference_restarts_estimator_and_bounds_add_rows():
    class Bounded(AutoMultivariateNormal):
        """Mimics a semi-implicit guide: bounds instead of a density."""

        has_density_bounds = True

        def log_density_bounds(self, rng_key, params, num_samples, num_inner):
            posterior = self.get_posterior(params)
            z = posterior.sample(rng_key, (num_samples,))
            exact = posterior.log_prob(z)
            return z, exact - 0.02, exact + 0.02

    class Gaussian:
        """Score estimator of a Gaussian."""

        def fit(self, samples):
            precision = jnp.linalg.inv(jnp.cov(samples.T))
            mean = samples.mean(0)
            return lambda x: -precision @ (x - mean)

    guide = Bounded(correlated)
    _init(correlated, guide)
    params = {"auto_loc": jnp.zeros(2), "auto_scale_tril": ROOT}
    exact = [{"x": random.normal(random.key(i), (2000, 2)) @ ROOT.T} for i in range(3)]
    options: dict[str, Any] = {"checks": ("psis",), "score_estimator": Gaussian()}
    out = report(
        random.key(3), correlated, guide, params, reference=exact[0], restarts=exact[1:], **options
    )
    assert out.ok
    assert out["density bound gap (nats)"].value == pytest.approx(0.04, abs=1e-4)
    assert abs(out["fitted score on target score"].value - 1) < 0.15
    assert out["reference: sd_ratio"].verdict == "ok"
    assert out["restarts: spread of mean (sd)"].verdict in ("ok", "unclear")
    shifted = {"x": exact[1]["x"] + 0.4}
    bad = report(
        random.key(3), correlated, guide, params, reference=shifted, restarts=[shifted], **options
    )
    assert bad["reference: mean_shift"].verdict == "bad"
    assert bad["restarts: spread of mean (sd)"].verdict == "bad"


def test_draws_without_a_finite_density_are_left_out_and_counted():
    def broken():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("f", jnp.where(x > -0.5, 0.0, jnp.nan))

    guide = AutoMultivariateNormal(broken)
    _init(broken, guide)
    params = {"auto_loc": jnp.zeros(1), "auto_scale_tril": jnp.eye(1)}
    out = report(random.key(3), broken, guide, params, checks=("psis",))
    share = stats.norm.cdf(-0.5)
    row = out["draws without a finite score"]
    assert abs(row.value - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    assert row.verdict == "bad" and not out.ok
    assert out.dropped == round(row.value * 2000)


def test_weights_that_are_heavy_in_few_draws_are_small(correlated_target):
    """A share of .98 of the draws is effective: the tail of the weights alone is not bad."""
    z = random.normal(random.key(0), (2000, 2)) @ ROOT.T
    tail = -jnp.log(random.uniform(random.key(1), (2000,)))  # exp(.9 tail): k = .9
    mild = 0.9 * jnp.maximum(tail - 5.0, 0.0)

    def rows(bend):
        log_q = correlated_target.log_densities(z) - bend
        draws = GuideDraws(z, log_q, None, None, 0)
        return {row.quantity: row for row in psis_rows(correlated_target, draws)}

    few, many = rows(mild), rows(0.9 * tail)
    assert few["Pareto k-hat"].value > 0.7 and many["Pareto k-hat"].value > 0.7
    assert few["importance ESS / draws"].value > 0.95 > many["importance ESS / draws"].value
    assert few["Pareto k-hat"].verdict == "small" and many["Pareto k-hat"].verdict == "bad"


@pytest.mark.parametrize(("gap", "verdict"), [(0.01, "ok"), (0.2, "small"), (3.0, "bad")])
def test_bounds_that_do_not_meet_get_a_verdict(gap, verdict, correlated_target):
    z = random.normal(random.key(0), (200, 2)) @ ROOT.T
    exact = correlated_target.log_densities(z)
    draws = GuideDraws(z, None, exact - gap, exact, 0)
    *_, row = psis_rows(correlated_target, draws)
    assert row.quantity.startswith("density bound gap") and row.verdict == verdict


def test_errors():
    guide, params = _exact_fit(ROOT)
    with pytest.raises(ValueError, match="`checks` must be among .*; got \\['psiss'\\]"):
        report(random.key(0), correlated, guide, params, checks=("psiss",))
    with pytest.raises(ValueError, match="`params` must be a dict or a fit result"):
        report(random.key(0), correlated, guide, 3, checks=())

    def discrete():
        numpyro.sample("p", dist.Normal(0, 1))
        numpyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"continuous latent sites only; got discrete \['k'\]"):
        posterior_target(discrete)
