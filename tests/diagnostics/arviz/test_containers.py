"""ArviZ containers: groups, dimensions and values, for MCMC and for any guide."""

import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.infer import HMC, MCMC, NUTS
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy.stats import norm

from implicitppl.diagnostics import to_arviz

Y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])


class Surrogate(dist.Normal):
    """Stands for a distribution whose log density means nothing."""

    has_density = False


def schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("school", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
    numpyro.factor("penalty", -0.1 * mu**2)
    numpyro.sample("score", Surrogate(0.0, 1.0).expand([2]).to_event(1), obs=jnp.zeros(2))


def groups_of(data):
    groups = data.groups() if callable(data.groups) else data.groups
    return {g.strip("/") for g in groups} - {""}


@pytest.fixture(scope="module")
def mcmc():
    run = MCMC(
        NUTS(schools),
        num_warmup=20,
        num_samples=12,
        num_chains=2,
        thinning=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("potential_energy", "num_steps", "accept_prob", "adapt_state.step_size", "diverging")
    run.run(random.key(0), Y, SIGMA, extra_fields=fields)
    return run


def _parameters(model, guide, *args):
    """The arguments are constants of the program: the guide keeps them."""
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.1), numpyro.infer.Trace_ELBO())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jax.jit(lambda key: svi.get_params(svi.init(key, *args)))(random.key(0))


@pytest.mark.smoke
@pytest.mark.smoke
def test_mcmc(mcmc, tmp_path):
    data = to_arviz(mcmc, num_prior_samples=5, coords={"school": list("ABCDEFGH")})
    assert groups_of(data) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "prior",
        "prior_predictive",
        "observed_data",
    }
    posterior = data["posterior"]
    assert set(posterior.data_vars) == {"mu", "tau", "z", "theta"}
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["theta"].shape == (2, 6, 8)
    assert list(posterior["school"].values) == list("ABCDEFGH")
    samples = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(posterior["mu"].values, samples["mu"])
    # factor and surrogate sites are nobody's data
    for group in ("log_likelihood", "posterior_predictive", "observed_data", "prior_predictive"):
        assert set(data[group].data_vars) == {"y"}
    exact = norm(samples["theta"], SIGMA).logpdf(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, exact, rtol=1e-5)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(data["observed_data"]["y"].values, Y)
    assert data["observed_data"]["y"].dims == ("school",)
    stats = data["sample_stats"]
    names = {"lp", "n_steps", "tree_depth", "acceptance_rate", "step_size", "diverging"}
    assert set(stats.data_vars) == names
    potential = mcmc.get_extra_fields(group_by_chain=True)["potential_energy"]
    np.testing.assert_array_equal(stats["lp"].values, -potential)
    steps = stats["n_steps"].values
    np.testing.assert_array_equal(stats["tree_depth"].values, np.floor(np.log2(steps)) + 1)
    data.to_netcdf(str(tmp_path / "mcmc.nc"))
    assert (tmp_path / "mcmc.nc").stat().st_size > 0


def test_fixed_length_hmc_has_no_tree_depth():
    def model():
        numpyro.sample("x", dist.Normal(0, 1))

    run = MCMC(
        HMC(model, num_steps=3, trajectory_length=None),
        num_warmup=5,
        num_samples=5,
        progress_bar=False,
    )
    run.run(random.key(0), extra_fields=("num_steps",))
    data = to_arviz(run)
    assert set(data["sample_stats"].data_vars) == {"n_steps", "diverging"}
    assert groups_of(data) == {"posterior", "sample_stats"}


@pytest.mark.smoke
@pytest.mark.smoke
@pytest.mark.parametrize("guide_class", [AutoNormal, AutoMultivariateNormal])
def test_guide(guide_class, tmp_path):
    guide = guide_class(schools)
    params = _parameters(schools, guide, Y, SIGMA)
    data = to_arviz(guide, params, model_args=(Y, SIGMA), num_samples=40)
    posterior = data["posterior"]
    assert set(posterior.data_vars) == {"mu", "tau", "z", "theta"}
    assert posterior["theta"].shape == (1, 40, 8)
    values = {k: posterior[k].values for k in posterior.data_vars}
    rebuilt = values["mu"][..., None] + values["tau"][..., None] * values["z"]
    np.testing.assert_allclose(values["theta"], rebuilt, atol=1e-4)
    exact = norm(values["theta"], SIGMA).logpdf(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, exact, rtol=1e-5)
    # predictions: standardised residuals are N(0, 1) over 320 numbers
    residual = (data["posterior_predictive"]["y"].values - values["theta"]) / SIGMA
    assert abs(residual.mean()) < 4 / np.sqrt(320)
    assert abs(residual.std() - 1) < 4 / np.sqrt(640)
    data.to_netcdf(str(tmp_path / "svi.nc"))


def test_function_guide_needs_its_model_and_hides_auxiliary_sites():
    def guide(y, sigma):
        eps = numpyro.sample("eps", dist.Normal(0, 1), infer={"is_auxiliary": True})
        numpyro.sample("mu", dist.Normal(eps, 1))
        numpyro.sample("tau", dist.LogNormal(0, 1))
        with numpyro.plate("school", 8):
            numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1))

    with pytest.raises(ValueError, match="`model` must be given with a guide that is a function"):
        to_arviz(guide, {"loc": 3.0}, model_args=(Y, SIGMA))
    data = to_arviz(
        guide,
        {"loc": jnp.array(3.0)},
        schools,
        model_args=(Y, SIGMA),
        num_samples=50,
        log_likelihood=False,
        posterior_predictive=False,
        constant_data={"sigma": SIGMA},
        dims={"sigma": ["school"]},
    )
    assert groups_of(data) == {"posterior", "observed_data", "constant_data"}
    assert set(data["posterior"].data_vars) == {"mu", "tau", "z", "theta"}
    assert abs(data["posterior"]["z"].values.mean() - 3) < 4 / np.sqrt(400)
    assert data["constant_data"]["sigma"].dims == ("school",)


def test_event_dims_and_clashing_names():
    def model(y):
        with numpyro.plate("group", 3):
            effects = dist.Normal(0, 1).expand([2]).to_event(1)
            b = numpyro.sample("b", effects, infer={"event_dims": ["slope"]})
        numpyro.sample("y", dist.Normal(b.sum(), 1), obs=y)

    guide = AutoNormal(model)
    params = _parameters(model, guide, 1.0)
    call: dict[str, Any] = {"model_args": (1.0,), "num_samples": 4}
    assert to_arviz(guide, params, **call)["posterior"]["b"].dims[2:] == ("group", "slope")
    renamed = to_arviz(guide, params, dims={"b": ["g"]}, **call)
    assert renamed["posterior"]["b"].dims[2:] == ("g", "b_dim_1")
    with pytest.raises(ValueError, match=r"`coords\['group'\]` must have 3 labels; got 2"):
        to_arviz(guide, params, coords={"group": [1, 2]}, **call)


def test_a_conditioned_site_counts_as_observed():
    conditioned = handlers.condition(schools, {"tau": 1.0})
    guide = AutoNormal(conditioned)
    params = _parameters(conditioned, guide, Y, SIGMA)
    data = to_arviz(guide, params, model_args=(Y, SIGMA), num_samples=4)
    assert "tau" in data["observed_data"].data_vars
    assert "tau" not in data["posterior"].data_vars


def test_errors(mcmc):
    with pytest.raises(ValueError, match="`result` must be the fit of the guide"):
        to_arviz(AutoNormal(schools))
    with pytest.raises(ValueError, match="must be a numpyro MCMC or a guide; got int"):
        to_arviz(3, {})
    with pytest.raises(ValueError, match="an MCMC that has run"):
        to_arviz(MCMC(NUTS(schools), num_warmup=1, num_samples=1))
    with pytest.raises(ValueError, match="every latent site; \\['extra'\\] missing"):

        def other(y, sigma):
            schools(y, sigma)
            numpyro.sample("extra", dist.Normal(0, 1))

        to_arviz(mcmc, model=other)


def test_arviz_is_imported_only_when_called():
    import subprocess

    code = (
        "import sys, implicitppl.diagnostics; "
        "sys.exit(any(m in sys.modules for m in ('arviz', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_keys_are_used(mcmc):
    first = to_arviz(mcmc, rng_key=random.key(1), log_likelihood=False)
    again = to_arviz(mcmc, rng_key=random.key(1), log_likelihood=False, batch_size=5)
    other = to_arviz(mcmc, rng_key=random.key(2), log_likelihood=False)
    values = [np.asarray(d["posterior_predictive"]["y"].values) for d in (first, again, other)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    assert np.abs(values[0] - values[2]).max() > 1
    assert jax.tree.leaves(mcmc.get_samples())  # untouched
