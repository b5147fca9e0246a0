"""`AutoImplicit` as a NumPyro AutoGuide, and its accuracy where the truth is known."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoGuideList, AutoNormal

from implicitppl.distributions import NoiseGenerator, ResidualGenerator
from implicitppl.infer import AutoImplicit, GuideFitResult, ImplicitELBO, fit

KEY = jax.random.key(0)
COVARIANCE = np.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.2], [0.3, 0.2, 4.0]])
TRIL = np.linalg.cholesky(COVARIANCE)


def correlated() -> None:
    loc = jnp.array([1.0, -2.0, 0.0])
    numpyro.sample("x", dist.MultivariateNormal(loc, scale_tril=jnp.array(TRIL)))


def mixed_supports(y: jax.Array) -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("rows", 4):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2.0 * z)
    numpyro.sample("y", dist.Normal(scale * z.sum() + weights[0], 1.0), obs=y)


@pytest.fixture(scope="module")
def gaussian_fit() -> tuple[AutoImplicit, GuideFitResult]:
    guide = AutoImplicit(correlated)
    loss = ImplicitELBO(64)
    return guide, fit(KEY, correlated, guide, loss=loss, num_steps=1500, progress_bar=False)


@pytest.fixture(scope="module")
def mixed_fit() -> tuple[AutoImplicit, GuideFitResult]:
    guide = AutoImplicit(mixed_supports, num_starts=0)
    loss = ImplicitELBO(16)
    return guide, fit(KEY, mixed_supports, guide, 1.0, loss=loss, num_steps=100, progress_bar=False)


def check_moments(draws: np.ndarray, tolerance: float = 0.05) -> bool:
    """Means within `tolerance` sd, sds within the same share, correlations within it."""
    sd = np.sqrt(np.diag(COVARIANCE))
    exact = COVARIANCE / np.outer(sd, sd)
    return bool(
        np.all(np.abs(draws.mean(0) - [1.0, -2.0, 0.0]) < tolerance * sd)
        and np.all(np.abs(draws.std(0) / sd - 1) < tolerance)
        and np.all(np.abs(np.corrcoef(draws.T) - exact) < tolerance)
    )


@pytest.mark.smoke
def test_a_gaussian_posterior_is_recovered_with_its_correlations(gaussian_fit):
    guide, result = gaussian_fit
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(20_000,))["x"]
    draws = np.asarray(draws)
    assert check_moments(draws)
    shrunk = draws.mean(0) + 0.9 * (draws - draws.mean(0))
    assert not check_moments(shrunk), "the check must see a guide that is a tenth too narrow"


def test_the_loss_is_the_negative_elbo_and_reaches_the_evidence(gaussian_fit):
    """The evidence is 1, so the loss is the KL: small, and not below zero beyond noise."""
    _, result = gaussian_fit
    tail = np.asarray(result.losses)[-100:]
    error = 4 * tail.std() / 10
    assert -error - 1e-4 < tail.mean() < 5e-3
    assert result.objective.startswith("negative ELBO")
    assert result.log_weight_sd < 0.1


def test_the_gaussian_start_is_the_posterior_where_that_is_gaussian(gaussian_fit):
    _, result = gaussian_fit
    np.testing.assert_allclose(result.gaussian.loc, [1.0, -2.0, 0.0], atol=0.05)
    tril = np.asarray(result.gaussian.scale_tril)
    np.testing.assert_allclose(tril @ tril.T, COVARIANCE, atol=0.1)
    assert abs(float(result.gaussian.loss)) < 0.02 and result.gaussian.losses.shape == (4,)


@pytest.mark.exhaustive
def test_density_bounds_bracket_the_true_density(gaussian_fit):
    guide, result = gaussian_fit
    assert guide.has_density_bounds
    z, lower, upper = guide.log_density_bounds(jax.random.key(2), result.params, 500)
    exact = dist.MultivariateNormal(jnp.array([1.0, -2.0, 0.0]), jnp.array(COVARIANCE)).log_prob(z)
    assert abs(float(jnp.mean(lower - exact))) < 0.02
    assert abs(float(jnp.mean(upper - exact))) < 0.02
    assert float(guide.fold_share(jax.random.key(3), result.params)) == 0.0


@pytest.mark.smoke
def test_sites_come_back_on_their_own_scale(mixed_fit):
    guide, result = mixed_fit
    draws = guide.sample_posterior(KEY, result.params, 1.0, sample_shape=(2, 5))
    draws = {name: np.asarray(value) for name, value in draws.items()}
    shapes = {name: value.shape for name, value in draws.items()}
    assert shapes == {
        "scale": (2, 5), "weights": (2, 5, 3), "z": (2, 5, 4), "twice": (2, 5, 4)
    }  # fmt: skip
    assert np.all(draws["scale"] > 0)
    assert np.allclose(draws["weights"].sum(-1), 1.0, atol=1e-5)
    assert np.allclose(draws["twice"], 2 * draws["z"])


def test_quantiles_are_those_of_the_draws(mixed_fit):
    guide, result = mixed_fit
    draws = guide.sample_posterior(jax.random.key(7), result.params, sample_shape=(10_000,))
    got = guide.quantiles(result.params, [0.05, 0.5, 0.95])
    want = np.quantile(draws["scale"], [0.05, 0.5, 0.95])
    spread = float(np.std(draws["scale"]))
    np.testing.assert_allclose(got["scale"], want, atol=0.1 * spread)
    np.testing.assert_allclose(guide.median(result.params)["scale"], got["scale"][1])
    assert got["weights"].shape == (3, 3)


@pytest.mark.smoke
def test_predictive_runs_the_guide(mixed_fit):
    guide, result = mixed_fit
    predictive = Predictive(mixed_supports, guide=guide, params=result.params, num_samples=6)
    out = predictive(KEY, None)
    assert out["y"].shape == (6,) and out["twice"].shape == (6, 4)


@pytest.mark.parametrize("num_starts", [0, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_guide_list_with_an_ordinary_guide(num_starts):
    guide = AutoGuideList(mixed_supports)
    block = numpyro.handlers.block
    guide.append(AutoNormal(block(mixed_supports, expose=["scale", "weights"])))
    part = block(mixed_supports, expose=["z", "rows"])
    guide.append(AutoImplicit(part, prefix="part", num_starts=num_starts))
    svi = SVI(mixed_supports, guide, numpyro.optim.Adam(1e-2), ImplicitELBO(8))
    result = svi.run(KEY, 30, 1.0, progress_bar=False)
    assert np.isfinite(np.asarray(result.losses)).all()
    draws = guide.sample_posterior(KEY, result.params, 1.0, sample_shape=(4,))
    assert draws["z"].shape == (4, 4)


def test_restarts_have_different_networks():
    guide = AutoImplicit(correlated, num_starts=0)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    first, second = (svi.get_params(svi.init(jax.random.key(i))) for i in range(2))
    weight = [p["auto_generator$params"].network.layers[0].weight for p in (first, second)]
    assert not np.allclose(*weight)


@pytest.mark.slow
def test_stock_trace_elbo_trains_the_default_guide():
    guide = AutoImplicit(correlated, num_starts=0)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-2), Trace_ELBO(16))
    losses = np.asarray(svi.run(KEY, 300, progress_bar=False).losses)
    assert losses[-50:].mean() < losses[:50].mean() - 1.0


@pytest.mark.parametrize("as_factory", [True, False])
def test_purely_implicit_generators_are_taken_as_module_or_factory(as_factory):
    generator: Any = NoiseGenerator
    if not as_factory:
        generator = NoiseGenerator(3, key=jax.random.key(5))
    guide = AutoImplicit(correlated, generator=generator)
    loss = ImplicitELBO(32)
    result = fit(KEY, correlated, guide, loss=loss, num_steps=20, progress_bar=False)
    assert result.objective.startswith("surrogate")
    assert not guide.has_density_bounds
    with pytest.raises(ValueError, match="needs a generator with a conditional layer"):
        guide.log_density_bounds(KEY, result.params)


@pytest.mark.statistical
def test_a_purely_implicit_guide_learns_correlated_sds_within_eight_per_cent():
    guide = AutoImplicit(correlated, generator=NoiseGenerator)
    loss = ImplicitELBO(100)
    options: dict[str, Any] = {"num_steps": 1500, "learning_rate": 5e-3, "progress_bar": False}
    result = fit(KEY, correlated, guide, loss=loss, **options)
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(20_000,))["x"]
    ratio = np.asarray(draws).std(0) / np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(ratio - 1) < 0.08)


@pytest.mark.statistical
def test_a_banana_is_within_the_limits_where_a_gaussian_is_not():
    """x1 ~ N(0, 1), x2 | x1 ~ N(x1^2, 0.5^2): exact draws; limits of the accuracy page."""

    def banana() -> None:
        x1 = numpyro.sample("x1", dist.Normal(0.0, 1.0))
        numpyro.sample("x2", dist.Normal(x1**2, 0.5))

    rng = np.random.default_rng(0)
    x1 = rng.normal(size=50_000)
    exact = np.stack([x1, x1**2 + 0.5 * rng.normal(size=50_000)], 1)

    def errors(draws: dict[str, jax.Array]) -> tuple[float, float]:
        x = np.stack([np.asarray(draws["x1"]), np.asarray(draws["x2"])], 1)
        sd = exact.std(0)
        levels = np.quantile(x, [0.05, 0.95], axis=0) - np.quantile(exact, [0.05, 0.95], axis=0)
        mean = np.abs((x.mean(0) - exact.mean(0)) / sd).max()
        return float(mean), float(np.abs(levels / sd).max())

    guide = AutoImplicit(banana)
    result = fit(KEY, banana, guide, progress_bar=False)
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(20_000,))
    mean, quantile = errors(draws)
    assert mean < 0.1 and quantile < 0.15
    gaussian = numpyro.infer.autoguide.AutoMultivariateNormal(banana)
    result = fit(KEY, banana, gaussian, loss=Trace_ELBO(64), num_steps=2500, progress_bar=False)
    draws = gaussian.sample_posterior(jax.random.key(1), result.params, sample_shape=(20_000,))
    assert max(errors(draws)) > 0.15, "the target must be one where a Gaussian fails"


def test_errors_of_the_guide():
    with pytest.raises(ValueError, match="`num_starts` must not be negative; got -1"):
        AutoImplicit(correlated, num_starts=-1)
    with pytest.raises(ValueError, match="`init_scale` must be positive; got 0"):
        AutoImplicit(correlated, init_scale=0.0)

    class Wrong(eqx.Module):
        def __call__(self, key: jax.Array) -> jax.Array:
            return jnp.zeros(7)

    svi = SVI(
        correlated,
        AutoImplicit(correlated, generator=Wrong()),
        numpyro.optim.Adam(1e-3),
        ImplicitELBO(2),
    )
    with pytest.raises(ValueError, match=r"must return an array of shape \(3,\); got \(7,\)"):
        svi.init(KEY)


def test_forgotten_params_and_a_wrong_size_are_named():
    guide = AutoImplicit(correlated, num_starts=0)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(2))
    svi.init(KEY)
    with pytest.raises(ValueError, match=r"`params` must hold .* as `result.params` does"):
        guide.sample_posterior(KEY, {})
    with pytest.raises(ValueError, match=r"got \['other'\]"):
        guide.get_posterior({"other": 1.0})
    wrong = ResidualGenerator(2, key=KEY)
    svi = SVI(correlated, AutoImplicit(correlated, generator=wrong), svi.optim, ImplicitELBO(2))
    with pytest.raises(ValueError, match="size of the latent vector, 3; got .* of size 2"):
        svi.init(KEY)


def test_integer_arrays_of_a_generator_are_kept():
    class Permuted(eqx.Module):
        loc: jax.Array
        order: jax.Array

        def __call__(self, key: jax.Array) -> jax.Array:
            return (self.loc + jax.random.normal(key, self.loc.shape))[self.order]

    def make(size: int, *, key: jax.Array, loc: jax.Array) -> Permuted:
        return Permuted(10.0 * jnp.arange(size), jnp.arange(size)[::-1])

    guide = AutoImplicit(correlated, generator=make)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(2))
    params = svi.get_params(svi.init(KEY))
    draws = guide.sample_posterior(KEY, params, sample_shape=(500,))["x"]
    np.testing.assert_allclose(np.mean(draws, 0), [20.0, 10.0, 0.0], atol=0.3)


def test_a_discrete_latent_site_is_refused_at_set_up():
    def model() -> None:
        numpyro.sample("k", dist.Bernoulli(0.5))
        correlated()

    svi = SVI(model, AutoImplicit(model), numpyro.optim.Adam(1e-3), ImplicitELBO(2))
    with pytest.raises(ValueError, match=r"got discrete \['k'\]"):
        svi.init(KEY)


@pytest.mark.slow
def test_eight_schools_agrees_with_nuts():
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    s = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)

    mcmc = MCMC(
        NUTS(model),
        num_warmup=1000,
        num_samples=2500,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY)
    reference = mcmc.get_samples()
    guide = AutoImplicit(model)
    result = fit(KEY, model, guide, progress_bar=False)
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(10_000,))
    for site in ("mu", "z"):
        sd = np.asarray(reference[site]).std(0)
        shift = (np.asarray(draws[site]).mean(0) - np.asarray(reference[site]).mean(0)) / sd
        assert np.all(np.abs(shift) < 0.1)
        assert np.all(np.abs(np.asarray(draws[site]).std(0) / sd - 1) < 0.1)
    tau, truth = np.asarray(draws["tau"]), np.asarray(reference["tau"])
    levels = np.quantile(tau, [0.05, 0.95]) - np.quantile(truth, [0.05, 0.95])
    assert np.all(np.abs(levels / truth.std()) < 0.1)
    assert result.converged and result.log_weight_sd < 0.2
