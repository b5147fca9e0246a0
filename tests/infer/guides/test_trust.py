"""The bound on a single particle's pull: what it shortens, and what it leaves alone."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from implicitppl.distributions import SemiImplicit
from implicitppl.infer import AutoImplicit, ImplicitELBO
from implicitppl.infer._guides.trust import bounded_gradient, bounded_pull
from tests.distributions.test_residual import bent

GENERATOR = bent(2, jnp.dtype(jnp.float32))
KEY = jax.random.key(3)


@partial(jax.jit, static_argnames="limit")
def slope_at(pull: jax.Array, limit: float | None) -> jax.Array:
    """Gradient in `shift` of pull . z through a draw z; None for no bound."""
    params, static = eqx.partition(GENERATOR, eqx.is_inexact_array)

    def guide(params):
        return numpyro.sample("z", SemiImplicit(eqx.combine(params, static)))

    def value(params):
        seeded = handlers.seed(guide, KEY)
        fn = seeded if limit is None else bounded_pull(seeded, limit=limit)
        return pull @ fn(params)

    return jax.grad(value)(params).shift


@jax.jit
def in_noise_units(pull: jax.Array) -> jax.Array:
    q = SemiImplicit(GENERATOR)
    _, behind = q.sample_with_intermediates(jax.random.split(KEY)[1])
    return q.to_noise(behind, pull)


def test_a_short_pull_is_left_alone_and_a_long_one_is_shortened_along_itself():
    pull = jnp.array([0.3, -0.2])
    free = slope_at(pull, None)
    np.testing.assert_array_equal(slope_at(pull, 1e3), free)
    limit = 0.01
    short = slope_at(pull, limit)
    np.testing.assert_allclose(short / np.linalg.norm(short), free / np.linalg.norm(free), 1e-5)
    length = float(np.linalg.norm(in_noise_units(pull)))
    expected = limit * 2**0.5 / length
    assert expected < 1
    assert np.linalg.norm(short) / np.linalg.norm(free) == pytest.approx(expected, 1e-3)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_pull_that_is_not_finite_stays_so(bad):
    """So that the step is left out and counted; hidden, it would hide a broken model."""
    assert not jnp.all(jnp.isfinite(slope_at(jnp.array([bad, 1.0]), 1.0)))


@pytest.mark.parametrize("size", [1e25, 1e35])
def test_a_pull_whose_square_is_beyond_the_floats_is_shortened(size):
    pull = jnp.array([0.3, -0.2])
    long, longer = slope_at(1e3 * pull, 0.01), slope_at(size * pull, 0.01)
    np.testing.assert_allclose(longer, long, rtol=1e-4)


def test_the_bound_meets_both_halves_of_the_gradient():
    """The trace must hold the bounded value: log q and log p are evaluated at what it holds."""
    params, static = eqx.partition(GENERATOR, eqx.is_inexact_array)
    shift = params.shift

    def guide(shift):
        moved = eqx.tree_at(lambda p: p.shift, params, shift)
        numpyro.sample("z", SemiImplicit(eqx.combine(moved, static)))

    def target():
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1e-3).to_event(1))

    def length(trust_radius: float | None) -> float:
        loss = ImplicitELBO(4, trust_radius=trust_radius)

        def value(shift):
            return loss.loss(KEY, {}, target, lambda: guide(shift))

        return float(np.linalg.norm(jax.jit(jax.grad(value))(shift)))

    assert length(None) > 1e5
    assert length(1e-3) < 1.0


def test_the_gradient_of_the_parameters_is_shortened():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}

    def gradient(scale: float) -> dict[str, jax.Array]:
        def loss(p):
            p = bounded_gradient(p)
            return scale * (3.0 * p["a"][0] + 4.0 * p["b"])

        return jax.grad(loss)(params)

    short, long = gradient(1.0), gradient(100.0)
    np.testing.assert_array_equal(short["a"], [3.0, 0.0])
    np.testing.assert_allclose(long["a"], [12.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(long["b"], 16.0, rtol=1e-6)
    np.testing.assert_allclose(gradient(1e30)["b"], 16.0, rtol=1e-5)  # its square is not a float
    for bad in (jnp.nan, jnp.inf):  # the step is then left out by `stable_update`
        assert not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(bad)))


def model() -> None:
    numpyro.sample("x", dist.Normal(jnp.zeros(2), 1e-3).to_event(1))


def test_one_wild_particle_does_not_decide_the_step():
    """The target is a thousand times narrower than the guide: every pull is long."""
    guide = AutoImplicit(model, init_scale=1.0, num_starts=0)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    params = svi.get_params(jax.jit(svi.init)(jax.random.key(0)))

    def norm(trust_radius: float | None) -> float:
        loss = ImplicitELBO(8, trust_radius=trust_radius)
        slope = jax.jit(jax.grad(lambda p: loss.loss(KEY, p, model, guide)))(params)
        return float(np.linalg.norm(slope["auto_generator$params"].log_scale))

    assert norm(None) > 1e4
    assert norm(5.0) < 100.0


def test_forward_mode_works_without_the_bound():
    guide = AutoImplicit(model, num_starts=0)
    svi = numpyro.infer.SVI(
        model, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(4, trust_radius=None)
    )
    state = jax.jit(svi.init)(jax.random.key(0))
    _, loss = jax.jit(lambda state: svi.update(state, forward_mode_differentiation=True))(state)
    assert jnp.isfinite(loss)


def test_the_radius_must_be_positive():
    with pytest.raises(ValueError, match="`trust_radius` must be positive or None; got 0"):
        ImplicitELBO(4, trust_radius=0.0)
