"""One function at several sites of a model or guide."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

from implicitppl.gp import GaussianProcess
from implicitppl.kernels import RBF, Matern32
from implicitppl.processes import FeatureProcess, PiecewiseConstant, RandomFeatures, function, stack
from implicitppl.processes._function_site import SharedFunction

KEY = jax.random.key(0)
FIRST, SECOND, THIRD = np.array([0.0, 0.4]), np.array([0.7, 1.5, 0.2]), np.array([2.0])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def gaussians():
    features = RandomFeatures.from_kernel(Matern32(), 1, 40, key=KEY)
    return {
        "prior": GaussianProcess(Matern32(), 0.3),
        "posterior": GaussianProcess(Matern32()).condition(jnp.array([1.0]), jnp.ones(1), 0.1),
        "features": 2.0 * FeatureProcess(features),
    }


@pytest.mark.parametrize(
    "name",
    ["prior", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("posterior", "features"))],
)
@pytest.mark.parametrize("traced", [False, True])
def test_sites_of_a_gaussian_process_have_its_joint_density(name, traced):
    process = gaussians()[name]

    def model(first, second, third):
        f = function("f", process)
        return f(first), f(second), f(third)

    found = trace(seed(model, 0)).get_trace(FIRST, SECOND, THIRD)
    assert list(found) == ["f", "f_1", "f_2"]
    assert all(site["infer"] == {"function": "f"} for site in found.values())
    values = {site: found[site]["value"] for site in found}

    def density(*points):
        return log_density(model, points, {}, values)[0]

    evaluate = jax.jit(density) if traced else density
    log_prob = eqx.filter_jit(lambda process, x, values: process(x).log_prob(values))
    everything = np.concatenate([FIRST, SECOND, THIRD])
    joint = log_prob(process, everything, np.concatenate(list(values.values())))
    assert float(evaluate(FIRST, SECOND, THIRD)) == pytest.approx(float(joint), rel=1e-8)
    points = (FIRST, SECOND, THIRD)
    apart = sum(log_prob(process, x, values[s]) for s, x in zip(values, points, strict=True))
    assert abs(float(apart - joint)) > 1e-2  # independent functions are something else


def test_points_asked_before_keep_their_values_and_make_no_site():
    process = GaussianProcess(RBF())

    def model():
        f = function("f", process)
        first = f(FIRST)
        mixed = f(jnp.concatenate([SECOND, FIRST[::-1], SECOND[:1]]))
        return first, mixed, f(SECOND)

    run = trace(seed(model, 1))
    first, mixed, again = run()
    assert list(run.trace) == ["f", "f_1"] and run.trace["f_1"]["value"].shape == (4,)
    np.testing.assert_array_equal(mixed[3:5], first[::-1])
    np.testing.assert_array_equal(again, mixed[:3])
    np.testing.assert_allclose(mixed[5], mixed[0], atol=1e-6)


def test_a_process_with_weights_uses_one_key_for_all_sites():
    process = PiecewiseConstant()

    def model():
        f, g = function("f", process), function("g", process)
        return f(FIRST), f(jnp.linspace(0, 1, 6)), g(FIRST)

    run = trace(seed(model, 2))
    first, wide, other = run()
    assert list(run.trace) == ["f", "f_1", "g"]
    assert run.trace["f_1"]["infer"] == {"function": "f"}
    np.testing.assert_array_equal(wide[jnp.array([0, 2])], first)
    assert jnp.any(first != other)
    assert isinstance(seed(lambda: function("f", process), 0)(), SharedFunction)


def test_several_outputs_and_values_given_from_outside():
    process = stack([PiecewiseConstant(), PiecewiseConstant()])
    values = seed(lambda: function("f", process)(FIRST), 0)()
    assert values.shape == (2, 2)

    def model():
        f = function("f", GaussianProcess(RBF()))
        return f(FIRST), f(SECOND)

    given = substitute(seed(model, 0), {"f": jnp.array([1.0, 2.0])})
    first, second = given()
    np.testing.assert_array_equal(first, [1.0, 2.0])
    exact = GaussianProcess(RBF()).condition(FIRST, first, 0.0)(SECOND)
    assert jnp.all(jnp.abs(second - exact.mean) < 6 * jnp.sqrt(exact.variance))


@pytest.mark.slow
def test_nuts_finds_the_posterior_of_a_function_asked_twice():
    gp = GaussianProcess(Matern32(1.0))
    y = jnp.array([1.0, -0.5])

    def model():
        f = function("f", gp)
        numpyro.sample("y", dist.Normal(f(FIRST), 0.5).to_event(1), obs=y)
        numpyro.deterministic("later", f(SECOND))

    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=2000, progress_bar=False)
    mcmc.run(KEY)
    exact = gp.condition(FIRST, y, 0.5)(SECOND)
    draws = mcmc.get_samples()["later"]
    effective = jnp.asarray(numpyro.diagnostics.effective_sample_size(np.asarray(draws)[None]))
    error = jnp.sqrt(exact.variance / effective)
    assert jnp.all(jnp.abs(draws.mean(0) - exact.mean) < 4 * error)
    spread = jnp.var(draws, axis=0) / exact.variance - 1
    assert jnp.all(jnp.abs(spread) < 4 * jnp.sqrt(2 / effective))
    assert jnp.any(jnp.abs(draws.mean(0) - 0.0) > 4 * error)  # what independent sites would give


def in_a_plate():
    f = function("f", GaussianProcess(RBF()))
    with numpyro.plate("rows", 3):
        f(FIRST)


BAD = {
    "no process": (lambda: function("f", RBF()), "`process` must be a process"),
    "memory": (
        lambda: function("f", GaussianProcess(RBF()) + PiecewiseConstant()),
        r"\(SumProcess\) holds a Gaussian process without a weight space",
    ),
    "plate": (lambda: seed(in_a_plate, 0)(), "function `f` lies in a plate"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_argument_rule_and_value(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()
