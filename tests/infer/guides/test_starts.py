"""Where `AutoImplicit` starts: the best Gaussian from several places, or a plain start."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import SVI
from numpyro.infer.initialization import init_to_median, init_to_value

from implicitppl.distributions import NoiseGenerator
from implicitppl.infer import AutoImplicit, ImplicitELBO
from tests.infer.guides.test_auto_implicit import KEY, correlated


@pytest.mark.smoke
def test_initialising_the_guide_fits_the_gaussian():
    """Stiff and correlated: scales of 1e-4 and 1e3, from a start ten thousand sds away."""
    scales = np.array([1e-4, 1.0, 1e3])
    tril = scales[:, None] * np.linalg.cholesky([[1, 0.9, 0.3], [0.9, 1, 0.2], [0.3, 0.2, 1]])
    mean = np.array([1.0, -2.0, 5e3], np.float32)
    whiten = jnp.asarray(np.linalg.inv(tril))
    log_norm = 1.5 * np.log(2 * np.pi) + np.log(np.diag(tril)).sum()

    def stiff() -> None:
        flat = dist.ImproperUniform(constraints.real_vector, (), (3,))
        x = numpyro.sample("x", flat)
        numpyro.factor("f", -0.5 * jnp.sum((whiten @ (x - mean)) ** 2) - log_norm)

    guide = AutoImplicit(stiff)
    svi = SVI(stiff, guide, numpyro.optim.Adam(5e-3), ImplicitELBO(32))
    state = svi.init(KEY)
    generator = svi.get_params(state)["auto_generator$params"]
    np.testing.assert_allclose((generator.frame_loc - mean) / scales, 0.0, atol=0.1)
    ratio = np.linalg.solve(tril, np.asarray(generator.frame_tril, np.float64))
    np.testing.assert_allclose(ratio @ ratio.T, np.eye(3), atol=0.1)
    losses = np.asarray(jax.lax.scan(lambda s, _: svi.stable_update(s), state, length=200)[1])
    assert np.abs(losses[-50:]).mean() < 0.05, "the evidence is 1: the loss is the KL"


def test_the_plain_start_is_at_the_initial_values():
    guide = AutoImplicit(
        correlated, init_loc_fn=init_to_value(values={"x": jnp.array([3.0, 4.0, 5.0])}),
        init_scale=1e-3, num_starts=0,
    )  # fmt: skip
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    params = svi.get_params(svi.init(KEY))
    draws = guide.sample_posterior(KEY, params, sample_shape=(50,))["x"]
    assert np.all(np.abs(np.asarray(draws) - [3.0, 4.0, 5.0]) < 0.01)


def flat_model(y: jax.Array) -> None:
    """Improper priors: nothing to draw from before data are seen."""
    flat = dist.ImproperUniform(constraints.real_vector, (), (2,))
    beta = numpyro.sample("beta", flat)
    scale = numpyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * jnp.arange(len(y)), scale), obs=y)


def test_flat_priors_are_taken_by_the_guide_and_by_its_start():
    y = np.array([0.9, 3.2, 4.8, 7.1, 9.0, 11.2, 12.9], np.float32)
    guide = AutoImplicit(flat_model)
    svi = SVI(flat_model, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(4))
    with guide.plain_init():
        params = svi.get_params(svi.init(KEY, y))
    _, gaussian = jax.jit(guide.gaussian_start)(KEY, params, y)
    design = np.stack([np.ones(7), np.arange(7)], 1)
    exact = np.linalg.lstsq(design, y, rcond=None)[0]
    index = list(guide._init_locs).index("beta")
    assert index == 0 and gaussian.losses.shape == (4,)
    np.testing.assert_allclose(gaussian.loc[:2], exact, atol=0.05)


def test_the_start_looks_beyond_the_prior_median():
    """Two modes, the prior median in the lighter one's basin; prior draws reach the other."""

    def two_modes() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 10.0))
        numpyro.factor("f", jnp.logaddexp(-8.0 * (x + 1.0) ** 2, 5.0 - 8.0 * (x - 12.0) ** 2))

    def loc_from(num_starts: int) -> float:
        guide = AutoImplicit(two_modes, num_starts=num_starts, init_loc_fn=init_to_median)
        svi = SVI(two_modes, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(4))
        params = svi.get_params(svi.init(KEY))
        return float(params["auto_generator$params"].frame_loc[0])

    assert loc_from(1) == pytest.approx(-1.0, abs=0.3)
    assert loc_from(4) == pytest.approx(12.0, abs=0.3)


def test_a_purely_implicit_generator_has_no_gaussian_start():
    guide = AutoImplicit(correlated, generator=NoiseGenerator)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    params = svi.get_params(svi.init(KEY))
    with pytest.raises(ValueError, match="`gaussian_start` needs a `ResidualGenerator`"):
        guide.gaussian_start(KEY, params)


def test_a_plain_guide_refuses_a_gaussian_start():
    guide = AutoImplicit(correlated, num_starts=0)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    params = svi.get_params(svi.init(KEY))
    with pytest.raises(ValueError, match="needs `num_starts` of at least 1; got 0"):
        guide.gaussian_start(KEY, params)


def test_a_prior_with_a_density_alone_starts_from_uniform_places():
    class Density(dist.Distribution):
        support = constraints.real

        def log_prob(self, value: jax.Array) -> jax.Array:
            return dist.Normal(3.0, 0.5).log_prob(value)

    def model() -> None:
        numpyro.sample("x", Density())

    strategy = init_to_value(values={"x": 0.0})
    guide = AutoImplicit(model, init_loc_fn=strategy)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(4))
    params = svi.get_params(svi.init(KEY))
    np.testing.assert_allclose(params["auto_generator$params"].frame_loc, 3.0, atol=0.1)
