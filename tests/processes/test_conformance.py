"""What every process promises: one row each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from implicitppl.distributions import ImplicitDensityError
from implicitppl.gp import GaussianProcess
from implicitppl.kernels import RBF, Matern32
from implicitppl.processes import (
    AbstractGaussianProcess,
    BayesianNetwork,
    FeatureProcess,
    ImplicitProcess,
    LinearizedNetwork,
    NetworkEnsemble,
    NoiseNetwork,
    PiecewiseConstant,
    PiecewiseLinear,
    Process,
    RandomFeatures,
    RandomPeriodic,
    check_coherent,
    from_model,
    stack,
)
from tests.helpers import assert_compiles_once

KEY = jax.random.key(0)


class Curve(eqx.Module):
    scale: jax.Array

    def __call__(self, key, x):
        noise = jax.random.normal(key, (2,), x.dtype)
        return self.scale * noise * jnp.concatenate([x, x**2], axis=1)


def wave(x):
    return jnp.sin(numpyro.sample("rate", dist.Exponential(1.0)) * x[:, 0])


def gp() -> GaussianProcess:
    return GaussianProcess(Matern32(0.7), 0.5)


def posterior() -> GaussianProcess:
    return gp().condition(jnp.array([0.1, 0.6]), jnp.array([1.0, -1.0]), 0.1)


def features() -> FeatureProcess:
    return FeatureProcess(RandomFeatures.from_kernel(RBF(0.3), 1, 8, key=KEY))


PROCESSES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "gaussian": (gp, ()),
    "posterior": (posterior, ()),
    "gaussian sum": (lambda: posterior() + features(), ()),
    "features": (features, ()),
    "scaled features": (lambda: 2.0 * features(), ()),
    "stack of gaussians": (lambda: stack([gp(), features()]), (2,)),
    "network": (lambda: BayesianNetwork(1, 4, key=KEY), ()),
    "network prior": (lambda: BayesianNetwork.prior(1, 4, out_size=3, activation=jnp.tanh), (3,)),
    "linearised network": (lambda: LinearizedNetwork(BayesianNetwork(1, 4, key=KEY)), ()),
    "noise network": (lambda: NoiseNetwork(1, 2, 4, key=KEY), ()),
    "ensemble": (lambda: NetworkEnsemble(3, 1, 4, key=KEY), ()),
    "sampler": (lambda: ImplicitProcess(Curve(jnp.array(2.0))), (2,)),
    "model": (lambda: from_model(wave), ()),
    "piecewise constant": (PiecewiseConstant, ()),
    "piecewise linear": (PiecewiseLinear, ()),
    "periodic": (RandomPeriodic, ()),
    "sum": (lambda: gp() + PiecewiseConstant(), ()),
    "multiple": (lambda: 3.0 * RandomPeriodic(), ()),
    "stack": (lambda: stack([RandomPeriodic(), gp()]), (2,)),
}

FAST = {"gaussian", "features", "network", "sampler", "model", "piecewise constant", "sum"}
SLOW = {"posterior", "stack of gaussians", "ensemble", "piecewise linear"}
"""Rows of the slow tests; the others differ little from one of these and are run by all tests."""


def marks(name: str) -> list[Any]:
    if name in FAST:
        return []
    return [pytest.mark.slow if name in SLOW else pytest.mark.exhaustive]


each_process = pytest.mark.parametrize(
    ("make", "outputs"),
    [pytest.param(*row, id=name, marks=marks(name)) for name, row in PROCESSES.items()],
)


def points(size: int = 4) -> jax.Array:
    return jnp.linspace(0.05, 0.95, size)[:, None]


@each_process
def test_shapes_precision_and_density(make, outputs, precision):
    process, x = make(), points()
    assert isinstance(process, Process)
    values = process(x)
    assert values.event_shape == (4, *outputs) and values.batch_shape == ()
    assert values.x.shape == (4, 1) and type(values.process) is type(process)

    @eqx.filter_jit
    def drawn(process, x):
        sample, single = process.sample(KEY, x, 3), process.sample(KEY, x[:, 0], 1)
        return sample, single, process.draw(KEY, 3)(x)

    sample, single, draws = drawn(process, x)
    assert sample.shape == (3, 4, *outputs)
    assert single.dtype == precision
    assert draws.shape == (3, 4, *outputs) and draws.dtype == precision
    parts = process.processes if hasattr(process, "processes") else (process,)
    if all(isinstance(part, AbstractGaussianProcess) for part in parts):
        log_prob = jax.jit(lambda values, draws: values.log_prob(draws))
        assert np.all(np.isfinite(log_prob(values, draws)))
    else:
        assert not values.has_density
        with pytest.raises(ImplicitDensityError, match=f"`{type(process).__name__}`"):
            values.log_prob(draws)


@each_process
def test_draws_are_functions(make, outputs):
    check_coherent(make(), points(), key=KEY, num_samples=3)
    process, x = make(), points()
    np.testing.assert_array_equal(process.draw(KEY, 3)(x), process.draw(KEY, 3)(x))
    if process.has_weight_space:
        superset = jnp.concatenate([points(5), x])
        again = np.asarray(process.draw(KEY, 3)(superset))[:, 5:]
        np.testing.assert_allclose(again, process.draw(KEY, 3)(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(process.sample(KEY, x, 3), process.draw(KEY, 3)(x), rtol=1e-5)


@each_process
def test_compiles_once_and_maps_over_keys(make, outputs):
    process = make()
    keys = list(jax.random.split(KEY, 3))
    draw = eqx.filter_jit(lambda process, key, x: process.draw(key, 2)(x))
    assert_compiles_once(draw, (process, keys[0], points()), (process, keys[1], points() * 1))
    mapped = jax.jit(jax.vmap(lambda key: process.draw(key, 2)(points())))(jnp.stack(keys))
    alone = [draw(process, key, points()) for key in keys]
    np.testing.assert_allclose(mapped, alone, rtol=1e-4, atol=1e-4)


@each_process
def test_values_cross_jit_and_survive_flattening(make, outputs):
    values = make()(points())
    again = jax.tree.unflatten(*jax.tree.flatten(values)[::-1])
    assert again.event_shape == values.event_shape
    expected = values.sample(KEY, (3,))
    np.testing.assert_array_equal(again.sample(KEY, (3,)), expected)
    returned = jax.jit(lambda v: v)(values)
    np.testing.assert_array_equal(returned.sample(KEY, (3,)), expected)


@each_process
def test_slopes_are_finite_and_reach_the_parameters(make, outputs):
    def total(process):
        return jnp.sum(process.draw(KEY, 3)(points()) ** 2)

    process = make()
    slopes = [
        np.asarray(s) for s in jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(total))(process))
    ]
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    assert process.__class__.__name__ == "ModelProcess" or any(np.any(s != 0) for s in slopes)
