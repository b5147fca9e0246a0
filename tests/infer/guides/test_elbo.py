"""The loss against closed forms, and the ways in which it must refuse."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions import constraints
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

from implicitppl.distributions import Implicit, ImplicitDensityError
from implicitppl.infer import ImplicitELBO
from implicitppl.infer._guides.provenance import joint_groups, parents
from implicitppl.models._call import Call
from implicitppl.models._sites import latent_sites
from implicitppl.score import SSGE, Gaussian
from implicitppl.score._in_sample import gaussian_entropy

KEY = jax.random.key(0)


def scaled(scale: jax.Array, size: int = 1, support: Any = None) -> Implicit:
    """Z = scale * e as an implicit distribution."""
    return Implicit(lambda key: scale * jax.random.normal(key, (size,)), (size,), support=support)


@functools.partial(jax.jit, static_argnames=("model", "guide", "loss"))
def gradients(params: dict[str, Any], keys: jax.Array, model: Any, guide: Any, loss: Any) -> Any:
    gradient = jax.grad(lambda p, key: loss.loss(key, p, model, guide))
    return jax.vmap(gradient, (None, 0))(params, keys)


def loss_gradient(
    model: Any, guide: Any, params: dict[str, Any], *, loss: ImplicitELBO, repeats: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over keys of the gradient of the loss, and its standard error."""
    keys = jax.random.split(jax.random.key(1), repeats)
    values = np.asarray(gradients(params, keys, model, guide, loss)["a"])
    return values.mean(0), values.std(0) / repeats**0.5


def standard_model() -> None:
    numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))


def implicit_guide() -> None:
    numpyro.sample("z", scaled(numpyro.param("a", 0.5)))


@pytest.mark.smoke
@pytest.mark.parametrize("a", [0.5, 1.5])
@pytest.mark.parametrize("loss", [ImplicitELBO(100, e) for e in (None, SSGE(), Gaussian())])
def test_gradient_is_that_of_the_kl_between_gaussians(a, loss):
    """KL(N(0, a^2) || N(0, 1)) has the gradient a - 1/a."""
    params = {"a": jnp.array(a)}
    mean, error = loss_gradient(standard_model, implicit_guide, params, loss=loss, repeats=1000)
    expected = a - 1 / a
    tolerance = 4 * float(error) + 1e-3 / a  # no bias: Stein's identity holds for affine functions
    assert abs(float(mean) - expected) < tolerance
    short = a - 0.95 / a  # what SSGE gives without the correction
    assert abs(short - expected) > tolerance, "the check must see a score that is 5% short"


def chain_guide() -> None:
    """W ~ N(0, 1) explicit; z given w implicit, with conditional sd a."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    a = numpyro.param("a", 0.1)
    numpyro.sample("z", Implicit(lambda key: w + a * jax.random.normal(key, (1,)), (1,)))


def chain_model() -> None:
    """Leaves only the entropy of the guide: the prior of z is so wide that it has no slope."""
    numpyro.sample("w", dist.Normal(0.0, 1e4))
    numpyro.sample("z", dist.Normal(jnp.zeros(1), 1e4).to_event(1))


def test_a_sampler_that_depends_on_a_random_site_gets_the_score_of_the_joint():
    """D H(w, z) / d log a = 1; a marginal bank would give about a^2 / (1 + a^2)."""
    a = 1.0
    params = {"a": jnp.array(a)}
    loss = ImplicitELBO(200, SSGE(reference="gaussian", metric="whitened"))
    mean, error = loss_gradient(chain_model, chain_guide, params, loss=loss, repeats=100)
    slope = -float(mean) * a
    tolerance = 4 * float(error) + 0.1
    marginal = a**2 / (1 + a**2)
    assert abs(slope - 1.0) < tolerance
    assert abs(marginal - 1.0) > tolerance, "the check must see the score of the marginal"


def test_provenance_sees_a_sampler_that_closes_over_a_site():
    seeded = handlers.seed(handlers.substitute(chain_guide, {"a": 0.1}), KEY)
    sites = latent_sites(handlers.trace(seeded).get_trace())
    values = {name: site["value"] for name, site in sites.items()}
    found = parents(Call(chain_guide, params={"a": jnp.array(0.1)}), values, KEY)
    assert found == {"w": frozenset(), "z": frozenset({"w"})}
    assert joint_groups(sites, found, ["z"]) == [("w", "z")]


def test_an_implicit_site_in_a_plate_that_depends_on_a_random_site_is_refused():
    def guide() -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("z", Implicit(lambda key: w + jax.random.normal(key, ()), ()))

    def model() -> None:
        numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'z' depends on the random site\(s\) \['w'\]"):
        ImplicitELBO(4).loss(KEY, {}, model, guide)


def test_explicit_sites_give_the_value_and_gradient_of_trace_elbo():
    """Without an implicit site the loss is NumPyro's, up to Monte Carlo error."""

    def guide() -> None:
        a = numpyro.param("a", 0.5)
        numpyro.sample("z", dist.Normal(jnp.zeros(1), a).to_event(1))

    params = {"a": jnp.array(0.5)}

    exact, exact_slope = 0.5 * (0.25 - 1) - np.log(0.5), 0.5 - 1 / 0.5
    for loss, key in ((ImplicitELBO(5000), KEY), (Trace_ELBO(5000), jax.random.key(1))):
        of_params = functools.partial(loss.loss, key, model=standard_model, guide=guide)
        value, slope = jax.jit(jax.value_and_grad(of_params))(params)
        assert abs(value - exact) < 4 * 0.6 / 5000**0.5
        assert abs(slope["a"] - exact_slope) < 4 * 0.8 / 5000**0.5
    assert ImplicitELBO(2).objective(KEY, params, standard_model, guide) == "negative ELBO"


def test_a_support_enters_through_its_exact_jacobian():
    """Log x ~ N(0, a^2) against a LogNormal(0, 1) prior has the KL gradient a - 1/a as well."""

    def model() -> None:
        numpyro.sample("z", dist.LogNormal(jnp.zeros(1), 1.0).to_event(1))

    def guide() -> None:
        positive = constraints.independent(constraints.positive, 1)
        numpyro.sample("z", scaled(numpyro.param("a", 0.5), support=positive))

    def transformed() -> None:
        base = scaled(numpyro.param("a", 0.5))
        exp = dist.transforms.ExpTransform()
        numpyro.sample("z", dist.TransformedDistribution(base, exp))

    for candidate in (guide, transformed):
        loss = ImplicitELBO(100, Gaussian())
        mean, error = loss_gradient(model, candidate, {"a": jnp.array(0.5)}, loss=loss)
        assert abs(float(mean) + 1.5) < 4 * float(error) + 0.05


def test_scale_and_mask_of_a_plate_reach_the_score():
    def model() -> None:
        with numpyro.plate("rows", 4):
            numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))

    def guide_with(mask: Any) -> Any:
        def guide() -> None:
            with numpyro.plate("rows", 4):
                numpyro.sample("z", scaled(numpyro.param("a", 0.5)).mask(mask))

        return guide

    loss = ImplicitELBO(200, Gaussian())
    params = {"a": jnp.array(0.5)}
    full, _ = loss_gradient(model, guide_with(True), params, loss=loss, repeats=50)
    half_mask = jnp.array([True, True, False, False])
    half, _ = loss_gradient(model, guide_with(half_mask), params, loss=loss, repeats=50)
    assert abs(float(full) - 4 * (0.5 - 2.0)) < 0.3
    assert abs(float(half) - (4 * 0.5 - 2 * 2.0)) < 0.3


def test_reported_value_is_exact_for_a_gaussian_guide():
    """With a Gaussian guide the Gaussian entropy is the entropy, so the value is the KL."""
    params = {"a": jnp.array(0.5)}
    loss = ImplicitELBO(50)
    value = jax.jit(lambda key: loss.loss(key, params, standard_model, implicit_guide))
    losses = [float(value(jax.random.key(i))) for i in range(40)]
    exact = 0.5 * (0.25 - 1) - np.log(0.5)
    assert abs(np.mean(losses) - exact) < 4 * np.std(losses) / 40**0.5
    assert np.std(losses) / 40**0.5 < 0.05
    words = ImplicitELBO(4).objective(KEY, params, standard_model, implicit_guide)
    assert words.startswith("surrogate")


@pytest.mark.parametrize(("count", "size"), [(40, 5), (6, 5), (4, 5)])
def test_gaussian_entropy_is_unbiased_or_above(count, size):
    rng = np.random.default_rng(0)
    lower = np.tril(rng.normal(size=(size, size)))
    draws = jnp.asarray(rng.normal(size=(2000, count, size)) @ lower.T)
    values = np.asarray(jax.jit(jax.vmap(gaussian_entropy))(draws))
    exact = 0.5 * size * 2.8378770664093453 + np.linalg.slogdet(lower)[1]
    error = 4 * float(values.std()) / 2000**0.5
    if count - 1 > size:
        assert abs(float(values.mean()) - exact) < error
        assert error < 0.2
    else:
        assert float(values.mean()) > exact - error


def test_trace_elbo_and_renyi_raise_at_an_implicit_site():
    for loss in (Trace_ELBO(2), RenyiELBO(num_particles=2)):
        with pytest.raises(ImplicitDensityError, match="ImplicitELBO"):
            loss.loss(KEY, {"a": jnp.array(1.0)}, standard_model, implicit_guide)


def test_too_few_particles():
    with pytest.raises(ValueError, match="`num_particles` must be at least 2"):
        ImplicitELBO(num_particles=1)


@pytest.mark.parametrize("observed", [True, False])
def test_an_implicit_site_in_the_model_is_refused(observed):
    def model() -> None:
        numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        numpyro.sample("x", scaled(jnp.array(1.0)), obs=jnp.zeros(1) if observed else None)

    def guide() -> None:
        implicit_guide()
        if not observed:
            numpyro.sample("x", dist.Normal(jnp.zeros(1), 1.0).to_event(1))

    word = "observed" if observed else "latent"
    with pytest.raises(ValueError, match=f"'x' is {word} and implicit"):
        ImplicitELBO(4).loss(KEY, {"a": jnp.array(1.0)}, model, guide)


def test_a_discrete_latent_site_is_refused():
    def model() -> None:
        numpyro.sample("k", dist.Bernoulli(0.5))

    def guide() -> None:
        numpyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="'k' is latent and discrete"):
        ImplicitELBO(4).loss(KEY, {}, model, guide)


@pytest.mark.smoke
def test_mutable_state_is_kept_with_many_particles():
    def guide() -> None:
        holder = numpyro.primitives.mutable("ema", {"mean": jnp.array(0.0), "count": jnp.array(0)})
        z = numpyro.sample("z", scaled(numpyro.param("a", 0.5)))
        holder["mean"] = 0.5 * holder["mean"] + 0.5 * (3.0 + 0.0 * z[0])
        holder["count"] = holder["count"] + 1

    svi = SVI(standard_model, guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    state = jax.jit(svi.init)(KEY)
    update = jax.jit(svi.update)
    for _ in range(2):
        state, loss = update(state)
    ema = state.mutable_state["ema"]
    assert np.allclose(ema["mean"], 2.625) and int(ema["count"]) == 3
    assert np.isfinite(loss)


def test_particles_share_one_subsample():
    """The sampler sees its row: with other rows in each particle the spread is that of rows."""
    rows = jnp.array([-100.0, 0.0, 100.0, 200.0])
    seen = []

    class Recorder:
        def fit(self, samples: jax.Array) -> Any:
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), samples)
            return lambda x: -x

    def guide() -> None:
        with numpyro.plate("rows", 4, subsample_size=2) as index:
            numpyro.sample(
                "z",
                Implicit(
                    lambda key, row: row + numpyro.param("a", 0.5) * jax.random.normal(key),
                    context=(rows[index],),
                    batch_shape=(2,),
                ),
            )

    def model() -> None:
        with numpyro.plate("rows", 4, subsample_size=2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    loss, params = ImplicitELBO(16, Recorder()), {"a": jnp.array(0.5)}
    jax.block_until_ready(jax.jit(lambda key: loss.loss(key, params, model, guide))(KEY))
    jax.effects_barrier()
    assert seen and all(np.ptp(bank) < 10.0 for bank in seen)


def test_hand_written_guide_with_a_module_and_an_ordinary_site_learns_both():
    """Y ~ N(m, s): m by an implicit module, log s by a Normal; compared with the exact moments."""
    y = np.array([1.2, 0.4, 2.2, 1.6, 0.9, 1.9, 1.1, 0.7], np.float32)

    class Line(eqx.Module):
        loc: jax.Array
        log_scale: jax.Array

        def __call__(self, key: jax.Array) -> jax.Array:
            return self.loc + jnp.exp(self.log_scale) * jax.random.normal(key, ())

    def model() -> None:
        m = numpyro.sample("m", dist.Normal(0.0, 10.0))
        numpyro.sample("offset", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 8):
            numpyro.sample("y", dist.Normal(m, 0.5), obs=y)

    def guide() -> None:
        line = eqx_module("line", Line(jnp.array(0.0), jnp.array(-1.0)))
        numpyro.sample("m", Implicit(line, ()))
        loc = numpyro.param("loc", 0.5)
        numpyro.sample("offset", dist.Normal(loc, numpyro.param("sd", 0.7)))

    svi = SVI(model, guide, numpyro.optim.Adam(2e-2), ImplicitELBO(50))
    result = svi.run(KEY, 800, progress_bar=False)
    line = result.params["line$params"]
    precision = 8 / 0.25 + 0.01
    exact = float(np.sum(y)) / 0.25 / precision
    assert abs(float(line.loc) - exact) < 0.1 * precision**-0.5
    assert abs(np.exp(float(line.log_scale)) * precision**0.5 - 1) < 0.1
    assert abs(float(result.params["loc"])) < 0.1


def test_a_step_with_equal_shapes_compiles_once():
    count = 0

    def model() -> None:
        nonlocal count
        count += 1
        standard_model()

    svi = SVI(model, implicit_guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    state = svi.init(KEY)
    update = jax.jit(svi.update)
    state, _ = update(state)
    first = count
    for _ in range(3):
        state, _ = update(state)
    assert count == first


def test_stable_update_survives_a_bad_region():
    def model() -> None:
        numpyro.factor("f", jnp.nan)
        standard_model()

    svi = SVI(model, implicit_guide, numpyro.optim.Adam(1e-3), ImplicitELBO(8))
    state = jax.jit(svi.init)(KEY)
    after, loss = jax.jit(svi.stable_update)(state)
    assert np.isnan(loss)
    assert float(svi.get_params(after)["a"]) == float(svi.get_params(state)["a"])
