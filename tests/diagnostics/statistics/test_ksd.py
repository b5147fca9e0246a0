"""Kernel Stein discrepancy: against automatic differentiation, its null level, and its power."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from implicitppl.diagnostics import kernel_stein_discrepancy
from implicitppl.diagnostics._statistics.ksd import (
    _block,
    _quadratic_forms,
    median_distance,
    stein_kernel,
)

N, D = 60, 3


def _brute_stein_kernel(x, y, sx, sy, lengthscale):
    """The Stein kernel by its definition, with all derivatives from autodiff."""

    def k(a, b):
        return (1 + jnp.sum((a - b) ** 2) / lengthscale**2) ** -0.5

    grad_x, grad_y = jax.grad(k, 0)(x, y), jax.grad(k, 1)(x, y)
    mixed = jax.jacfwd(jax.grad(k, 0), 1)(x, y)
    return sx @ sy * k(x, y) + sx @ grad_y + sy @ grad_x + jnp.trace(mixed)


@partial(jax.jit, static_argnums=0)
def _all_pairs(kernel, x, s, lengthscale):
    rows = jax.vmap(kernel, (None, 0, None, 0, None))
    return jax.vmap(rows, (0, None, 0, None, None))(x, x, s, s, lengthscale)


def test_stein_kernel_equals_autodiff_and_its_block_form(key, precision):
    x = random.normal(key, (N, D), precision)
    s = jnp.asarray(np.sin(x) - x)
    length = jnp.asarray(1.3, precision)
    brute = _all_pairs(_brute_stein_kernel, x, s, length)
    tol = 2e-4 if precision == jnp.float32 else 1e-11
    np.testing.assert_allclose(_all_pairs(stein_kernel, x, s, length), brute, atol=tol)
    np.testing.assert_allclose(jax.jit(_block)(x, s, x, s, length), brute, atol=tol)


@pytest.mark.parametrize("block_size", [7, 60])
def test_statistics_equal_the_full_matrix(key, block_size):
    x = random.normal(key, (N, D))
    s = -x
    h = np.asarray(_all_pairs(_brute_stein_kernel, x, s, 1.7), np.float64)
    w = np.asarray(random.rademacher(random.key(1), (N, 2), jnp.float32))
    forms, trace = _quadratic_forms(x, s, jnp.asarray(w), jnp.asarray(1.7), block_size)
    off = h - np.diag(np.diag(h))
    np.testing.assert_allclose(forms, [v @ off @ v for v in w.T], rtol=1e-4, atol=5e-3)
    np.testing.assert_allclose(trace, np.trace(h), rtol=1e-5)
    out = kernel_stein_discrepancy(
        s, x, key=key, lengthscale=1.7, whiten=False, num_bootstrap=3, block_size=block_size
    )
    centred = np.asarray(_all_pairs(_brute_stein_kernel, x - x.mean(0), s, 1.7))
    np.testing.assert_allclose(out.ksd, np.sqrt(centred.sum()) / N, rtol=1e-4)
    u = (centred.sum() - np.trace(centred)) / N / (N - 1)
    np.testing.assert_allclose(out.u_statistic, u, rtol=1e-3, atol=1e-5)


def test_median_distance_is_that_of_all_pairs(key):
    x = random.normal(key, (40, 2))
    points = np.asarray(x)
    pairs = [np.linalg.norm(points[i] - points[j]) for i in range(40) for j in range(i)]
    np.testing.assert_allclose(median_distance(x), np.median(pairs), rtol=1e-4)


@pytest.fixture(scope="module")
def p_values():
    """P-values of 200 samples of 100 draws, of a target, shifted by .5, and narrowed to .6."""

    @jax.jit
    def one(seed):
        z = random.normal(random.key(seed), (100, D))
        shifted = z + 0.5 * jnp.eye(D)[0]
        narrow = 0.6 * z
        return [_p(z, seed), _p(shifted, seed), _p(narrow, seed)]

    def _p(z, seed):
        boot = random.key(seed + 1000)
        return kernel_stein_discrepancy(-z, z, key=boot, num_bootstrap=200).p_value

    return np.array([[float(p) for p in one(seed)] for seed in range(200)]).T


def test_level_is_nominal(p_values):
    # 200 samples at 5%: 10 expected, standard error 3.1; a wild bootstrap may be conservative
    rejected = int((p_values[0] < 0.05).sum())
    assert 1 <= rejected <= 10 + 3 * 3.1
    assert abs(p_values[0].mean() - 0.5) < 4 * 0.289 / np.sqrt(200) + 0.03


def test_power_against_shift_and_scale(p_values):
    assert (p_values[1] < 0.05).mean() > 0.9
    assert (p_values[2] < 0.05).mean() > 0.9


def test_small_shift_and_scale_are_found_with_500_draws(key):
    z = random.normal(key, (500, 2))
    for wrong in (z.at[:, 0].add(0.3), z.at[:, 0].mul(0.7)):
        assert kernel_stein_discrepancy(-wrong, wrong, key=key).p_value < 0.02


def test_units_do_not_matter(key):
    z = random.normal(key, (200, 2)) @ jnp.array([[1.0, 0.0], [0.8, 0.6]])
    units = jnp.array([1000.0, 0.01])
    first = kernel_stein_discrepancy(-z, z, key=key, num_bootstrap=50)
    second = kernel_stein_discrepancy(-z / units, z * units, key=key, num_bootstrap=50)
    np.testing.assert_allclose(first.u_statistic, second.u_statistic, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(first.ksd, second.ksd, rtol=1e-3)


def test_signs_that_seldom_flip_widen_the_null_of_a_chain(key):
    """And the probability may be a number of any kind, such as one over an estimate."""
    noise, chain = np.random.default_rng(0).normal(size=(400, 1)), np.zeros((400, 1))
    for i in range(1, 400):
        chain[i] = 0.95 * chain[i - 1] + (1 - 0.95**2) ** 0.5 * noise[i]
    z = jnp.asarray(chain, jnp.float32)

    def null(flip_probability):
        return kernel_stein_discrepancy(-z, z, key=key, flip_probability=flip_probability).null

    seldom = null(0.05)
    for form in (np.float64, jnp.asarray):
        np.testing.assert_allclose(null(form(0.05)), seldom, rtol=1e-5)
    assert np.std(seldom) > 2 * np.std(null(0.5))


def test_it_cannot_see_the_weights_of_separated_modes(key):
    """The blind spot of the docstring: all draws in one of two modes 30 sd apart."""
    z = random.normal(key, (300, 1)) - 15.0

    def log_density(z):
        return jnp.logaddexp(-0.5 * jnp.sum((z - 15) ** 2), -0.5 * jnp.sum((z + 15) ** 2))

    scores = jax.jit(jax.vmap(jax.grad(log_density)))(z)
    assert kernel_stein_discrepancy(scores, z, key=key).p_value > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": jnp.ones((3, 2)), "scores": jnp.ones((3, 2))}, "at least 4 rows; got 3"),
        ({"samples": jnp.ones(8)}, r"shape \(N, D\); got \(8,\)|type-check"),
        ({"samples": jnp.full((8, 2), jnp.nan)}, "`samples` must be finite; got 8"),
        ({"scores": jnp.ones((8, 3))}, r"must have the shape of `samples`, \(8, 2\)|type-check"),
        ({"lengthscale": -1.0}, "`lengthscale` must be positive; got -1.0"),
        ({"lengthscale": "mean"}, "\"median\"; got 'mean'"),
        ({"num_bootstrap": 0}, "`num_bootstrap` must be at least 1; got 0"),
        ({"flip_probability": 0.0}, r"in \(0, 1\]; got 0.0"),
    ],
)
def test_bad_input(key, change, message):
    good = {"scores": jnp.ones((8, 2)), "samples": random.normal(key, (8, 2)), "key": key}
    with pytest.raises(Exception, match=f"(?i){message}"):
        kernel_stein_discrepancy(**(good | change))
