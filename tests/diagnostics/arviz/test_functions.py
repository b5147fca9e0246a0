"""Functions in ArviZ: drawn at any inputs, and as a site of a model and its guide."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer import SVI
from scipy.stats import norm

from implicitppl.diagnostics import to_arviz
from implicitppl.divergences import DataNoise, GaussianKL
from implicitppl.gp import GaussianProcess
from implicitppl.infer import FunctionalELBO, predict
from implicitppl.kernels import RBF
from implicitppl.processes import BayesianNetwork

X = jnp.linspace(-1.0, 1.0, 6)[:, None]
Y = jnp.sin(3 * X[:, 0])
drawn = eqx.filter_jit(predict)


@pytest.mark.smoke
def test_functions_keep_their_inputs_and_their_correlations(tmp_path):
    process = eqx.filter_jit(GaussianProcess(RBF()).condition)(X, Y, 0.1)
    network = eqx.filter_jit(BayesianNetwork)(2, out_size=3, key=random.key(1))
    found = {
        "f": drawn(process, random.key(0), np.linspace(-3, 3, 11, dtype=np.float32), 40),
        "g": drawn(network, random.key(2), np.ones((7, 2), np.float32), 40),
    }
    data = to_arviz(found, constant_data={"y": np.asarray(Y)}, coords={"g_output": list("abc")})
    assert data["posterior"]["f"].dims == ("chain", "draw", "f_point")
    assert data["posterior"]["g"].dims == ("chain", "draw", "g_point", "g_output")
    assert data["constant_data"]["f_x"].dims == ("f_point", "f_input")
    assert list(data["posterior"]["g"].coords["g_output"].values) == ["a", "b", "c"]
    np.testing.assert_array_equal(data["posterior"]["f"][0], found["f"].values)
    np.testing.assert_array_equal(data["constant_data"]["f_x"], found["f"].x)
    np.testing.assert_array_equal(data["constant_data"]["y"], Y)
    data.to_netcdf(tmp_path / "functions.nc")
    assert (tmp_path / "functions.nc").stat().st_size > 0


def test_a_guide_of_functions_is_replayed_through_the_model_with_its_likelihood():
    def model(x, y):
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        f = numpyro.sample("f", GaussianProcess(RBF())(x))
        first = numpyro.deterministic("first", f.at[1:].set(0.0))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(f + 0 * first, noise), obs=y)

    def guide(x, y):
        numpyro.sample("noise", dist.LogNormal(numpyro.param("m", -1.0), 0.1))
        numpyro.sample("f", BayesianNetwork(1, 5, key=random.key(0))(x))

    loss = FunctionalELBO(DataNoise(4), GaussianKL(), num_particles=20)
    svi = SVI(model, guide, optax.adam(0.01), loss)
    params = jax.jit(lambda key: svi.get_params(svi.init(key, X, Y)))(random.key(0))
    data = to_arviz(guide, params, model, model_args=(X, Y), num_samples=9)
    f, noise = (np.asarray(data["posterior"][k][0]) for k in ("f", "noise"))
    expected = norm(f, noise[:, None]).logpdf(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"][0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(data["posterior"]["first"][0, :, 0], f[:, 0])
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "row")
    assert np.std(f, axis=0).min() > 0


def test_what_is_no_drawn_function_is_refused():
    process = GaussianProcess(RBF())
    few, many = (drawn(process, random.key(0), X, n) for n in (3, 5))
    with pytest.raises(ValueError, match="as many functions under each name; got {'f': 3, 'g': 5}"):
        to_arviz({"f": few, "g": many})
    with pytest.raises(ValueError, match=r"`source\['f'\]` must be functions.*GaussianProcess"):
        to_arviz({"f": process})
    with pytest.raises(ValueError, match=r"`source\['f'\]` must be functions.*got dict"):
        to_arviz({"f": {"x": X}})
    with pytest.raises(ValueError, match="is empty"):
        to_arviz({})
    with pytest.raises(ValueError, match="need a name"):
        to_arviz(few)
    with pytest.raises(ValueError, match="are for a guide; with drawn functions"):
        to_arviz({"f": few}, model=lambda x: None, model_args=(X,))


def test_points_may_have_labels():
    found = {"f": drawn(GaussianProcess(RBF()), random.key(0), X, 3)}
    years = list(range(1900, 1906))
    data = to_arviz(found, coords={"f_point": years})
    assert list(data["posterior"]["f"].coords["f_point"].values) == years
    with pytest.raises(ValueError, match="6 labels; got 2"):
        to_arviz(found, coords={"f_point": [1, 2]})
