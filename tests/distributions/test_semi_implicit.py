"""The semi-implicit distribution against closed forms and against quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy import stats

from implicitppl.distributions import ImplicitDensityError, ResidualGenerator, SemiImplicit


def gaussian_case() -> tuple[SemiImplicit, np.ndarray, np.ndarray]:
    """A generator with a zero residual, and the mean and covariance that it must then have."""
    generator = ResidualGenerator(3, key=jax.random.key(0), sigma=0.2)
    lower = jnp.array([[0.0, 0.0, 0.0], [0.7, 0.0, 0.0], [-0.4, 0.3, 0.0]])
    generator = eqx.tree_at(
        lambda g: (g.loc, g.log_scale, g.lower),
        generator,
        (jnp.array([1.0, -2.0, 0.5]), jnp.log(jnp.array([0.5, 2.0, 1.0])), lower),
    )
    tril = np.asarray(generator.scale_tril)
    return SemiImplicit(generator), np.asarray(generator.loc), 1.04 * tril @ tril.T


def folded_case(seed: int = 5, strength: float = 0.6) -> SemiImplicit:
    """A one-dimensional generator with a residual strong enough to fold the line."""
    generator = ResidualGenerator(1, key=jax.random.key(seed), sigma=0.2, width=8)
    weight = strength * jax.random.normal(jax.random.key(seed + 1), (2, 8))
    return SemiImplicit(eqx.tree_at(lambda g: g.forward.layers[-1].weight, generator, weight))


def quadrature(q: SemiImplicit, z: jax.Array) -> jax.Array:
    """Log q(z) of a one-dimensional generator, by summing over a fine grid of the noise."""
    grid = jnp.linspace(-8.0, 8.0, 4_001)[:, None]
    u = jax.vmap(q.generator.pull)(z)
    joint = jax.vmap(lambda u: jax.vmap(lambda e: q.generator.log_joint(e, u))(grid))(u)
    return logsumexp(joint, axis=1) + jnp.log(grid[1, 0] - grid[0, 0]) - q.generator.log_abs_det


def test_without_a_residual_every_density_is_the_gaussian_one(precision):
    q, mean, covariance = gaussian_case()
    z, behind = q.sample_with_intermediates(jax.random.key(1), (6,))
    exact = stats.multivariate_normal(mean, covariance).logpdf(np.asarray(z))
    bounds = q.log_density_bounds(jax.random.key(2), behind, num_inner=4)
    tolerance = 2e-5 if precision == jnp.float32 else 1e-6
    for value in (q.log_prob(z, behind), *bounds, q.log_density(jax.random.key(3), z)):
        np.testing.assert_allclose(value, exact, atol=10 * tolerance)
    score = q.score(jax.random.key(4), z, num_inner=4)
    np.testing.assert_allclose(
        score, -np.linalg.solve(covariance, (np.asarray(z) - mean).T).T, atol=1e-3
    )


def test_draws_have_the_gaussian_moments():
    q, mean, covariance = gaussian_case()
    n = 40_000
    z = np.asarray(q.sample(jax.random.key(0), (n,)))
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(z.mean(0) - mean) < 4 * sd / n**0.5)
    assert np.all(np.abs(z.var(0) / sd**2 - 1) < 4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("seed", [5, 11])
def test_bounds_bracket_quadrature_where_the_map_folds(seed):
    q = folded_case(seed)
    z, behind = q.sample_with_intermediates(jax.random.key(1), (400,))
    exact = np.asarray(quadrature(q, z))
    loose = q.log_density_bounds(jax.random.key(2), behind, num_inner=2)
    tight = q.log_density_bounds(jax.random.key(2), behind, num_inner=256)
    for bounds in (loose, tight):
        lower = np.asarray(bounds.lower) - exact
        upper = np.asarray(bounds.upper) - exact
        assert lower.mean() < 3 * lower.std() / 20
        assert upper.mean() > -3 * upper.std() / 20
    gap_loose = float(jnp.mean(loose.upper - loose.lower))
    gap_tight = float(jnp.mean(tight.upper - tight.lower))
    assert gap_tight < 0.2 * gap_loose


def test_the_bracket_rejects_bounds_that_are_a_tenth_of_a_nat_wrong():
    """Power of the test above, at its own sample size and tolerance."""
    q = folded_case()
    z, behind = q.sample_with_intermediates(jax.random.key(1), (400,))
    exact = np.asarray(quadrature(q, z))
    bounds = q.log_density_bounds(jax.random.key(2), behind, num_inner=256)
    lower, upper = (np.asarray(bound) - exact for bound in bounds)
    assert not (lower + 0.1).mean() < 3 * lower.std() / 20
    assert not (upper - 0.1).mean() > -3 * upper.std() / 20


def test_score_agrees_with_the_derivative_of_quadrature():
    with jax.enable_x64(True):
        q = folded_case(strength=0.25)
        z = q.sample(jax.random.key(1), (100,))
        step = 1e-4
        exact = (quadrature(q, z + step) - quadrature(q, z - step)) / (2 * step)
        score = q.score(jax.random.key(2), z, num_inner=2048)[:, 0]
        error = float(jnp.mean((score - exact) ** 2) / jnp.mean(exact**2))
        halved = float(jnp.mean((score / 2 - exact) ** 2) / jnp.mean(exact**2))
    assert error < 0.02
    assert halved > 0.02, "the check must see a score shrunk by half"


def test_path_gradient_has_the_expectation_of_the_full_gradient():
    """Both are unbiased for the gradient of E log q; they differ by the zero-mean score term."""
    q = folded_case()
    params, static = eqx.partition(q.generator, eqx.is_inexact_array)
    zeros = jax.tree.map(jnp.zeros_like, params)
    direction = eqx.tree_at(  # raises the log spread a(e), so the entropy must grow
        lambda g: g.forward.layers[-1].bias, zeros, jnp.array([1.0, 0.0])
    )

    def slope(key, path):
        def value(params):
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
    second = SemiImplicit(ResidualGenerator(3, key=jax.random.key(9)))
    key = jax.random.key(0)
    assert jnp.allclose(draw(first, key), first.sample(key), atol=1e-5)
    assert jnp.allclose(draw(second, key), second.sample(key), atol=1e-5)
    assert count == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "`size` must be at least 1; got 0"),
        ({"size": 2, "scale": -1.0}, "`scale` must be positive; got -1.0"),
        ({"size": 2, "sigma": 0.0}, "`sigma` must be between 0 and 1.0; got 0.0"),
    ],
)
def test_errors_of_the_generator(options, message):
    with pytest.raises(ValueError, match=message):
        ResidualGenerator(**options, key=jax.random.key(0))


def test_diagonal_jacobian_still_gives_valid_bounds():
    q = folded_case()
    generator = ResidualGenerator(1, key=jax.random.key(5), sigma=0.2, width=8, jacobian="diagonal")
    generator = eqx.tree_at(lambda g: g.forward, generator, q.generator.forward)
    diagonal = SemiImplicit(generator)
    z, behind = diagonal.sample_with_intermediates(jax.random.key(1), (400,))
    exact = np.asarray(quadrature(diagonal, z))
    bounds = diagonal.log_density_bounds(jax.random.key(2), behind, num_inner=64)
    assert np.mean(np.asarray(bounds.lower) - exact) < 0.02
    assert np.mean(np.asarray(bounds.upper) - exact) > -0.02
