"""The KL of normal values: closed form, derivatives, what noise and regularisation do to it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.divergences._gaussian import Moments, gaussian_kl, masked, sample_moments
from implicitppl.kernels import RBF, Matern12
from implicitppl.processes import FeatureProcess, RandomFeatures


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def moments(seed, size=6):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return Moments(jnp.asarray(rng.normal(size=size)), jnp.asarray(root @ root.T + np.eye(size)))


def plain(q, p, ridge):
    """The formula, from determinants and a solve."""
    eye = ridge * jnp.eye(len(q.mean))
    of_q, of_p, shift = q.covariance + eye, p.covariance + eye, q.mean - p.mean
    trace = jnp.trace(jnp.linalg.solve(of_p, of_q)) + shift @ jnp.linalg.solve(of_p, shift)
    log_ratio = jnp.linalg.slogdet(of_p)[1] - jnp.linalg.slogdet(of_q)[1]
    return 0.5 * (trace - len(shift) + log_ratio)


def test_value_and_derivatives_are_those_of_the_formula():
    q, p = moments(0), moments(1)
    ours, theirs = (
        jax.jit(jax.value_and_grad(kl, argnums=(0, 1, 2)))(q, p, 0.3) for kl in (gaussian_kl, plain)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    assert float(gaussian_kl(q, q, 0.1)) == pytest.approx(0, abs=1e-12)
    # Forward mode has the same rule.
    forward = jax.jit(lambda at: jax.jvp(lambda r: gaussian_kl(q, p, r), (at,), (1.0,))[1])
    slope = forward(0.3)
    assert float(slope) == pytest.approx(float(theirs[1][2]), rel=1e-9)


def test_more_points_never_lessen_it():
    x = jnp.linspace(-1, 1, 30)
    sine = RandomFeatures.from_kernel(RBF(0.4), 1, 12, key=jax.random.key(0))
    guide = FeatureProcess(sine, 0.3 * jnp.ones(12), 0.5 * jnp.eye(12))
    order = jax.random.permutation(jax.random.key(1), 30)
    values = [float(both_at(guide, RBF(0.5), x[order[:n]], 1e-4)) for n in (2, 6, 14, 22, 30)]
    assert np.all(np.diff(values) > -1e-8) and values[-1] > values[0] + 1


def test_a_mixture_is_no_further_than_its_parts_on_average():
    # Why several fits are mixed: KL is convex, and of given moments the normal law has the least.
    parts, prior = [moments(seed) for seed in range(3)], moments(3)
    means = np.stack([part.mean for part in parts])
    spread = np.cov(means, rowvar=False, ddof=0)
    covariance = np.mean([part.covariance for part in parts], axis=0) + spread
    kl = jax.jit(gaussian_kl)
    whole = float(kl(Moments(jnp.asarray(means.mean(axis=0)), jnp.asarray(covariance)), prior))
    values = [float(kl(part, prior)) for part in parts]
    assert 0 < whole < np.mean(values) - 1


def test_masked_values_take_no_part():
    q, p = moments(2), moments(3)
    keep = jnp.array([True, False, True, True, False, True])
    rows = np.flatnonzero(keep)
    few = [Moments(m.mean[rows], m.covariance[np.ix_(rows, rows)]) for m in (q, p)]
    found = gaussian_kl(masked(q, keep, 2.0), masked(p, keep, 2.0), 0.1)
    assert float(found) == pytest.approx(float(gaussian_kl(few[0], few[1], 0.1)), rel=1e-10)


def test_moments_of_draws_have_the_mean_square_of_the_draws():
    values = jax.random.normal(jax.random.key(0), (40, 3)) * 2 + 1
    found, centre = sample_moments(values), jnp.array([0.5, 1.0, 2.0])
    exact = jnp.mean(jnp.sum((values - centre) ** 2, axis=1))
    ours = jnp.trace(found.covariance) + jnp.sum((found.mean - centre) ** 2)
    assert float(ours) == pytest.approx(float(exact), rel=1e-12)


@eqx.filter_jit
def both_at(guide, kernel, x, ridge):
    """The KL of a finite network of features from a kernel's process, at points."""
    prior = Moments(jnp.zeros(len(x)), kernel.gram(x[:, None]))
    return gaussian_kl(Moments(guide.mean_at(x), guide.covariance(x)), prior, ridge)


def test_with_fixed_noise_it_grows_without_end_and_with_noise_that_grows_it_converges():
    # Twenty features against a process of infinitely many: Burt et al. (2021).
    features = RandomFeatures.from_kernel(RBF(0.5), 1, 20, key=jax.random.key(0))
    guide = FeatureProcess(features, jnp.zeros(20), 0.6 * jnp.eye(20))
    sizes = (20, 160, 640)
    grids = [jnp.linspace(-1, 1, size) for size in sizes]
    noisy = [float(both_at(guide, Matern12(0.5), x, 1e-4)) for x in grids]
    assert noisy[1] > 4 * noisy[0] and noisy[2] > 2 * noisy[1]
    for kernel in (RBF(0.5), Matern12(0.5)):
        for g in (1e-4, 1e-2):
            pair = zip(grids[1:], sizes[1:], strict=True)
            at_160, at_640 = (float(both_at(guide, kernel, x, g * size)) for x, size in pair)
            loose = 0.07 if isinstance(kernel, Matern12) and g == 1e-4 else 0.01
            assert at_640 == pytest.approx(at_160, rel=loose)
