"""Random targets: the posterior stays exact; noise is kept, measured, correlated, warned about."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jaxtyping import Array
from numpyro.infer import MCMC

from implicitppl.infer import ScoreHMC
from implicitppl.infer._score_hmc.noise import measured, moved, new_meter, num_measured
from implicitppl.models import black_box

WARMUP, CHAINS = 40, 4
KNOWN = numpyro.distributions.Normal(0.0, 1.0)  # prior; the exact likelihood is N(1 | x, 1)
MEAN, SD = 0.5, np.sqrt(0.5)


def spread(x: Any) -> Any:
    """Standard deviation of the noise: larger on the right, so that mistakes show as bias."""
    return 0.4 + 0.8 / (1 + np.exp(-2 * x))


def estimate(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """The log of an unbiased log-normal estimate of the likelihood."""
    s = spread(x)
    noise = s * rng.standard_normal() - 0.5 * s**2
    return np.asarray(-0.5 * (1 - x) ** 2 + noise, dtype=x.dtype)


def with_noise(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The same with the noise given; twice as large, so that correlation matters."""
    noise = 2.0 * u[0] - 2.0
    return np.asarray(-0.5 * (1 - x) ** 2 + noise, dtype=x.dtype)


def model(fn: Any, noise: Any = None) -> None:
    x = numpyro.sample("x", KNOWN)
    log_likelihood = black_box(
        "likelihood", fn, x, out=(), key=numpyro.prng_key(), **({} if noise is None else noise)
    )
    numpyro.factor("data", log_likelihood)


def mcmc_of(kernel: ScoreHMC, num_samples: int, num_warmup: int = WARMUP) -> MCMC:
    return MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )


@pytest.mark.slow
@pytest.mark.statistical
def test_the_posterior_is_exact_and_estimating_anew_is_not() -> None:
    # Keeping the estimate: mean and sd within 4 standard errors. Estimating the current point anew
    # in each iteration, which looks harmless, fails the same assertion.
    import arviz as az

    kernel = ScoreHMC(functools.partial(model, estimate))
    mcmc = mcmc_of(kernel, 6000, 60)
    mcmc.run(jax.random.key(0))
    right = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])

    def wrong(state: Any, key: Array) -> tuple[Any, Array]:
        state = kernel.sample(state, (), {})
        z, outputs = kernel._unpack(state.z)
        keys = jax.random.split(key, CHAINS)
        again = jax.vmap(lambda z, k: kernel._problem.evaluate(z, k, {}, (), {}))(z, keys)
        del outputs
        estimate = state.estimate._replace(potential=again.potential)
        return state._replace(estimate=estimate), state.z["x"]

    keys = jax.random.split(jax.random.key(1), 2000)  # its errors are then three times the bar
    last = jax.tree.map(jnp.copy, mcmc.last_state)
    biased = np.asarray(jax.jit(lambda s: jax.lax.scan(wrong, s, keys)[1])(last)).T

    def errors(x: np.ndarray) -> tuple[float, float]:
        size, spread = float(az.ess(x)), float(az.ess((x - MEAN) ** 2))
        return (
            abs(x.mean() - MEAN) * np.sqrt(size) / SD,
            abs(((x - MEAN) ** 2).mean() / SD**2 - 1) * np.sqrt(spread / 2),
        )

    assert float(az.ess(right)) > 2000
    assert max(errors(right)) < 4, errors(right)
    assert max(errors(biased)) > 4, errors(biased)


@pytest.mark.slow
def test_the_noise_is_kept_measured_and_counted() -> None:
    fields = ("potential_energy", "num_evaluations", "noise_variance", "accept_prob")
    mcmc = mcmc_of(ScoreHMC(functools.partial(model, estimate)), 400, 160)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a variance of about .6 needs no warning
        mcmc.run(jax.random.key(2), extra_fields=fields)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    f = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    # A point keeps its value for as long as the chain stays there.
    stayed = x[:, 1:] == x[:, :-1]
    assert 0.1 < stayed.mean() < 0.9
    np.testing.assert_array_equal(
        f["potential_energy"][:, 1:][stayed], f["potential_energy"][:, :-1][stayed]
    )
    # 16 values for each chain: a standard error of a quarter for all four together.
    variance = f["noise_variance"][:, -1]
    assert (f["noise_variance"] == variance[:, None]).all()
    z = np.asarray(mcmc.last_state.noise_meter.count)
    assert (z == num_measured(160)).all()
    expected = spread(np.linspace(-1, 2, 7)) ** 2
    assert expected.min() / 2 < variance.mean() < 2 * expected.max()
    assert f["num_evaluations"][0, -1] == 1 + 160 + 400


@pytest.mark.slow
def test_large_noise_warns_and_correlated_noise_moves_on() -> None:
    noise = {"noise": (1,)}
    fields = ("accept_prob",)
    acceptance = {}
    for correlation in (0.0, 0.99):
        kernel = ScoreHMC(
            functools.partial(model, with_noise, noise), noise_correlation=correlation
        )
        mcmc = mcmc_of(kernel, 1500)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mcmc.run(jax.random.key(3), extra_fields=fields)
            jax.effects_barrier()
        told = any("have variance" in str(w.message) for w in caught)
        assert told == (correlation == 0)
        acceptance[correlation] = float(np.mean(mcmc.get_extra_fields()["accept_prob"]))
        u = np.asarray(mcmc.last_state.noise["likelihood"])
        x = np.asarray(mcmc.last_state.z["x"])
        kept = KNOWN.log_prob(x) - 0.5 * (1 - x) ** 2 + 2.0 * u[:, 0] - 2.0
        np.testing.assert_allclose(mcmc.last_state.potential_energy, -kept, rtol=1e-4)
    assert acceptance[0.99] > 1.5 * acceptance[0.0]
    x = np.asarray(mcmc.get_samples()["x"])
    assert abs(x.mean() - MEAN) < 0.25  # chains of 1,500 strongly correlated draws


def test_correlation_needs_noise() -> None:
    with pytest.raises(ValueError, match=r"noise_correlation.*1\.0"):
        ScoreHMC(model, noise_correlation=1.0)
    kernel = ScoreHMC(functools.partial(model, estimate), noise_correlation=0.5)
    with pytest.raises(ValueError, match="`noise_correlation` needs a black box with `noise="):
        kernel.init(jax.random.split(jax.random.key(0), 2), 10, None, (), {})


def test_the_proposal_of_the_noise_leaves_a_normal_invariant() -> None:
    old = {"u": jax.random.normal(jax.random.key(0), (20_000,))}
    fresh = {"u": jax.random.normal(jax.random.key(1), (20_000,))}
    new = moved(old, fresh, 0.8, jnp.asarray(False))["u"]
    assert abs(float(jnp.var(new)) - 1) < 4 * np.sqrt(2 / 20_000)
    assert abs(float(jnp.mean(new * old["u"])) - 0.8) < 4 * np.sqrt(2 / 20_000)
    np.testing.assert_array_equal(moved(old, fresh, 0.8, jnp.asarray(True))["u"], fresh["u"])


def test_the_meter_is_the_sample_variance() -> None:
    values = np.random.default_rng(0).normal(50.0, 1.5, (12, 3)).astype(np.float32)
    values[4, 1] = np.inf
    meter = new_meter(3, jnp.dtype(jnp.float32))
    for row in values:
        meter = measured(meter, jnp.asarray(row))
    expected = [np.var(c[np.isfinite(c)], ddof=1) for c in values.T]
    np.testing.assert_allclose(meter.variance, expected, rtol=1e-4)
    assert np.isnan(new_meter(1, jnp.dtype(jnp.float32)).variance[0])
