"""Comparisons of draws: closed forms, units, symmetry, and what restarts show."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import wasserstein_distance

from implicitppl.diagnostics import compare, restart_spread
from implicitppl.metrics import energy_distance, sliced_wasserstein


def _draws(seed, n=2000, shift=0.0, scale=1.0):
    z = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    z[:, 1] += 0.8 * z[:, 0]
    return {"mu": shift + scale * z[:, 0], "theta": z[:, 1:]}


def test_compare_equals_numpy():
    x, y = _draws(0), _draws(1, n=1500, shift=0.4, scale=1.3)
    out = compare(x, y)
    assert out.names == ("mu", "theta[0]", "theta[1]")
    a, b = x["mu"].astype(float), y["mu"].astype(float)
    s = a.std(ddof=1)
    np.testing.assert_allclose(out.mean_shift[0], (b.mean() - a.mean()) / s, atol=1e-5)
    np.testing.assert_allclose(out.sd_ratio[0], b.std(ddof=1) / s, rtol=1e-5)
    for level, column in ((0.05, out.q05_shift), (0.95, out.q95_shift)):
        exact = (np.quantile(b, level) - np.quantile(a, level)) / s
        np.testing.assert_allclose(column[0], exact, atol=1e-4)
    cx = np.corrcoef(np.column_stack([x["mu"], x["theta"]]).T)
    cy = np.corrcoef(np.column_stack([y["mu"], y["theta"]]).T)
    np.testing.assert_allclose(out.corr_diff, np.abs(cx - cy).max(1), atol=1e-5)
    assert out.worst["mean_shift"] == pytest.approx(np.abs(out.mean_shift).max())
    assert "mean shift" in str(out) and "theta[1]" in str(out)
    assert json.loads(json.dumps(out.to_dict()))["names"][0] == "mu"


def test_compare_uses_common_sites_and_rejects_the_rest():
    x = _draws(0)
    assert compare(x, {"mu": x["mu"], "extra": x["mu"]}).names == ("mu",)
    with pytest.raises(ValueError, match="must share a site with `reference_draws`"):
        compare(x, {"other": x["mu"]})
    with pytest.raises(ValueError, match=r"shape \(S, \*\(2,\)\) at site 'theta'"):
        compare(x, {"theta": x["mu"]})
    with pytest.raises(ValueError, match="one leading size"):
        compare(x, {"mu": x["mu"], "theta": x["theta"][:5]})


def test_sliced_wasserstein_in_one_dimension_is_wasserstein(key):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=400), rng.gamma(2.0, size=400)
    ours = sliced_wasserstein(jnp.asarray(x[:, None]), jnp.asarray(y[:, None]), key, 3)
    np.testing.assert_allclose(ours, wasserstein_distance(x, y) / x.std(), rtol=1e-4)
    # different sizes agree with the same distribution function
    twice = jnp.asarray(np.repeat(y, 2)[:, None])
    other = sliced_wasserstein(jnp.asarray(x[:, None]), twice, key, 3)
    np.testing.assert_allclose(other, ours, rtol=0.03)


def test_sliced_wasserstein_is_unit_free_and_sees_correlation(key):
    x = random.normal(key, (1000, 2))
    y = random.normal(random.key(1), (1000, 2))
    units = jnp.array([1e3, 1e-3])
    noise = sliced_wasserstein(x, y, key)
    np.testing.assert_allclose(sliced_wasserstein(x * units, y * units, key), noise, rtol=1e-3)
    correlated = y @ jnp.array([[1.0, 0.9], [0.0, 0.436]])
    assert sliced_wasserstein(x, correlated, key) > 3 * noise
    shift = sliced_wasserstein(x, x + jnp.array([1.0, 0.0]) * x.std(0), key, 2000, order=2)
    np.testing.assert_allclose(shift, np.sqrt(0.5), rtol=0.03)  # E theta_1^2 = 1/2
    with pytest.raises(ValueError, match="`order` must be 1 or 2; got 3"):
        sliced_wasserstein(x, y, key, order=3)


def test_energy_distance_equals_scipy_and_sees_shape():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=300), rng.gamma(2.0, size=200)
    ours = float(energy_distance(jnp.asarray(x[:, None]), jnp.asarray(y[:, None])))
    v_statistic = scipy_energy((x - x.mean()) / x.std(), (y - x.mean()) / x.std()) ** 2
    # scipy averages the zero diagonal in: undo it
    dx = np.abs(x[:, None] - x).mean() / x.std()
    dy = np.abs(y[:, None] - y).mean() / x.std()
    np.testing.assert_allclose(ours, v_statistic - dx / 299 - dy / 199, rtol=1e-3)
    same = rng.normal(size=(300, 1))
    assert abs(float(energy_distance(jnp.asarray(x[:, None]), jnp.asarray(same)))) < 0.02
    # same mean and sd, another shape
    skewed = (rng.gamma(1.0, size=(300, 1)) - 1) * x.std() + x.mean()
    assert float(energy_distance(jnp.asarray(x[:, None]), jnp.asarray(skewed))) > 0.03


def test_restarts_that_agree_and_that_do_not():
    agree = restart_spread([_draws(seed) for seed in range(4)])
    assert agree.mean_noise == pytest.approx(1 / np.sqrt(2000))
    assert np.all(agree.mean_spread < 2.2 * agree.mean_noise)
    assert np.all(agree.sd_range < 1.15)
    assert agree.sliced_wasserstein < 3 * agree.sliced_wasserstein_noise
    moved = restart_spread(lambda seed: _draws(seed, shift=0.5 * seed), seeds=(0, 1, 2))
    assert abs(moved.mean_spread[0] - 0.5) < 0.1
    assert moved.mean_spread[1] < 2.2 * moved.mean_noise
    assert moved.sliced_wasserstein > 3 * moved.sliced_wasserstein_noise
    assert moved.energy > 0.1
    wide = restart_spread([_draws(0), _draws(1, scale=2.0)])
    np.testing.assert_allclose(wide.sd_range[0], 2.0, rtol=0.1)
    assert "mean spread" in str(wide)


def test_restart_errors():
    with pytest.raises(ValueError, match="at least 2 fits; got 1"):
        restart_spread([_draws(0)])
    with pytest.raises(ValueError, match=r"`draws\[1\]` must have the scalars of `draws\[0\]`"):
        restart_spread([_draws(0), {"mu": _draws(0)["mu"]}])
