"""Gradients of the divergence: right where scores alone are not, and beyond moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.divergences import GaussianKL, GridKL, RegularizedKL, ScoreKL
from implicitppl.divergences._divergence import Pair
from implicitppl.divergences._gaussian import Moments, gaussian_kl, sample_moments
from implicitppl.divergences._score import non_affine
from implicitppl.kernels import RBF
from implicitppl.score import SSGE
from implicitppl.score._in_sample import default_estimator

NUM_POINTS, NUM_PARTICLES, NOISE = 25, 500, 0.01
KEY = jax.random.key(1)
COMPARISONS = [GridKL(), ScoreKL(form="residual"), ScoreKL(form="plain")]
DIVERGENCES = [
    GaussianKL(),
    RegularizedKL(1e-4),
    ScoreKL(),
    *(pytest.param(divergence, marks=pytest.mark.exhaustive) for divergence in COMPARISONS),
]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def pair_of(values, prior, draws=None):
    return Pair(values, sample_moments(values), prior, draws, False)


class Smooth:
    """q = .3 sin 3x + e^a z, z ~ GP(.5 RBF(.4)), against GP(RBF(.5)): functional.md's hard case."""

    def __init__(self):
        x = np.sort(np.random.default_rng(7).uniform(-1, 1, NUM_POINTS))
        square = (x[:, None] - x) ** 2
        covariance = 0.5 * np.exp(-0.5 * square / 0.4**2)
        self.mean, self.cov = jnp.asarray(0.3 * np.sin(3 * x)), jnp.asarray(covariance)
        self.root = np.linalg.cholesky(covariance + 1e-10 * np.eye(NUM_POINTS))
        self.prior = Moments(jnp.zeros(NUM_POINTS), jnp.asarray(np.exp(-0.5 * square / 0.5**2)))

    def exact(self, a):
        return gaussian_kl(Moments(self.mean, jnp.exp(2 * a) * self.cov), self.prior, NOISE**2)

    def values(self, a, key):
        z = jax.random.normal(key, (NUM_PARTICLES, NUM_POINTS))
        return self.mean + jnp.exp(a) * z @ self.root.T

    def slope(self, divergence, key):
        draw_key, noise_key = jax.random.split(key)
        return jax.grad(
            lambda a: divergence(pair_of(self.values(a, draw_key), self.prior), noise_key)
        )(0.0)


def slopes(estimator, form):
    """Gradient in the log scale a, over ten sets of particles, and the exact one."""
    with jax.enable_x64(True):
        case, divergence = Smooth(), ScoreKL(estimator, NOISE, form=form)
        run = jax.jit(lambda key: case.slope(divergence, key))
        found = [float(run(key)) for key in jax.random.split(jax.random.key(3), 10)]
        return np.array(found), float(jax.grad(case.exact)(0.0))


@pytest.mark.statistical
def test_the_scale_gradient_is_the_exact_one_where_estimated_scores_lose_a_third():
    found, exact = slopes(None, "remainder")
    assert abs(exact) > 1
    assert abs(np.mean(found) - exact) < 0.1 * abs(exact)
    published, _ = slopes(SSGE(), "plain")
    assert abs(np.mean(published) - exact) > 0.2 * abs(exact)


def squashed(a, z):
    """Two humps: a law far from normal."""
    return a * jnp.tanh(3 * z) + 0.2 * z


def exact_slope(a, noise):
    """D KL / da of squashed(a, z) + noise from N(0, 1 + noise^2), by quadrature."""
    z = np.linspace(-6, 6, 2001)
    weight = np.exp(-0.5 * z**2) / np.sum(np.exp(-0.5 * z**2))

    def kl(a):
        u = np.linspace(-6, 6, 3001)
        centre = a * np.tanh(3 * z) + 0.2 * z
        bumps = np.exp(-0.5 * ((u[:, None] - centre) / noise) ** 2) / (noise * (2 * np.pi) ** 0.5)
        density = bumps @ weight
        prior = -0.5 * u**2 / (1 + noise**2) - 0.5 * np.log(2 * np.pi * (1 + noise**2))
        return np.sum(density * (np.log(density + 1e-300) - prior)) * (u[1] - u[0])

    return (kl(a + 1e-3) - kl(a - 1e-3)) / 2e-3


@pytest.mark.statistical
def test_beyond_moments_the_gradient_is_that_of_the_kl():
    a, noise = 0.8, 0.15
    prior = Moments(jnp.zeros(1), jnp.eye(1))

    def slope(divergence, key):
        z_key, noise_key = jax.random.split(key)
        z = jax.random.normal(z_key, (400, 1))
        return jax.grad(lambda a: divergence(pair_of(squashed(a, z), prior), noise_key))(a)

    keys = jax.random.split(jax.random.key(0), 20)
    exact = exact_slope(a, noise)
    by_scores = np.array(jax.lax.map(lambda k: slope(ScoreKL(noise=noise), k), keys))
    by_moments = np.array(jax.lax.map(lambda k: slope(GaussianKL(noise), k), keys))
    # Moments alone are off by more than half of what separates the two; scores by a quarter.
    assert abs(by_moments.mean() - exact) > 0.3
    assert abs(by_scores.mean() - exact) < 0.25 * abs(by_moments.mean() - exact)


@pytest.mark.statistical
def test_an_implicit_prior_that_is_normal_has_the_gradient_of_the_normal_one():
    case = Smooth()
    draws = jax.random.multivariate_normal(
        jax.random.key(5), case.prior.mean, case.prior.covariance + 1e-10 * jnp.eye(25), (4000,)
    )
    divergence, noise = ScoreKL(noise=0.1), 0.1

    def slope(key, prior, draws):
        draw_key, noise_key = jax.random.split(key)
        values = functools.partial(case.values, key=draw_key)
        return jax.grad(lambda a: divergence(pair_of(values(a), prior, draws), noise_key))(0.0)

    keys = jax.random.split(jax.random.key(1), 8)
    implicit = np.array(jax.lax.map(lambda k: slope(k, sample_moments(draws), draws), keys))
    q = Moments(case.mean, case.cov)
    exact = jax.grad(
        lambda a: gaussian_kl(
            q._replace(covariance=jnp.exp(2 * a) * case.cov), case.prior, noise**2
        )
    )(0.0)
    entropy = NUM_POINTS  # of the scale of the two terms that nearly cancel
    assert abs(implicit.mean() - float(exact)) < 0.05 * entropy


@pytest.mark.statistical
def test_an_implicit_prior_that_is_not_normal_is_seen_beyond_its_moments():
    # The prior has two humps, the guide is normal: only the prior's score is more than affine.
    draws = squashed(0.8, jax.random.normal(jax.random.key(2), (4000, 1)))
    prior, unit = sample_moments(draws), float(jnp.std(draws))

    def slope(divergence, key):
        z_key, noise_key = jax.random.split(key)
        z = jax.random.normal(z_key, (400, 1))
        return jax.grad(lambda s: divergence(pair_of(0.3 + s * z, prior, draws), noise_key))(0.3)

    keys = jax.random.split(jax.random.key(0), 10)
    exact = slope_of_a_normal_guide(0.3, 0.3, 0.15 * unit)
    by_scores = np.array(jax.lax.map(lambda k: slope(ScoreKL(noise=0.15), k), keys))
    by_moments = np.array(jax.lax.map(lambda k: slope(GaussianKL(0.15), k), keys))
    assert abs(by_moments.mean() - exact) > 0.8
    assert abs(by_scores.mean() - exact) < 0.4 * abs(by_moments.mean() - exact)


def slope_of_a_normal_guide(mean, scale, noise):
    """Slope in s of the KL of N(mean, s^2) from squashed(.8, z), both with noise, by quadrature."""
    z, u = np.linspace(-6, 6, 2001), np.linspace(-5, 5, 3001)
    weight = np.exp(-0.5 * z**2) / np.sum(np.exp(-0.5 * z**2))
    centre = 0.8 * np.tanh(3 * z) + 0.2 * z
    bumps = np.exp(-0.5 * ((u[:, None] - centre) / noise) ** 2) / (noise * (2 * np.pi) ** 0.5)
    log_prior = np.log(bumps @ weight + 1e-300)

    def kl(s):
        variance = s**2 + noise**2
        q = np.exp(-0.5 * (u - mean) ** 2 / variance) / (2 * np.pi * variance) ** 0.5
        return np.sum(q * (np.log(q + 1e-300) - log_prior)) * (u[1] - u[0])

    return (kl(scale + 1e-3) - kl(scale - 1e-3)) / 2e-3


def test_scores_are_constants_and_the_affine_part_is_exact():
    bank = np.random.default_rng(0).normal(size=(60, 3)) * np.array([1.0, 2.0, 0.5])

    @jax.jit
    def remainder_of(bank):
        return non_affine(default_estimator(), bank)(bank)

    design = np.column_stack([np.ones(60), bank])
    np.testing.assert_allclose(design.T @ np.asarray(remainder_of(bank)), 0, atol=1e-3)
    prior = Moments(jnp.zeros(3), jnp.diag(jnp.array([3.0, 2.0, 1.0])))
    divergence, key = ScoreKL(noise=1e-6), jax.random.key(1)

    def value(scale):
        return divergence(pair_of(scale * bank, prior), key)

    slope = jax.jit(jax.grad(value))(1.0)

    def moments_alone(scale):
        return GaussianKL(1e-6)(pair_of(scale * bank, prior), key)

    # Any affine map of the bank has the same remainder, by the chain rule: <s, u> is invariant.
    centred = bank - bank.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / 60)
    white = centred @ vectors / np.sqrt(values)
    beyond = np.asarray(remainder_of(white))
    gain = np.mean(np.sum(beyond * (bank @ vectors / np.sqrt(values)), axis=1))
    expected = float(jax.jit(jax.grad(moments_alone))(1.0)) + gain
    assert float(slope) == pytest.approx(expected, abs=1e-6)
    second = jax.jit(jax.grad(jax.grad(lambda s: value(s) - moments_alone(s))))
    assert float(second(1.0)) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.describe()[:45])
def test_units_do_not_matter(divergence):
    case, key = Smooth(), jax.random.key(0)
    big = Moments(1000 * case.prior.mean, 1e6 * case.prior.covariance)

    @jax.jit
    def slope(unit, prior):
        values = unit * case.values(0.0, key)
        return jax.value_and_grad(lambda v: divergence(pair_of(v, prior), key))(values)

    (value, grad), (scaled, scaled_grad) = slope(1.0, case.prior), slope(1000.0, big)
    assert float(scaled) == pytest.approx(float(value), rel=1e-6)
    grad = np.asarray(grad)
    error = np.linalg.norm(1000 * np.asarray(scaled_grad) - grad) / np.linalg.norm(grad)
    assert error < 1e-4


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.describe()[:45])
@pytest.mark.parametrize(
    "case", ["collapsed", "two particles", "repeated inputs", "singular prior"]
)
def test_degenerate_particles_and_priors_give_finite_numbers(divergence, case):
    x, key = np.linspace(0, 1, 8), jax.random.key(0)
    values = np.random.default_rng(0).normal(size=(2 if case == "two particles" else 30, 8))
    if case == "repeated inputs":
        x[1], values[:, 1] = x[0], values[:, 0]
    if case == "collapsed":
        values[:] = values[0]
    singular = case == "singular prior"
    gram = np.ones((8, 8)) if singular else np.exp(-2 * (x[:, None] - x) ** 2)
    prior = Moments(jnp.zeros(8), jnp.asarray(gram))
    run = jax.jit(jax.value_and_grad(lambda v: divergence(pair_of(v, prior), key)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(run(values)))


def test_single_precision_carries_the_default_noise():
    grid = np.linspace(-2, 2, 100)
    lines = np.random.default_rng(0).normal(size=(200, 3)) @ np.stack([grid**0, grid, grid**2])

    @functools.partial(jax.jit, static_argnums=0)
    def found(dtype):
        prior = Moments(jnp.zeros(100, dtype), RBF(1.0).gram(jnp.asarray(grid, dtype)[:, None]))
        values = jnp.asarray(np.sin(2 * grid) + 0.1 * lines, dtype)
        return jax.value_and_grad(lambda v: GaussianKL()(pair_of(v, prior), KEY))(values)

    exact, slope = found(jnp.float64)
    with jax.enable_x64(False):
        single, single_slope = found(jnp.float32)
    assert single.dtype == jnp.float32 and float(single) == pytest.approx(float(exact), rel=1e-3)
    error = np.asarray(single_slope, float) - np.asarray(slope)
    assert np.linalg.norm(error) < 0.01 * np.linalg.norm(slope)


def test_where_both_sides_are_gaussian_nothing_is_estimated():
    case = Smooth()

    def value(a, divergence):
        guide = Moments(case.mean, jnp.exp(2 * a) * case.cov)
        return divergence(Pair(case.values(a, KEY), guide, case.prior, None, True), KEY)

    slope = jax.jit(jax.grad(value), static_argnums=1)
    by_moments = float(slope(0.0, GaussianKL(NOISE)))
    assert float(slope(0.0, ScoreKL(noise=NOISE))) == by_moments
    assert by_moments == pytest.approx(float(jax.jit(jax.grad(case.exact))(0.0)), rel=1e-9)


def test_the_grid_divergence_is_below_that_of_all_points_and_positive():
    case, key = Smooth(), jax.random.key(2)

    @jax.jit
    def divergences(key):
        pair = pair_of(case.values(0.0, key), case.prior)
        return GridKL(20)(pair, key), GaussianKL()(pair, key)

    grid, whole = divergences(key)
    assert 0 < float(grid) < float(whole)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ScoreKL(noise=0.0), "`noise` must be positive"),
        (lambda: ScoreKL(form="best"), "`form` must be one of"),
        (lambda: ScoreKL(num_directions=0), "`num_directions` must be positive"),
        (lambda: GaussianKL(-1.0), "`noise` must be positive"),
        (lambda: RegularizedKL(0.0), "`strength` must be positive"),
        (lambda: GridKL(0), "`num_subsets` must be positive"),
    ],
    ids=["noise", "form", "directions", "gaussian", "strength", "subsets"],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_residual_form_needs_a_gaussian_prior():
    values = jax.random.normal(jax.random.key(0), (30, 4))
    pair = pair_of(values, sample_moments(values), values)
    with pytest.raises(ValueError, match="needs a Gaussian prior"):
        ScoreKL(form="residual")(pair, jax.random.key(1))
