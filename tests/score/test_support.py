"""Where a score has samples to speak from: the nearest-neighbour test of queries."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score._sample import make_sample
from implicitppl.score._support import Support, nearest_neighbour_support

KEY = jax.random.key(3)
off: Any = eqx.filter_jit(Support.off)


@pytest.mark.parametrize("dimension", [2, 10])
def test_fresh_points_are_flagged_as_rarely_as_promised(dimension):
    # 400 data sets of 30 samples, 50 fresh points each: flagged with probability of about 1/31.
    # The fifty share a data set, so the standard error is over data sets.
    def rate(key: jax.Array) -> jax.Array:
        x = jnp.exp(0.3 * jax.random.normal(key, (80, dimension)))
        return jnp.mean(_support(x[:30]).off(x[30:]).astype(jnp.float32))

    rates = np.asarray(jax.lax.map(rate, jax.random.split(KEY, 400)))
    error = rates.std() / np.sqrt(400)
    if dimension == 2:
        assert abs(rates.mean() - 1 / 31) < 4 * error
    # Three samples for each coordinate: standard deviations are rough, and the promise is twice.
    assert 0.5 / 31 < rates.mean() < 2 / 31 - 3 * error


@jax.jit
def _support(x: jax.Array, weights: jax.Array | None = None) -> Support:
    return nearest_neighbour_support(make_sample(x, weights=weights), jnp.arange(x.shape[0]))


@pytest.mark.parametrize("num", [4000, 4001])
def test_support_of_many_samples(num):
    x = np.asarray(jax.random.normal(KEY, (num + 1000, 1)))
    support = _support(x[:num])
    assert np.mean(off(support, x[num:])) < 0.01
    assert bool(off(support, np.array([[20.0]], np.float32))[0])


def test_support_ignores_duplicates_and_weightless_samples():
    x = np.asarray(jax.random.normal(KEY, (100, 2)))
    once, twice = _support(x), _support(np.concatenate([x, x]))
    np.testing.assert_allclose(once.radius, twice.radius, rtol=0.02)
    far = np.concatenate([x, 40 + x])
    w = np.repeat(np.array([0.01, 0.0], np.float32), 100)
    assert np.all(off(_support(far, w), 40 + x))
