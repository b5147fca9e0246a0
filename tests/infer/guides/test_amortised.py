"""An amortised implicit guide in a subsampled plate, on a model whose posteriors are known.

z_n ~ N(0, 1), x_n ~ N(z_n, 1) for n = 1..N gives z_n | x_n ~ N(x_n / 2, 1/2). The guide is a
sampler without a density, z = a x + b + exp(c) e, e ~ N(0, 1), so the optimum is a = 1/2, b = 0,
exp(2c) = 1/2. With m_n = a x_n + b and s = exp(c) the negative ELBO is

    sum_n [ (m_n^2 + s^2) / 2 + ((x_n - m_n)^2 + s^2) / 2 - c ] + const,

with the gradient sum_n (x_n (2 m_n - x_n), 2 m_n - x_n, 2 s^2 - 1) in (a, b, c). The mean over
subsamples of B rows equals it if every row counts N / B times.

For draws of one row with mean u and variance v, the score -(x - u) / v has the empirical mean of
s(x) (x - m_n) exactly -1, which makes the gradient of the loss unbiased: the closed form is tested
with this score. The default estimator is biased with few particles (mean of s(x) (x - m_n) is -0.94
with 32), so that the trained variance is about 0.47; the tolerances of that test allow for it.

The wrong versions that must fail: a subsample of its own for each particle, and the factor N / B
left out, everywhere or at the score only.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI

from implicitppl.distributions import Implicit
from implicitppl.infer import ImplicitELBO
from implicitppl.infer._guides import elbo as _elbo
from implicitppl.models import _sites

N, B = 12, 4
X = jnp.linspace(-2.0, 3.0, N)
TRUTH = {"a": 0.5, "b": 0.0, "variance": 0.5}
KNOWN = {"a": 0.3, "b": 0.2, "c": -0.6}
NUM_REPEATS = 400
NUM_SEEDS = 4
NUM_STEPS = 300
MAX_Z = 4.5
TOLERANCE = {"a": 0.05, "b": 0.07, "variance": 0.07}


class Linear(eqx.Module):
    """z = a x + b + exp(c) noise."""

    a: jax.Array
    b: jax.Array
    c: jax.Array

    def __call__(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return self.a * x + self.b + jnp.exp(self.c) * jax.random.normal(key)


def model(x: jax.Array) -> None:
    with numpyro.plate("rows", N, subsample_size=B) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def guide(x: jax.Array) -> None:
    sampler = Linear(*(numpyro.param(name, jnp.array(0.0)) for name in "abc"))
    with numpyro.plate("rows", N, subsample_size=B) as rows:
        numpyro.sample("z", Implicit(sampler, context=(x[rows],), batch_shape=(B,)))


class Moments:
    """The Gaussian score with the draws' own mean and variance."""

    def fit(self, samples: jax.Array) -> Callable[[jax.Array], jax.Array]:
        mean, variance = jnp.mean(samples, axis=0), jnp.var(samples, axis=0)
        return lambda x: -(x - mean) / variance


def expected_gradient(a: float, b: float, c: float) -> np.ndarray:
    """The closed form above, in the order (a, b, c)."""
    x = np.asarray(X, dtype=float)
    slope = 2 * (a * x + b) - x
    return np.array([np.sum(x * slope), np.sum(slope), N * (2 * np.exp(2 * c) - 1)])


def repeat(fn: Callable[[jax.Array], Any], keys: jax.Array) -> Any:
    """Applies fn to each key. Compiling costs more than running here, so little is optimised."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda keys: jax.lax.map(fn, keys), compiler_options=options)(keys)


def gradients(seed: int) -> np.ndarray:
    """Gradients of the loss at the known parameter, (NUM_REPEATS, 3), in the order (a, b, c)."""
    params = {name: jnp.array(value) for name, value in KNOWN.items()}
    loss = ImplicitELBO(num_particles=16, estimator=Moments())

    def gradient(key: jax.Array) -> dict[str, jax.Array]:
        return jax.grad(lambda p: loss.loss(key, p, model, guide, X))(params)

    found = repeat(gradient, jax.random.split(jax.random.key(seed), NUM_REPEATS))
    return np.stack([np.asarray(found[name], dtype=float) for name in "abc"], axis=-1)


def standard_scores(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(mean - truth) / standard error of the mean, with errors of rounding allowed for."""
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws)) + 1e-6 * np.abs(draws).max()
    return (draws.mean(axis=0) - truth) / error


def train() -> dict[str, np.ndarray]:
    """a, b and exp(2c) trained with the default estimator, each (NUM_SEEDS,)."""
    schedule = optax.cosine_decay_schedule(0.05, NUM_STEPS)
    svi = SVI(model, guide, optax.adam(schedule), ImplicitELBO(num_particles=32))

    def run(key: jax.Array) -> dict[str, jax.Array]:
        return svi.run(key, NUM_STEPS, X, progress_bar=False).params

    params = repeat(run, jax.random.split(jax.random.key(1), NUM_SEEDS))
    found = {name: np.asarray(value, dtype=float) for name, value in params.items()}
    return {"a": found["a"], "b": found["b"], "variance": np.exp(2 * found["c"])}


def worst(found: dict[str, np.ndarray]) -> float:
    """The largest error of any seed, in units of the tolerance."""
    return max(float(np.abs(found[name] - TRUTH[name]).max()) / TOLERANCE[name] for name in TRUTH)


def own_subsamples(patch: pytest.MonkeyPatch) -> None:
    """Every particle draws the rows of the plate from its own key."""
    patch.setattr(_elbo, "shared_plates", lambda *, key: contextlib.nullcontext())


def no_scale(patch: pytest.MonkeyPatch) -> None:
    """The subsample counts as if it were the whole data."""
    patch.setattr(_sites, "_scale", lambda site: 1.0)


def no_scale_at_score(patch: pytest.MonkeyPatch) -> None:
    """The model is scaled, the entropy of the guide is not."""
    pull_back = _sites.pull_back

    def unscaled(site: dict[str, Any]) -> Any:
        pulled = pull_back(site)
        return pulled._replace(weight=jnp.ones_like(pulled.weight))

    patch.setattr(_elbo, "pull_back", unscaled)


@pytest.mark.statistical
def test_gradient_is_that_of_the_whole_data() -> None:
    scores = standard_scores(gradients(seed=0), expected_gradient(**KNOWN))
    assert np.abs(scores).max() < MAX_Z, scores


@pytest.mark.statistical
@pytest.mark.parametrize("wrong", [own_subsamples, no_scale, no_scale_at_score])
def test_gradient_check_sees_wrong_versions(
    wrong: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    scores = standard_scores(gradients(seed=0), expected_gradient(**KNOWN))
    assert np.abs(scores).max() > 2 * MAX_Z, scores


@pytest.mark.slow
@pytest.mark.statistical
def test_training_finds_the_posteriors() -> None:
    found = train()
    assert worst(found) < 1, found


@pytest.mark.slow
@pytest.mark.statistical
def test_training_check_sees_own_subsamples(monkeypatch: pytest.MonkeyPatch) -> None:
    own_subsamples(monkeypatch)
    found = train()
    assert worst(found) > 3, found
