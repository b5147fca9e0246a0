"""`Implicit` as a NumPyro distribution: one conformance table over ways to give a sampler."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

from implicitppl.distributions import Implicit, ImplicitDensityError


class Affine(eqx.Module):
    """x = shift + scale * e, e ~ N(0, 1): closed-form moments."""

    shift: jax.Array
    scale: jax.Array

    def __call__(self, key: jax.Array) -> jax.Array:
        return self.shift + self.scale * jax.random.normal(key, self.shift.shape)


def affine(size: int = 2) -> Affine:
    return Affine(jnp.arange(1.0, size + 1), jnp.arange(2.0, size + 2))


def partial_sampler() -> jax.tree_util.Partial:
    def fn(parts: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
        return parts[0] + parts[1] * jax.random.normal(key, parts[0].shape)

    return jax.tree_util.Partial(fn, (jnp.array([1.0, 2.0]), jnp.array([2.0, 3.0])))


SAMPLERS = {
    "module": affine,
    "partial": partial_sampler,
    "closure": lambda: lambda key: affine()(key),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("sample_shape", [(), (2,), (2, 3)])
def test_shapes_through_expand_event_and_mask(make, sample_shape):
    d = Implicit(make(), (2,))
    expanded = d.expand([5, 3])
    key = jax.random.key(0)
    assert d.sample(key, sample_shape).shape == (*sample_shape, 2)
    assert expanded.sample(key, sample_shape).shape == (*sample_shape, 5, 3, 2)
    assert expanded.to_event(1).event_shape == (3, 2)
    assert expanded.mask(jnp.ones(3, bool)).sample(key, sample_shape).shape[-1] == 2
    raw = jax.random.PRNGKey(0)
    assert d.sample(raw, sample_shape).shape == (*sample_shape, 2)


def test_draws_have_the_moments_of_the_sampler_and_are_independent():
    n = 20_000
    draws = np.asarray(Implicit(affine(), (2,)).expand([3]).sample(jax.random.key(1), (n,)))
    se_mean = np.array([2.0, 3.0]) / n**0.5
    assert np.all(np.abs(draws.mean(0) - np.array([1.0, 2.0])) < 4 * se_mean)
    corr = np.corrcoef(draws.reshape(n, 6), rowvar=False) - np.eye(6)
    assert np.max(np.abs(corr)) < 4.5 / n**0.5
    repeated = np.corrcoef(np.repeat(draws[:, 0], 2, 1), rowvar=False) - np.eye(4)
    assert np.max(np.abs(repeated)) > 4.5 / n**0.5, "the check must see repeated noise"


def test_context_gives_each_element_its_own_row():
    shifts = jnp.array([0.0, 100.0, -50.0])
    d = Implicit(
        lambda key, shift: shift + jax.random.normal(key, (1,)),
        (1,),
        context=(shifts,),
        batch_shape=(3,),
    )
    draws = d.sample(jax.random.key(0), (7,))
    assert draws.shape == (7, 3, 1)
    assert jnp.all(jnp.abs(draws[..., 0] - shifts) < 6)


def test_gradient_passes_through_a_draw():
    key = jax.random.key(3)

    def value(scale):
        return Implicit(Affine(jnp.zeros(2), scale), (2,)).sample(key).sum()

    noise = jax.random.normal(key, (2,))
    assert jnp.allclose(jax.grad(value)(jnp.ones(2)), noise)


def test_support_is_reached_by_a_bijection():
    d = Implicit(affine(), (3,), support=constraints.simplex)
    draws = d.sample(jax.random.key(0), (50,))
    assert jnp.allclose(draws.sum(-1), 1.0, atol=1e-5)
    assert jnp.all(d.support(draws))


@pytest.mark.smoke
def test_distribution_crosses_jit_and_compiles_once():
    count = 0

    @jax.jit
    def draw(d, key):
        nonlocal count
        count += 1
        return d.sample(key)

    a, b = Implicit(affine(), (2,)), Implicit(Affine(jnp.zeros(2), jnp.ones(2)), (2,))
    key = jax.random.key(0)
    assert jnp.allclose(draw(a, key), a.sample(key))
    assert jnp.allclose(draw(b, key), b.sample(key))
    assert count == 1
    again = jax.tree.unflatten(*jax.tree.flatten(a)[::-1])
    assert again.event_shape == (2,) and jnp.allclose(again.sample(key), a.sample(key))
    returned = jax.jit(lambda d: d)(a)
    assert jnp.allclose(returned.sample(key), a.sample(key))


def test_vmap_over_the_object_maps_the_sampling():
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(Implicit(affine(), (2,)) for _ in range(3)))
    keys = jax.random.split(jax.random.key(0), 3)
    draws = jax.vmap(lambda d, key: d.sample(key))(stacked, keys)
    each = jnp.stack([Implicit(affine(), (2,)).sample(key) for key in keys])
    assert jnp.allclose(draws, each)


def test_plate_keeps_the_scale_of_a_subsample():
    def guide():
        with numpyro.plate("rows", 20, subsample_size=5):
            numpyro.sample("z", Implicit(affine(1), (1,)))

    trace = handlers.trace(handlers.seed(guide, 0)).get_trace()
    assert trace["z"]["value"].shape == (5, 1)
    assert trace["z"]["scale"] == 4.0


@pytest.mark.parametrize(
    "wrap",
    [lambda d: d, lambda d: d.expand([3]), lambda d: d.to_event(0), lambda d: d.mask(True)],
)
def test_log_prob_raises_and_names_the_loss(wrap):
    d = wrap(Implicit(affine(), (2,)))
    with pytest.raises(ImplicitDensityError, match="ImplicitELBO"):
        d.log_prob(d.sample(jax.random.key(0)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Implicit(affine(), (3,)), r"`sampler` must return an array of shape \(3,\); got"),
        (lambda: Implicit(lambda key: jnp.arange(2), (2,)), "`sampler` must return floats"),
        (
            lambda: Implicit(lambda k, c: c, (2,), context=(jnp.ones((4, 2)),), batch_shape=(3,)),
            "`context` arrays must lead with batch_shape",
        ),
    ],
)
def test_errors_name_argument_rule_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.smoke
def test_nuts_refuses_an_implicit_site():
    def model():
        x = numpyro.sample("x", Implicit(affine(), (2,)))
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.0)

    with pytest.raises(ImplicitDensityError, match="NUTS"):
        MCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False).run(jax.random.key(0))
