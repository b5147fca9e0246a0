"""The map of the default generator: Jacobian, inverse, density by change of variables."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.distributions import ResidualGenerator
from implicitppl.distributions._residual import as_vector

KEY = jax.random.key(0)


def bent(
    size: int, dtype: jnp.dtype, num_features: int | None = None, strength: float = 0.15
) -> ResidualGenerator:
    """A generator with a residual that bends but does not fold, and a full affine part."""
    tril = np.tril(np.random.default_rng(1).normal(size=(size, size)), -1) + 2.0 * np.eye(size)
    generator = ResidualGenerator(
        size,
        key=KEY,
        loc=jnp.arange(size, dtype=dtype),
        scale_tril=jnp.asarray(tril, dtype),
        num_features=num_features,
    )
    weight = generator.network.layers[-1].weight
    rng = np.random.default_rng(2)
    new = (
        jnp.asarray(strength * rng.normal(size=weight.shape), dtype),
        jnp.asarray(0.2 * rng.normal(size=size), dtype),
        jnp.asarray(0.3 * rng.normal(size=(size, size)), dtype),
        jnp.asarray(rng.normal(size=size), dtype),
    )
    return eqx.tree_at(
        lambda g: (g.network.layers[-1].weight, g.log_scale, g.lower, g.shift), generator, new
    )


@pytest.mark.parametrize(
    ("size", "num_features"),
    [pytest.param(1, None, marks=pytest.mark.exhaustive), (3, None), (5, 2)],
)
def test_the_factored_jacobian_is_the_dense_one(size, num_features, precision):
    generator = bent(size, precision, num_features, strength=0.4)
    noise, v = jax.random.normal(jax.random.key(3), (2, size), precision)
    jacobian = generator.jacobian(noise)
    dense = np.asarray(jax.jacfwd(generator.map)(noise), np.float64)
    tolerance = 2e-4 if precision == jnp.float32 else 1e-10
    applied = jax.vmap(jacobian.apply, out_axes=1)(jnp.eye(size, dtype=precision))
    np.testing.assert_allclose(applied, dense, atol=tolerance)
    np.testing.assert_allclose(jacobian.solve(v), np.linalg.solve(dense, v), atol=tolerance)
    transposed = np.linalg.solve(dense.T, v)
    np.testing.assert_allclose(jacobian.solve_transposed(v), transposed, atol=tolerance)
    sign, log_abs_det = np.linalg.slogdet(dense)
    assert float(jacobian.sign) == sign
    assert float(jacobian.log_abs_det) == pytest.approx(log_abs_det, abs=tolerance)


def test_it_starts_as_the_gaussian_of_its_frame():
    tril = jnp.array([[2.0, 0.0], [1.0, 0.5]])
    loc = jnp.array([3.0, -1.0])
    generator = ResidualGenerator(2, key=KEY, loc=loc, scale_tril=tril)
    noise = jax.random.normal(jax.random.key(1), (2,))
    np.testing.assert_allclose(generator.push(generator.map(noise)), loc + tril @ noise, rtol=1e-6)
    jacobian = generator.jacobian(noise)
    assert float(jacobian.log_abs_det) == 0.0 and float(jacobian.margin) == 0.0
    assert float(generator.log_abs_det) == pytest.approx(0.0, abs=1e-6)  # log(2 * 0.5)


def test_density_and_score_are_those_of_the_map():
    """In one dimension the density is that of the noise over the slope, found by differences."""
    with jax.enable_x64(True):
        generator = bent(1, jnp.dtype(jnp.float64))
        step = 1e-5

        def z(noise: jax.Array) -> jax.Array:
            return generator.push(generator.map(noise))[0]

        def log_q(noise: jax.Array) -> jax.Array:
            slope = (z(noise + step) - z(noise - step)) / (2 * step)
            return -0.5 * noise[0] ** 2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(jnp.abs(slope))

        for e in (-1.5, 0.2, 2.0):
            noise = jnp.array([e])
            value, score, _ = generator.score_at(noise)
            assert float(value) == pytest.approx(float(log_q(noise)), abs=1e-8)
            rise = log_q(noise + 1e-3) - log_q(noise - 1e-3)
            run = z(noise + 1e-3) - z(noise - 1e-3)
            assert float(score[0]) == pytest.approx(float(rise / run), rel=1e-4)


@pytest.mark.parametrize("num_features", [None, 2])
def test_the_score_is_the_gradient_of_the_density_at_a_moved_point(num_features):
    """Move z by dz: the noise moves by J^-1 A^-1 dz, and log q by s . dz."""
    with jax.enable_x64(True):
        generator = bent(4, jnp.dtype(jnp.float64), num_features)
        noise = jax.random.normal(jax.random.key(5), (4,))
        direction = jnp.array([1.0, -2.0, 0.5, 1.0])
        _, score, jacobian = generator.score_at(noise)
        inner = jnp.linalg.solve(generator.scale_tril, direction)
        move = 1e-5 * jacobian.solve(inner)
        rise = generator.log_density_at(noise + move)[0] - generator.log_density_at(noise - move)[0]
        assert float(score @ direction) == pytest.approx(float(rise / 2e-5), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_newtons_method_finds_the_noise_behind_an_image(size):
    generator = bent(size, jnp.dtype(jnp.float32))
    noise = jax.random.normal(jax.random.key(4), (50, size))
    found = jax.jit(jax.vmap(lambda e: generator.invert(generator.map(e))))(noise)
    np.testing.assert_allclose(found, noise, atol=1e-4)


def test_pull_undoes_push():
    generator = bent(3, jnp.dtype(jnp.float32))
    w = jnp.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(generator.pull(generator.push(w)), w, atol=1e-5)


def test_the_layer_follows_the_tangent():
    """A draw is m(e) + sigma J n: no further than O(sigma^2) from m(e + sigma n)."""
    generator = bent(3, jnp.dtype(jnp.float32))
    large, small = generator.split(jax.random.key(1), (200,))
    drawn = jax.vmap(generator.draw)(large, small)
    whole = large + generator.sigma * small
    gap = jnp.abs(drawn - jax.vmap(generator.map)(whole))
    without = jnp.abs(jax.vmap(generator.map)(large) - jax.vmap(generator.map)(whole))
    assert float(jnp.max(gap)) < 5 * generator.sigma**2
    assert float(jnp.mean(gap)) < 0.1 * float(jnp.mean(without))
    sd = jnp.std(whole, axis=0)
    assert jnp.all(jnp.abs(sd - 1) < 0.2), "both parts together are standard normal"


def test_the_frame_is_not_trained():
    generator = bent(2, jnp.dtype(jnp.float32))

    def loss(g: ResidualGenerator) -> jax.Array:
        value, score, _ = g.score_at(jnp.ones(2))
        return value + jnp.sum(score**2) + jnp.sum(g.push(g.map(jnp.ones(2))) ** 2)

    slopes = eqx.filter_grad(loss)(generator)
    np.testing.assert_array_equal(slopes.frame_loc, 0.0)
    np.testing.assert_array_equal(slopes.frame_tril, 0.0)
    assert float(jnp.abs(slopes.shift).min()) > 0 and float(jnp.abs(slopes.log_scale).min()) > 0


def test_a_frame_moves_draws_and_densities_with_it():
    generator = bent(2, jnp.dtype(jnp.float32))
    scale, shift = 100.0, jnp.array([5.0, -7.0])
    moved = generator.with_frame(scale * generator.frame_loc + shift, scale * generator.frame_tril)
    noise = jnp.array([0.4, -1.1])
    z = generator.push(generator.map(noise))
    np.testing.assert_allclose(moved.push(moved.map(noise)), scale * z + shift, rtol=1e-5)
    before, after = generator.score_at(noise), moved.score_at(noise)
    assert float(after[0]) == pytest.approx(float(before[0]) - 2 * np.log(scale), abs=1e-4)
    np.testing.assert_allclose(after[1], before[1] / scale, rtol=1e-4)


def test_features_are_fewer_than_dimensions_when_there_are_many():
    generator = ResidualGenerator(40, key=KEY)
    assert generator.features is not None and generator.features.shape == (40, 32)
    assert generator.network.layers[0].weight.shape[1] == 32
    assert ResidualGenerator(32, key=KEY).features is None


def test_a_start_without_a_weak_type():
    assert not as_vector(2, None).weak_type


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "`size` must be at least 1; got 0"),
        ({"size": 2, "scale_tril": -1.0}, "`scale_tril` must be positive; got -1.0"),
        ({"size": 2, "sigma": 0.0}, "`sigma` must be between 0 and 1; got 0.0"),
        ({"size": 2, "num_features": 3}, "`num_features` must be between 1 and 2; got 3"),
    ],
)
def test_errors_of_the_generator(options, message):
    with pytest.raises(ValueError, match=message):
        ResidualGenerator(**options, key=KEY)
