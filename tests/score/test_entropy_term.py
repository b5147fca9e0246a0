"""The entropy surrogate: value 0, gradient of E log q."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score import SSGE, entropy_term


def test_value_is_zero_and_gradient_is_the_score_in_both_modes():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    scores = np.sin(3 * x)

    @jax.jit
    def surrogate(points: jax.Array) -> jax.Array:
        return entropy_term(scores, points)

    assert float(surrogate(x)) == 0
    np.testing.assert_allclose(jax.jit(jax.grad(surrogate))(x), scores / 5, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(surrogate))(x), scores / 5, rtol=1e-6)
    direction = np.cos(x)
    _, tangent = jax.jvp(surrogate, (x,), (direction,))
    np.testing.assert_allclose(tangent, np.vdot(scores, direction) / 5, rtol=1e-6)


def test_a_fitted_score_and_its_values_are_the_same():
    x = jax.random.normal(jax.random.key(0), (20, 2))

    def by_score(points: jax.Array) -> jax.Array:
        return entropy_term(SSGE().fit(points), points)

    def by_values(points: jax.Array) -> jax.Array:
        return entropy_term(SSGE().fit(points)(points), points)

    np.testing.assert_array_equal(jax.grad(by_score)(x), jax.grad(by_values)(x))
    np.testing.assert_allclose(jax.grad(by_score)(x), SSGE().fit(x)(x) / 20, rtol=1e-6)


@jax.jit
def _exact_kl_gradient(a: jax.Array, noise: jax.Array, sign: float) -> jax.Array:
    def loss(scale: jax.Array) -> jax.Array:
        x = scale * noise
        scores = -jax.lax.stop_gradient(x / scale**2)
        return jnp.mean(jnp.sum(x**2, 1)) / 2 + sign * entropy_term(scores, x)

    return jax.grad(loss)(a)


@pytest.mark.parametrize("a", [0.5, 2.0])
def test_gradient_of_a_gaussian_divergence(a):
    # KL(N(0, a^2) || N(0, 1)) has the derivative a - 1/a; with noise of mean square exactly 1 and
    # the true score there is no Monte Carlo error at all.
    noise = jnp.array([[-1.0], [1.0]])
    assert float(_exact_kl_gradient(jnp.asarray(a), noise, 1.0)) == pytest.approx(a - 1 / a)
    assert float(_exact_kl_gradient(jnp.asarray(a), noise, -1.0)) != pytest.approx(a - 1 / a)


@pytest.mark.statistical
@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
def test_gradient_of_a_gaussian_divergence_from_samples_alone(a):
    # 50 independent estimates of a - 1/a from 200 particles each, fitted on the particles; the
    # tolerance is 4 standard errors plus 5 percent of 1/a for the truncation.
    def gradient(key: jax.Array, shrink: float) -> jax.Array:
        noise = jax.random.normal(key, (200, 1))

        def loss(scale: jax.Array) -> jax.Array:
            x = scale * noise
            scores = shrink * SSGE().fit(x)(jax.lax.stop_gradient(x))
            return 0.5 * jnp.mean(x**2) + entropy_term(scores, x)

        return jax.grad(loss)(jnp.asarray(a))

    keys = jax.random.split(jax.random.key(0), 50)
    for shrink, passes in ((1.0, True), (0.5, False)):
        values = np.asarray(jax.jit(jax.vmap(lambda k, s=shrink: gradient(k, s)))(keys))
        error = abs(values.mean() - (a - 1 / a))
        tolerance = 4 * values.std(ddof=1) / np.sqrt(50) + 0.05 / a
        assert (error < tolerance) == passes


def test_a_score_that_is_not_finite_is_seen_in_the_value():
    assert bool(jnp.isnan(entropy_term(jnp.full((3, 2), jnp.nan), jnp.ones((3, 2)))))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"`score` must have the shape of `x`.*\(3,\) and \(2,\)"):
        entropy_term(jnp.zeros(3), jnp.zeros(2))
