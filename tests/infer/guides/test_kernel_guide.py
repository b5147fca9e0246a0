"""The implicit guide learns a posterior over kernels."""

import jax
import jax.numpy as jnp
import numpyro
import pytest
from numpyro.distributions import HalfNormal
from numpyro.infer import MCMC, NUTS

from implicitppl.distributions import random_kernel
from implicitppl.gp import GaussianProcess
from implicitppl.infer import AutoImplicit, fit
from implicitppl.kernels import RBF


def model(x, y=None):
    kernel = random_kernel("k", RBF(), {"variance": 1.0})
    noise = numpyro.sample("noise", HalfNormal(0.5))
    numpyro.sample("y", GaussianProcess(kernel)(x, noise), obs=y)


@pytest.mark.slow
def test_the_implicit_guide_agrees_with_nuts():
    with jax.enable_x64(True):
        x = jnp.linspace(-3, 3, 25)
        y = jnp.sin(2 * x) + 0.1 * jax.random.normal(jax.random.key(0), x.shape)
        guide = AutoImplicit(model)
        result = fit(jax.random.key(0), model, guide, x, y, num_steps=300, progress_bar=False)
        ours = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(2000,))
        mcmc = MCMC(
            NUTS(model),
            num_warmup=300,
            num_samples=500,
            num_chains=2,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(2), x, y)
        for name, true in mcmc.get_samples().items():
            # The standard error of the mean of some 500 effective draws is .05 sd.
            assert abs(ours[name].mean() - true.mean()) < 0.2 * true.std()
            assert 0.8 < ours[name].std() / true.std() < 1.25
