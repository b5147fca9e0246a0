"""Drift under NUTS: none for exact draws, and the right size for draws that are wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from implicitppl.diagnostics import nuts_drift

C, S = 192, 2000
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
PRECISION = np.linalg.inv(COVARIANCE)


def _log_density(z):
    return -0.5 * z @ PRECISION.astype(z.dtype) @ z


def _exact(key, n):
    root = np.linalg.cholesky(COVARIANCE)
    return random.normal(key, (n, 2)) @ root.T


def _run(draws, **options):
    """All tests share shapes, so one compiled program."""
    return nuts_drift(
        random.key(5), _log_density, draws[:C], baseline=draws[C:], num_steps=16, **options
    )


def test_exact_draws_do_not_drift(key):
    out = _run(_exact(key, C + S))
    assert np.all(np.abs(out.mean_drift) < 4 * out.mean_se)
    assert np.all(np.abs(out.sd_ratio - 1) < 4 * out.sd_se)
    assert np.all(out.mean_se < 0.06)
    assert np.all(out.sd_se < 0.06)
    assert 0.7 < out.moved < 1.3
    assert out.divergent == 0
    assert out.acceptance > 0.7


def test_wrong_draws_drift_to_the_target(key):
    shifted = _run(_exact(key, C + S) + jnp.array([0.5, 0.0]))
    assert abs(shifted.mean_drift[0] + 0.5) < 4 * shifted.mean_se[0]
    assert abs(shifted.mean_drift[0]) > 4 * shifted.mean_se[0]
    # the mean-field optimum of this target: independent, variance 1 - .8^2
    narrow = _run(0.6 * random.normal(key, (C + S, 2)))
    assert np.all(np.abs(narrow.sd_ratio - 1 / 0.6) < 4 * narrow.sd_se + 0.1)
    assert np.all(narrow.sd_ratio - 1 > 4 * narrow.sd_se)


def test_a_baseline_makes_errors_smaller(key):
    draws = _exact(key, C + S)
    paired = nuts_drift(random.key(5), _log_density, draws[:C], num_steps=16)
    assert np.all(paired.mean_se > 1.7 * _run(draws).mean_se)
    assert np.all(np.abs(paired.mean_drift) < 4 * paired.mean_se)
    assert np.all(np.abs(paired.sd_ratio - 1) < 4 * paired.sd_se)


def test_separated_modes_stay_unseen(key):
    """The blind spot of the docstring."""

    def log_density(z):
        return jnp.logaddexp(-0.5 * jnp.sum((z - 15) ** 2), -0.5 * jnp.sum((z + 15) ** 2))

    draws = random.normal(key, (64, 1)) + 15
    out = nuts_drift(key, log_density, draws, num_steps=8)
    assert abs(out.mean_drift[0]) < 4 * out.mean_se[0]


def test_bad_input(key):
    z = random.normal(key, (16, 2))
    with pytest.raises(ValueError, match="finite at every row of `samples`; got 16"):
        nuts_drift(key, lambda z: jnp.nan * z[0], z)
    with pytest.raises(ValueError, match="`num_steps` must be at least 2; got 1"):
        nuts_drift(key, _log_density, z, num_steps=1)
    # the tests' type checker sees the shape first
    with pytest.raises(Exception, match="`baseline` must have 2 columns; got 3|Type-check"):
        nuts_drift(key, _log_density, z, baseline=jnp.ones((9, 3)))
