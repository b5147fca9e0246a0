"""The semi-implicit distribution against closed forms and against quadrature."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy import stats

from implicitppl.distributions import ImplicitDensityError, ResidualGenerator, SemiImplicit
from tests.distributions.test_residual import bent, new_generator

FLOAT = jnp.dtype(jnp.float32)


def gaussian_case() -> tuple[SemiImplicit, np.ndarray, np.ndarray]:
    """A generator with a zero residual, and the mean and covariance that it must then have."""
    mean, scales = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    lower = np.array([[0.0, 0.0, 0.0], [0.7, 0.0, 0.0], [-0.4, 0.3, 0.0]])
    generator = new_generator(3, key=jax.random.key(0), loc=jnp.array(mean))
    affine = jnp.array(np.log(scales)), jnp.array(lower)
    generator = eqx.tree_at(lambda g: (g.log_scale, g.lower), generator, affine)
    tril = scales[:, None] * (np.eye(3) + lower)
    return SemiImplicit(generator), mean, tril @ tril.T


def folded_case(seed: int, strength: float, sigma: float = 0.1) -> SemiImplicit:
    """A one-dimensional generator with a residual strong enough to fold the line."""
    generator = new_generator(1, key=jax.random.key(seed), sigma=sigma, width=8)
    weight = strength * jax.random.normal(jax.random.key(seed + 1), (2, 8))
    return SemiImplicit(eqx.tree_at(lambda g: g.network.layers[-1].weight, generator, weight))


fold_share = jax.jit(SemiImplicit.fold_share)
log_prob = jax.jit(SemiImplicit.log_prob)
score_of = jax.jit(SemiImplicit.score, static_argnames="num_inner")


@functools.partial(jax.jit, static_argnames="num_inner")
def bounds_of(q: SemiImplicit, behind: list[jax.Array], num_inner: int) -> tuple[jax.Array, ...]:
    return tuple(q.log_density_bounds(jax.random.key(2), behind, num_inner=num_inner))


@jax.jit
def quadrature(q: SemiImplicit, z: jax.Array) -> jax.Array:
    """Log q(z) of a one-dimensional generator, by summing over a fine grid of the noise."""
    grid = jnp.linspace(-8.0, 8.0, 8_001)[:, None]
    w = jax.vmap(q.generator.pull)(z)
    joint = jax.vmap(lambda w: jax.vmap(lambda e: q.generator.log_joint(e, w))(grid))(w)
    joint = jnp.where(jnp.isnan(joint), -jnp.inf, joint)
    return logsumexp(joint, axis=1) + jnp.log(grid[1, 0] - grid[0, 0]) - q.generator.log_abs_det


def test_without_a_residual_every_density_is_the_gaussian_one(precision):
    q, mean, covariance = gaussian_case()
    z, behind = q.sample_with_intermediates(jax.random.key(1), (6,))
    exact = stats.multivariate_normal(mean, covariance).logpdf(np.asarray(z))
    bounds = bounds_of(q, behind, num_inner=4)
    tolerance = 1e-3 if precision == jnp.float32 else 1e-9
    density = jax.jit(SemiImplicit.log_density)(q, jax.random.key(3), z)
    for value in (log_prob(q, z, behind), *bounds, density):
        np.testing.assert_allclose(value, exact, atol=tolerance)
    score = score_of(q, jax.random.key(4), z, num_inner=4)
    np.testing.assert_allclose(
        score, -np.linalg.solve(covariance, (np.asarray(z) - mean).T).T, atol=100 * tolerance
    )


def test_draws_have_the_gaussian_moments():
    q, mean, covariance = gaussian_case()
    n = 40_000
    z = np.asarray(q.sample(jax.random.key(0), (n,)))
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(z.mean(0) - mean) < 4 * sd / n**0.5)
    assert np.all(np.abs(z.var(0) / sd**2 - 1) < 4 * (2 / n) ** 0.5)


@pytest.mark.slow
def test_where_the_map_is_one_to_one_all_densities_agree():
    q = SemiImplicit(bent(1, FLOAT))
    assert float(fold_share(q, jax.random.key(9))) == 0.0
    z, behind = q.sample_with_intermediates(jax.random.key(1), (300,))
    exact = np.asarray(quadrature(q, z))
    bounds = bounds_of(q, behind, num_inner=64)
    for value in (log_prob(q, z, behind), *bounds):
        assert abs(float(np.mean(np.asarray(value) - exact))) < 5e-3


@pytest.mark.parametrize(
    ("seed", "strength"), [(3, 2.0), pytest.param(11, 4.0, marks=pytest.mark.slow)]
)
def test_bounds_bracket_quadrature_where_the_map_folds(seed, strength):
    q = folded_case(seed, strength)
    assert float(fold_share(q, jax.random.key(9))) > 0.05, "the map must fold"
    z, behind = q.sample_with_intermediates(jax.random.key(1), (400,))
    exact = np.asarray(quadrature(q, z))
    bounds = bounds_of(q, behind, num_inner=16)
    lower, upper = (np.asarray(bound) - exact for bound in bounds)
    assert lower.mean() < 3 * lower.std() / 20
    assert upper.mean() > -3 * upper.std() / 20
    one_branch = np.asarray(log_prob(q, z, behind)) - exact
    assert one_branch.mean() < -0.02, "a change of variables sees one branch only: too low"


@pytest.mark.slow
def test_bounds_tighten_with_the_number_of_proposals():
    q = SemiImplicit(bent(2, FLOAT, strength=0.3))
    _, behind = q.sample_with_intermediates(jax.random.key(1), (400,))

    def spread(num_inner: int) -> float:
        bounds = bounds_of(q, behind, num_inner=num_inner)
        return float(jnp.mean(jnp.abs(bounds[1] - bounds[0])))

    assert spread(64) < 0.3 * spread(2)


def test_score_agrees_with_the_derivative_of_quadrature():
    with jax.enable_x64(True):
        q = SemiImplicit(bent(1, jnp.dtype(jnp.float64)))
        z = q.sample(jax.random.key(1), (100,))
        step = 1e-4
        exact = (quadrature(q, z + step) - quadrature(q, z - step)) / (2 * step)
        score = score_of(q, jax.random.key(2), z, num_inner=512)[:, 0]
        error = float(jnp.mean((score - exact) ** 2) / jnp.mean(exact**2))
        halved = float(jnp.mean((score / 2 - exact) ** 2) / jnp.mean(exact**2))
    assert error < 0.02
    assert halved > 0.02, "the check must see a score shrunk by half"


def test_the_path_gradient_is_the_score_times_the_path():
    q = SemiImplicit(bent(2, FLOAT))
    params, static = eqx.partition(q.generator, eqx.is_inexact_array)
    key = jax.random.key(4)

    def value(params: ResidualGenerator) -> jax.Array:
        d = SemiImplicit(eqx.combine(params, static), path_gradient=True)
        z, behind = d.sample_with_intermediates(key)
        return d.log_prob(z, behind)

    def path(params: ResidualGenerator, score: jax.Array) -> jax.Array:
        d = SemiImplicit(eqx.combine(params, static))
        return score @ d.sample(key)

    @jax.jit
    def gradients(params: ResidualGenerator) -> tuple[ResidualGenerator, ResidualGenerator]:
        _, (large, small) = q.sample_with_intermediates(key)
        _, score, _ = q.generator.score_at(large + q.generator.sigma * small)
        return jax.grad(value)(params), jax.grad(path)(params, score)

    for got, want in zip(*map(jax.tree.leaves, gradients(params)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_path_gradient_has_the_expectation_of_the_full_gradient():
    """Both are unbiased for the gradient of E log q; they differ by the zero-mean score term."""
    q = SemiImplicit(bent(1, FLOAT))
    params, static = eqx.partition(q.generator, eqx.is_inexact_array)
    zeros = jax.tree.map(jnp.zeros_like, params)
    direction = eqx.tree_at(  # raises the log spread a(e), so the entropy must grow
        lambda g: g.network.layers[-1].bias, zeros, jnp.array([1.0, 0.0])
    )

    def slope(key: jax.Array, path: bool) -> jax.Array:
        def value(params: ResidualGenerator) -> jax.Array:
            d = SemiImplicit(eqx.combine(params, static), path_gradient=path)
            z, behind = d.sample_with_intermediates(key)
            return d.log_prob(z, behind)

        return jax.jvp(value, (params,), (direction,))[1]

    keys = jax.random.split(jax.random.key(0), 20_000)
    path = jax.jit(jax.vmap(lambda k: slope(k, True)))(keys)
    full = jax.jit(jax.vmap(lambda k: slope(k, False)))(keys)
    difference = path - full
    se = float(jnp.std(difference)) / 20_000**0.5
    assert se > 0
    assert abs(float(difference.mean())) < 4 * se
    assert abs(float(full.mean())) > 4 * float(jnp.std(full)) / 20_000**0.5, "no power"


def test_a_gradient_in_noise_units_is_the_pullback_of_the_map():
    q = SemiImplicit(bent(3, FLOAT))
    z, behind = q.sample_with_intermediates(jax.random.key(1), (4,))
    slope = np.cos(z)
    got = jax.jit(SemiImplicit.to_noise)(q, behind, slope)

    @eqx.filter_jit
    def dense_jacobian(generator: ResidualGenerator, noise: jax.Array) -> jax.Array:
        return generator.scale_tril @ jax.jacfwd(generator.map)(noise)

    noise = np.asarray(behind[0]) + q.generator.sigma * np.asarray(behind[1])
    for i in range(4):
        dense = np.asarray(dense_jacobian(q.generator, noise[i]))
        np.testing.assert_allclose(got[i], dense.T @ slope[i], rtol=1e-4, atol=1e-5)


def test_the_barrier_is_zero_at_the_start_and_pushes_away_from_a_fold():
    start = SemiImplicit(new_generator(1, key=jax.random.key(0)))

    @jax.jit
    def barrier_of(q: SemiImplicit) -> jax.Array:
        return q.fold_barrier(jax.random.key(1), 100)

    assert float(barrier_of(start)) == 0.0

    def compressed(strength: jax.Array) -> SemiImplicit:
        """b(e) = -strength e near 0: the margin is log(1 - strength)."""
        g = start.generator
        layers = [
            eqx.tree_at(lambda x: (x.weight, x.bias), layer, new)
            for layer, new in zip(
                ResidualGenerator(1, key=jax.random.key(0), width=2).network.layers,
                [
                    (jnp.array([[1.0], [-1.0]]), jnp.zeros(2)),
                    (jnp.array([[20.0, -20.0], [-20.0, 20.0]]), jnp.zeros(2)),
                    (jnp.array([[0.0, 0.0], [-1.0, 1.0]]) * strength / 20.0, jnp.zeros(2)),
                ],
                strict=True,
            )
        ]
        network = eqx.tree_at(lambda n: n.layers, g.network, tuple(layers))
        return SemiImplicit(eqx.tree_at(lambda x: x.network, g, network))

    @jax.jit
    def share(strength: jax.Array) -> jax.Array:
        return compressed(strength).fold_share(jax.random.key(2))

    barrier_and_slope = jax.jit(jax.value_and_grad(lambda s: barrier_of(compressed(s))))
    assert float(share(jnp.array(0.9))) == 0.0
    assert float(barrier_and_slope(jnp.array(0.5))[0]) == 0.0
    barrier, slope = barrier_and_slope(jnp.array(0.9))
    assert float(barrier) > 0.1
    assert float(slope) > 0.1, "less compression, less penalty"
    assert float(share(jnp.array(1.5))) > 0.5
    _, folded = barrier_and_slope(jnp.array(1.5))
    assert np.isfinite(folded) and float(folded) > 0.1, "beyond the fold it leads back"


def test_log_prob_without_the_noise_raises():
    q, *_ = gaussian_case()
    with pytest.raises(ImplicitDensityError, match="log_density"):
        q.log_prob(jnp.zeros(3))


def test_distribution_crosses_jit_with_one_compilation():
    count = 0

    @jax.jit
    def draw(d, key):
        nonlocal count
        count += 1
        return d.sample(key)

    first, *_ = gaussian_case()
    second = SemiImplicit(new_generator(3, key=jax.random.key(9)))
    key = jax.random.key(0)
    assert jnp.allclose(draw(first, key), first.sample(key), atol=1e-5)
    assert jnp.allclose(draw(second, key), second.sample(key), atol=1e-5)
    assert count == 1


def test_the_number_of_proposals_must_be_positive():
    q, *_ = gaussian_case()
    with pytest.raises(ValueError, match="`num_inner` must be at least 1; got 0"):
        q.log_density(jax.random.key(0), jnp.zeros(3), num_inner=0)
