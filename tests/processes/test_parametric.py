"""Processes without a density, as NumPyro distributions and as functions that stay."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import Normal, constraints
from numpyro.infer import MCMC, NUTS

from implicitppl.distributions import ImplicitDensityError
from implicitppl.processes import ImplicitProcess, ParametricProcess, check_coherent
from implicitppl.processes._function_values import FunctionValues

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 5)[:, None]


class Line(ParametricProcess):
    """f(x) = a + b x, a ~ N(1, .25), b ~ N(0, scale^2): closed-form moments."""

    scale: jax.Array

    def function(self, key):
        noise = jax.random.normal(key, (2,))
        return lambda x: 1 + 0.5 * noise[0] + self.scale * noise[1] * x[:, 0]


class Curve(eqx.Module):
    """Two outputs at every point."""

    scale: jax.Array

    def __call__(self, key, x):
        noise = jax.random.normal(key, (2,))
        return self.scale * noise * jnp.concatenate([x, x**2], axis=1)


def partial_sampler():
    def sampler(scale, key, x):
        return scale * jax.random.normal(key) * x[:, 0]

    return jax.tree_util.Partial(sampler, jnp.array(2.0))


PROCESSES = {
    "line": (lambda: Line(jnp.array(2.0)), (5,)),
    "module, two outputs": (lambda: ImplicitProcess(Curve(jnp.array(1.0))), (5, 2)),
    "partial": (lambda: ImplicitProcess(partial_sampler()), (5,)),
    "closure": (lambda: ImplicitProcess(lambda key, x: jax.random.normal(key) * x[:, 0]), (5,)),
}


@pytest.mark.parametrize(("make", "event"), PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("sample_shape", [(), (2,), (2, 3)])
def test_shapes_through_expand_event_and_mask(make, event, sample_shape):
    d = make()(X)
    assert isinstance(d, FunctionValues) and not d.has_density and d.has_rsample
    assert d.support == constraints.independent(constraints.real, len(event))
    assert d.event_shape == event and d.batch_shape == () and d.x.shape == (5, 1)
    assert d.sample(KEY, sample_shape).shape == (*sample_shape, *event)
    assert d.expand([4, 3]).sample(KEY, sample_shape).shape == (*sample_shape, 4, 3, *event)
    assert d.expand([3]).to_event(1).event_shape == (3, *event)
    assert d.mask(True).sample(KEY, sample_shape).shape == (*sample_shape, *event)
    assert d.sample(jax.random.PRNGKey(0), sample_shape).shape == (*sample_shape, *event)


@pytest.mark.parametrize(("make", "event"), PROCESSES.values(), ids=PROCESSES.keys())
def test_sample_draw_and_distribution_give_the_same_functions(make, event):
    process = make()
    draws = process.draw(KEY, 3)
    np.testing.assert_array_equal(draws(X), process.sample(KEY, X, 3))
    np.testing.assert_array_equal(draws(X), process(X).sample(KEY, (3,)))
    np.testing.assert_array_equal(process.draw(KEY)(X)[0], process(X).sample(KEY))
    check_coherent(process, X, key=KEY)
    assert draws(X).shape == (3, *event)


def test_draws_have_the_moments_of_the_process():
    num = 20_000
    draws = Line(jnp.array(2.0)).sample(KEY, X, num)
    covariance = 0.25 + 4 * X * X.T
    spread = jnp.diag(covariance)
    errors = jnp.sqrt((covariance**2 + spread[:, None] * spread[None, :]) / num)
    found = jnp.cov(draws.T)
    assert jnp.max(jnp.abs(draws.mean(0) - 1) / jnp.sqrt(spread / num)) < 4
    assert jnp.max(jnp.abs(found - covariance) / errors) < 4
    assert jnp.max(jnp.abs(1.1 * found - covariance) / errors) > 4


@pytest.mark.smoke
def test_values_and_draws_cross_jit_and_compile_once():
    count = 0

    @jax.jit
    def draw(values, draws, key):
        nonlocal count
        count += 1
        return values.sample(key), draws(X)

    found = []
    for scale in (2.0, 3.0):
        process = Line(jnp.array(scale))
        found.append((process(X), process.draw(KEY, 2)))
        assert jnp.allclose(draw(*found[-1], KEY)[0], found[-1][0].sample(KEY))
        assert jnp.allclose(draw(*found[-1], KEY)[1], found[-1][1](X))
    assert count == 1
    values = found[0][0]
    again = jax.tree.unflatten(*jax.tree.flatten(values)[::-1])
    assert again.event_shape == (5,) and jnp.allclose(again.sample(KEY), values.sample(KEY))
    assert jnp.allclose(jax.jit(lambda d: d)(values).sample(KEY), values.sample(KEY))


def test_vmap_over_the_object_maps_the_sampling():
    scales = jnp.array([1.0, 2.0, 3.0])
    stacked = jax.vmap(lambda s: Line(s))(scales)
    keys = jax.random.split(KEY, 3)
    draws = jax.vmap(lambda process, key: process(X).sample(key))(stacked, keys)
    each = jnp.stack([Line(s)(X).sample(key) for s, key in zip(scales, keys, strict=True)])
    assert jnp.allclose(draws, each)


def test_gradient_passes_through_a_draw_and_through_the_points():
    noise = jax.random.normal(jax.random.split(KEY, 1)[0], (2,))
    slope = jax.grad(lambda s: Line(s)(X).sample(KEY)[-1])(jnp.array(2.0))
    assert jnp.allclose(slope, noise[1])
    draws = Line(jnp.array(2.0)).draw(KEY)
    assert jnp.allclose(jax.grad(lambda x: draws(x).sum())(X), 2 * noise[1])


def test_a_plate_scales_and_a_site_is_traced():
    def guide():
        with numpyro.plate("rows", 20, subsample_size=5):
            numpyro.sample("f", Line(jnp.array(1.0))(X))

    trace = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace()
    assert trace["f"]["value"].shape == (5, 5) and trace["f"]["scale"] == 4.0


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: d.expand([3]), lambda d: d.mask(True)])
def test_log_prob_raises_and_names_loss_and_process(wrap):
    d = wrap(Line(jnp.array(1.0))(X))
    with pytest.raises(ImplicitDensityError, match=r"`Line`.*implicitppl.infer.FunctionalELBO"):
        d.log_prob(d.sample(KEY))


@pytest.mark.smoke
def test_nuts_refuses_a_function_without_density():
    def model():
        f = numpyro.sample("f", Line(jnp.array(1.0))(X))
        numpyro.sample("y", Normal(f, 1.0).to_event(1), obs=jnp.zeros(5))

    with pytest.raises(ImplicitDensityError, match="NUTS"):
        MCMC(NUTS(model), num_warmup=2, num_samples=2, progress_bar=False).run(KEY)


def test_an_incoherent_sampler_is_found_and_by_how_much():
    frayed = ImplicitProcess(lambda key, x: x[:, 0] + jax.random.normal(key, x.shape[:1]))
    with pytest.raises(ValueError, match=r"differ by up to [1-9]\.\d+ .* does not draw functions"):
        check_coherent(frayed, X, key=KEY)
    centred = ImplicitProcess(lambda key, x: jax.random.normal(key) * (x - x.mean())[:, 0])
    with pytest.raises(ValueError, match="`ImplicitProcess` does not draw functions"):
        check_coherent(centred, X, key=KEY)
    broken = ImplicitProcess(lambda key, x: jnp.nan * x[:, 0])
    with pytest.raises(ValueError, match="differ by up to nan"):
        check_coherent(broken, X, key=KEY)


BAD = {
    "not callable": (lambda: ImplicitProcess(3), "`sampler` must be a function of a key"),
    "number of values": (
        lambda: ImplicitProcess(lambda key, x: jnp.ones(3))(X),
        r"must return \(5,\) or \(5, P\) values at 5 points; got \(3,\)",
    ),
    "integers": (
        lambda: ImplicitProcess(lambda key, x: jnp.ones(len(x), int))(X),
        "must return floats; got int",
    ),
    "points": (lambda: ImplicitProcess(lambda key, x: x)(np.zeros((0, 2))), r"\(N, D\) or \(N,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
