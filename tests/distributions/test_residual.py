"""The map of the default generator: Jacobian, inverse, density by change of variables."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.distributions import ResidualGenerator
from implicitppl.distributions._residual import as_vector

KEY = jax.random.key(0)
new_generator = eqx.filter_jit(ResidualGenerator)


def bent(
    size: int, dtype: jnp.dtype, num_features: int | None = None, strength: float = 0.15
) -> ResidualGenerator:
    """A generator with a residual that bends but does not fold, and a full affine part."""
    tril = np.tril(np.random.default_rng(1).normal(size=(size, size)), -1) + 2.0 * np.eye(size)
    generator = new_generator(
        size,
        key=KEY,
        loc=jnp.asarray(np.arange(size), dtype),
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
    noise, v = jnp.asarray(np.random.default_rng(3).normal(size=(2, size)), precision)

    @eqx.filter_jit
    def evaluate(generator, noise, v):
        jacobian = generator.jacobian(noise)
        applied = jax.vmap(jacobian.apply, out_axes=1)(jnp.eye(size, dtype=precision))
        solved = jacobian.solve(v), jacobian.solve_transposed(v)
        dense = jax.jacfwd(generator.map)(noise)
        return dense, applied, solved, jacobian.sign, jacobian.log_abs_det

    dense, applied, solved, sign, log_abs_det = evaluate(generator, noise, v)
    dense = np.asarray(dense, np.float64)
    tolerance = 2e-4 if precision == jnp.float32 else 1e-10
    np.testing.assert_allclose(applied, dense, atol=tolerance)
    np.testing.assert_allclose(solved[0], np.linalg.solve(dense, v), atol=tolerance)
    np.testing.assert_allclose(solved[1], np.linalg.solve(dense.T, v), atol=tolerance)
    exact_sign, exact_log = np.linalg.slogdet(dense)
    assert float(sign) == exact_sign
    assert float(log_abs_det) == pytest.approx(exact_log, abs=tolerance)


def test_it_starts_as_the_gaussian_of_its_frame():
    tril = np.array([[2.0, 0.0], [1.0, 0.5]], np.float32)
    loc = np.array([3.0, -1.0], np.float32)
    generator = new_generator(2, key=KEY, loc=jnp.asarray(loc), scale_tril=jnp.asarray(tril))
    noise = np.array([-1.2, 0.4], np.float32)

    @eqx.filter_jit
    def evaluate(generator, noise):
        jacobian = generator.jacobian(noise)
        z = generator.push(generator.map(noise))
        return z, jacobian.log_abs_det, jacobian.margin, generator.log_abs_det

    z, log_abs_det, margin, of_the_frame = evaluate(generator, noise)
    np.testing.assert_allclose(z, loc + tril @ noise, rtol=1e-6)
    assert float(log_abs_det) == 0.0 and float(margin) == 0.0
    assert float(of_the_frame) == pytest.approx(0.0, abs=1e-6)  # log(2 * 0.5)


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

        @jax.jit
        def evaluate(noise: jax.Array) -> tuple[jax.Array, ...]:
            value, score, _ = generator.score_at(noise)
            rise = log_q(noise + 1e-3) - log_q(noise - 1e-3)
            run = z(noise + 1e-3) - z(noise - 1e-3)
            return value, log_q(noise), score[0], rise / run

        for e in (-1.5, 0.2, 2.0):
            value, exact, score, slope = evaluate(jnp.array([e]))
            assert float(value) == pytest.approx(float(exact), abs=1e-8)
            assert float(score) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize("num_features", [None, 2])
def test_the_score_is_the_gradient_of_the_density_at_a_moved_point(num_features):
    """Move z by dz: the noise moves by J^-1 A^-1 dz, and log q by s . dz."""
    with jax.enable_x64(True):
        generator = bent(4, jnp.dtype(jnp.float64), num_features)
        noise = jnp.asarray(np.random.default_rng(5).normal(size=4))
        direction = jnp.array([1.0, -2.0, 0.5, 1.0])

        @eqx.filter_jit
        def evaluate(generator, noise):
            _, score, jacobian = generator.score_at(noise)
            inner = jnp.linalg.solve(generator.scale_tril, direction)
            move = 1e-5 * jacobian.solve(inner)
            above, below = (generator.log_density_at(e)[0] for e in (noise + move, noise - move))
            return score @ direction, (above - below) / 2e-5

        expected, slope = evaluate(generator, noise)
        assert float(expected) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_newtons_method_finds_the_noise_behind_an_image(size):
    generator = bent(size, jnp.dtype(jnp.float32))
    noise = jnp.asarray(np.random.default_rng(4).normal(size=(50, size)), jnp.float32)
    found = eqx.filter_jit(lambda g: jax.vmap(lambda e: g.invert(g.map(e)))(noise))(generator)
    np.testing.assert_allclose(found, noise, atol=1e-4)


def test_pull_undoes_push():
    generator = bent(3, jnp.dtype(jnp.float32))
    w = jnp.array([0.3, -1.0, 2.0])
    back = eqx.filter_jit(lambda g: g.pull(g.push(w)))(generator)
    np.testing.assert_allclose(back, w, atol=1e-5)


def test_the_layer_follows_the_tangent():
    """A draw is m(e) + sigma J n: no further than O(sigma^2) from m(e + sigma n)."""
    generator = bent(3, jnp.dtype(jnp.float32))

    @eqx.filter_jit
    def evaluate(generator, key):
        large, small = generator.split(key, (200,))
        whole = large + generator.sigma * small
        images = jax.vmap(generator.map)(large), jax.vmap(generator.map)(whole)
        return whole, jax.vmap(generator.draw)(large, small), *images

    whole, drawn, of_large, of_whole = map(np.asarray, evaluate(generator, jax.random.key(1)))
    gap, without = np.abs(drawn - of_whole), np.abs(of_large - of_whole)
    assert np.max(gap) < 5 * generator.sigma**2
    assert np.mean(gap) < 0.1 * np.mean(without)
    sd = np.std(whole, axis=0)
    assert np.all(np.abs(sd - 1) < 0.2), "both parts together are standard normal"


def test_the_frame_is_not_trained():
    generator = bent(2, jnp.dtype(jnp.float32))

    def loss(g: ResidualGenerator) -> jax.Array:
        value, score, _ = g.score_at(jnp.ones(2))
        return value + jnp.sum(score**2) + jnp.sum(g.push(g.map(jnp.ones(2))) ** 2)

    slopes = eqx.filter_jit(eqx.filter_grad(loss))(generator)
    np.testing.assert_array_equal(slopes.frame_loc, 0.0)
    np.testing.assert_array_equal(slopes.frame_tril, 0.0)
    assert np.abs(slopes.shift).min() > 0 and np.abs(slopes.log_scale).min() > 0


def test_a_frame_moves_draws_and_densities_with_it():
    generator = bent(2, jnp.dtype(jnp.float32))
    scale, shift = 100.0, jnp.array([5.0, -7.0])
    moved = generator.with_frame(scale * generator.frame_loc + shift, scale * generator.frame_tril)
    noise = jnp.array([0.4, -1.1])

    @eqx.filter_jit
    def evaluate(generator):
        return generator.push(generator.map(noise)), generator.score_at(noise)

    (z, before), (of_moved, after) = evaluate(generator), evaluate(moved)
    np.testing.assert_allclose(of_moved, scale * z + shift, rtol=1e-5)
    assert float(after[0]) == pytest.approx(float(before[0]) - 2 * np.log(scale), abs=1e-4)
    np.testing.assert_allclose(after[1], before[1] / scale, rtol=1e-4)


def test_features_are_fewer_than_dimensions_when_there_are_many():
    generator = eqx.filter_eval_shape(ResidualGenerator, 40, key=KEY)
    assert generator.features is not None and generator.features.shape == (40, 32)
    assert generator.network.layers[0].weight.shape[1] == 32
    assert eqx.filter_eval_shape(ResidualGenerator, 32, key=KEY).features is None


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
