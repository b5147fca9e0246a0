"""What stands around a function site: scales, repeated points, plates of several batches."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import scale

from implicitppl.divergences import GaussianKL, HeldInputs
from implicitppl.divergences._divergence import make_pair
from implicitppl.gp import GaussianProcess
from implicitppl.infer import FunctionalELBO
from implicitppl.kernels import RBF
from implicitppl.processes import BayesianNetwork, FeatureProcess, function

X = jnp.linspace(-1, 1, 6)
Y = jnp.sin(3 * X)
PRIOR = GaussianProcess(RBF(0.7))
NETWORK = BayesianNetwork(1, 6, key=jax.random.key(0), initial_scale=0.3)
LOSS = FunctionalELBO(HeldInputs(jnp.array([2.0])), GaussianKL(0.05), num_particles=30)
KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def model(x, y):
    f = numpyro.sample("f", PRIOR(x))
    numpyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)


def guide(x, y):
    numpyro.sample("f", NETWORK(x))


def loss_of(model, guide, x, y, loss=LOSS):
    """The loss without parameters, compiled."""
    return jax.jit(lambda key: loss.loss(key, {}, model, guide, x, y))(KEY)


def test_a_loss_of_scaled_programs_is_the_scaled_loss():
    """The usual normalisation by 1/N: likelihood and divergence shrink alike."""
    programs = scale(model, scale=1 / 6), scale(guide, scale=1 / 6)
    whole = loss_of(model, guide, X, Y)
    sixth = loss_of(*programs, X, Y)
    assert float(sixth) == pytest.approx(float(whole) / 6, rel=1e-9)
    report = LOSS.report(KEY, {}, *programs, X, Y, with_growth=False)
    plain = LOSS.report(KEY, {}, model, guide, X, Y, with_growth=False)
    assert report.loss == pytest.approx(plain.loss / 6, rel=1e-9)
    assert "a multiple of a bound only where every site has the same scale" in report.objective
    assert "a bound as far as" in plain.objective


def annealed(beta):
    def scaled_model(x, y):
        with scale(scale=beta):
            f = numpyro.sample("f", PRIOR(x))
        numpyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)

    def scaled_guide(x, y):
        with scale(scale=beta):
            numpyro.sample("f", NETWORK(x))

    return LOSS.loss(KEY, {}, scaled_model, scaled_guide, X, Y)


def test_a_traced_scale_around_the_function_alone_anneals_the_divergence():
    values = jax.jit(jax.vmap(annealed))(jnp.array([0.0, 0.5, 1.0]))
    assert float(values[2]) == pytest.approx(float(loss_of(model, guide, X, Y)))
    assert float(values[1]) == pytest.approx(float(values[0] + values[2]) / 2)
    assert float(values[2] - values[0]) > 1


def test_unequal_scales_are_refused():
    for halves in ((scale(model, scale=0.5), guide), (model, scale(guide, scale=0.5))):
        with pytest.raises(ValueError, match="gives function 'f' the scales"):
            LOSS.loss(KEY, {}, *halves, X, Y)


def quadratic(x):
    return jnp.concatenate([jnp.ones_like(x), x, x**2], axis=1)


def test_a_point_that_repeats_is_no_other_function():
    """A Gaussian model drops points that it knows, where it can see them; other guides do not."""
    x = np.array([-1.0, 0.0, 1.0])
    drawn = FeatureProcess(quadratic, jnp.array([0.1, -0.2, 0.3]), 0.5 * jnp.eye(3))

    def twice(x, y):
        f = function("f", PRIOR)
        numpyro.sample("y", dist.Normal(f(x), 0.3).to_event(1), obs=y)
        numpyro.sample("origin", dist.Normal(f(jnp.zeros(1))[0], 0.3), obs=0.1)

    def guide(x, y):
        f = function("f", drawn)
        f(x), f(jnp.zeros(1))

    def exact(*points):
        @jax.jit
        def divergence(x):
            return LOSS.divergence(make_pair(jnp.zeros((2, len(x))), drawn, PRIOR, x, KEY), KEY)

        return float(divergence(np.array(points)[:, None]))

    report = LOSS.report(KEY, {}, twice, guide, x, x**2, with_growth=False)
    assert report.divergence_value == pytest.approx(exact(-1.0, 0.0, 1.0, 2.0), rel=1e-6)
    # Traced points are not known to be equal: the second is there once more.
    eager = LOSS.loss(KEY, {}, twice, guide, x, x**2)
    traced = jax.jit(lambda x: LOSS.loss(KEY, {}, twice, guide, x, x**2))(x)
    more = exact(-1.0, 0.0, 1.0, 0.0, 2.0) - exact(-1.0, 0.0, 1.0, 2.0)
    assert float(traced) - float(eager) == pytest.approx(more, abs=1e-4)


def other_plate(x, y):
    with numpyro.plate("a", 6, subsample_size=3) as rows:
        points = x[rows]
    f = numpyro.sample("f", PRIOR(points))
    with numpyro.plate("a", 6, subsample_size=3):
        numpyro.sample("y", dist.Normal(f, 0.3), obs=y[rows])
    with numpyro.plate("b", 8, subsample_size=2):
        numpyro.sample("z", dist.Normal(0.0, 1.0), obs=jnp.zeros(2))


def nested_plates(x, y):
    with numpyro.plate("a", 6, subsample_size=3) as rows:
        points = x[rows]
    f = numpyro.sample("f", PRIOR(points))
    with numpyro.plate("b", 8, subsample_size=2, dim=-2), numpyro.plate("a", 6, subsample_size=3):
        numpyro.sample("y", dist.Normal(f, 0.3), obs=jnp.stack([y[rows], y[rows]]))


def both_plates(x, y):
    with numpyro.plate("a", 6, subsample_size=3) as rows:
        points = x[rows]
    with numpyro.plate("b", 8, subsample_size=2):
        pass
    numpyro.sample("f", NETWORK(points))


def test_n_over_b_of_plates_with_other_observations_is_refused():
    loss = FunctionalELBO(None, GaussianKL(0.05), "N/B", num_particles=5)
    with pytest.raises(ValueError, match="subsamples plates that hold different observations"):
        loss_of(other_plate, both_plates, X, Y, loss)
    number = FunctionalELBO(None, GaussianKL(0.05), 2.0, num_particles=5)
    assert np.isfinite(float(loss_of(other_plate, both_plates, X, Y, number)))
    rows = FunctionalELBO(None, GaussianKL(0.05), 8.0, num_particles=5)  # 6/3 times 8/2
    found = [float(loss_of(nested_plates, both_plates, X, Y, each)) for each in (loss, rows)]
    assert found[0] == pytest.approx(found[1])
