"""Silent wrong answers, refused: each message names the site and the way out."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions.transforms import AffineTransform
from numpyro.infer import SVI

from implicitppl.distributions import Implicit
from implicitppl.divergences import GaussianKL
from implicitppl.gp import GaussianProcess
from implicitppl.infer import FunctionalELBO
from implicitppl.kernels import RBF
from implicitppl.processes import BayesianNetwork, ImplicitProcess
from implicitppl.score import SSGE

X = jnp.linspace(-1, 1, 12)[:, None]
Y = X[:, 0] ** 2
GP = GaussianProcess(RBF())
NETWORK = BayesianNetwork(1, 4, key=jax.random.key(0))


def model(x, y):
    f = numpyro.sample("f", GP(x))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def guide(x, y):
    numpyro.sample("f", NETWORK(x))


def subsampled(x, y):
    with numpyro.plate("data", 12, subsample_size=4) as rows:
        pass
    f = numpyro.sample("f", GP(x))
    with numpyro.plate("data", 12, subsample_size=4):
        numpyro.sample("y", dist.Normal(f[rows], 0.1), obs=y[rows])


def in_plate(x, y):
    with numpyro.plate("data", 12):
        f = numpyro.sample("f", GP(x))
        numpyro.sample("y", dist.Normal(f[0], 0.1), obs=y)


def guide_in_plate(x, y):
    with numpyro.plate("data", 12):
        numpyro.sample("f", NETWORK(x))


def latent_prior(x, y):
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    f = numpyro.sample("f", GaussianProcess(RBF(length))(x))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def latent_guide(x, y):
    numpyro.sample("length", dist.LogNormal(0.0, 0.1))
    numpyro.sample("f", NETWORK(x))


def other_name(x, y):
    numpyro.sample("g", NETWORK(x))


def no_function(x, y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(loc, 0.1).expand([12]).to_event(1), obs=y)


def plain_guide(x, y):
    numpyro.sample("loc", dist.Normal(0.0, 1.0))


def noisy(x, y):
    f = numpyro.sample("f", GP(x, noise_scale=0.1))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def fewer_rows(x, y):
    numpyro.sample("f", NETWORK(x[:5]))


def with_implicit(x, y):
    numpyro.sample("w", dist.Normal(0.0, 1.0))
    model(x, y)


def implicit_guide(x, y):
    numpyro.sample("w", Implicit(lambda key: jax.random.normal(key)))
    guide(x, y)


def discrete(x, y):
    numpyro.sample("k", dist.Bernoulli(0.5))
    model(x, y)


def discrete_guide(x, y):
    numpyro.sample("k", dist.Bernoulli(0.5))
    guide(x, y)


def two_outputs(x, y):
    numpyro.sample("f", BayesianNetwork(1, 4, out_size=2, key=jax.random.key(0))(x))


def transformed(x, y):
    f = numpyro.sample("f", dist.TransformedDistribution(GP(x), AffineTransform(2.0, 3.0)))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def expanded_guide(x, y):
    numpyro.sample("f", NETWORK(x).expand([3]).to_event(1))


def masked(x, y):
    with numpyro.handlers.mask(mask=False):
        f = numpyro.sample("f", GP(x))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def latent_in_closure(x, y):
    a = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    f = numpyro.sample("f", GaussianProcess(RBF(), mean=lambda point: a * point[0])(x))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def latent_in_sampler(x, y):
    a = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    f = numpyro.sample("f", ImplicitProcess(lambda key, x: a * jax.random.normal(key) * x[:, 0])(x))
    numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model, guide, message",
    [
        (subsampled, guide, r"subsamples plate 'data' \(4 of 12 rows\) and the guide has no such"),
        (in_plate, guide, r"Function site 'f' stands inside plate \['data'\]"),
        (model, guide_in_plate, r"Function site 'f' stands inside plate \['data'\]"),
        (latent_prior, latent_guide, "depend on a latent variable"),
        (model, other_name, "'f' is a function that the guide does not draw; .* \\['g'\\]"),
        (no_function, plain_guide, "neither model nor guide draws a function"),
        (
            no_function,
            guide,
            r"must draw the same functions; .* \[\], the guide \['f'\]",
        ),
        (noisy, guide, "'f' is latent and has `noise_scale`"),
        (model, fewer_rows, r"inputs of different shapes, \(5, 1\) and \(12, 1\)"),
        (with_implicit, implicit_guide, "'w' is implicit and no function"),
        (discrete, discrete_guide, "'k' is latent and discrete"),
        (model, two_outputs, r"has values of shape \(12, 2\)"),
        (transformed, guide, "'f' is a process inside TransformedDistribution"),
        (model, expanded_guide, "'f' is a process inside Independent"),
        (masked, guide, "'f' is a process inside MaskedDistribution"),
        (latent_in_closure, latent_guide, "depend on a latent variable"),
        (latent_in_sampler, latent_guide, "depend on a latent variable"),
    ],
    ids=[
        "plate not in the guide",
        "function in a plate",
        "guide's function in a plate",
        "prior depends on a latent",
        "names",
        "no function",
        "guide only",
        "noise",
        "rows",
        "implicit",
        "discrete",
        "outputs",
        "transformed",
        "expanded",
        "masked",
        "closure over a latent",
        "sampler over a latent",
    ],
)
def test_what_would_be_silently_wrong_is_refused(model, guide, message):
    loss = FunctionalELBO(num_particles=3, noise=0.1)
    with pytest.raises(ValueError, match=message):
        loss.loss(jax.random.key(0), {}, model, guide, X, Y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_particles": 1}, "`num_particles` must be at least 2"),
        ({"weight": "1/B"}, "`weight` must be a number or 'N/B'"),
        ({"weight": -1.0}, "`weight` must be"),
        ({"divergence": "kl"}, "`divergence` must be one of"),
        ({"divergence": "gaussian", "estimator": SSGE()}, "`estimator` is for the divergence"),
        ({"measurement": "box"}, "`measurement` must be a function or None"),
        ({"noise": 0.0}, "`noise` must be positive"),
        ({"noise": 0.1, "divergence": GaussianKL(0.2)}, "`noise` is not for GaussianKL"),
        ({"noise": 0.1, "divergence": "regularized"}, "`noise` is not for 'regularized'"),
    ],
    ids=[
        "particles",
        "weight",
        "negative",
        "divergence",
        "estimator",
        "measurement",
        "noise",
        "noise beside an object",
        "noise of the regularised",
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FunctionalELBO(**options)


def test_inputs_of_other_coordinates_are_refused_by_measurement():
    loss = FunctionalELBO(lambda key, x: jnp.zeros((3, 2)), num_particles=3)
    svi = SVI(model, guide, optax.adam(1e-3), loss)
    state = svi.init(jax.random.key(0), X, Y)
    with pytest.raises(ValueError, match=r"`measurement` must return \(M, 1\) points"):
        svi.update(state, X, Y)
