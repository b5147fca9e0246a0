"""Networks of the published experiments: their shapes, and their start from data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import (
    RBF,
    Linear,
    NeuralKernelNetwork,
    NonNegativeLinear,
    Periodic,
    RationalQuadratic,
    nkn_bayesian_optimisation,
    nkn_regression,
    nkn_texture,
    nkn_time_series,
    parameters,
)

KEY = jax.random.key(0)
AXIS = np.linspace(-1.7, 1.7, 40)[:, None]


def _table(num: int, dims: int, seed: int = 0) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=(num, dims))
    return jnp.asarray((x - x.mean(0)) / x.std(0), jnp.result_type(float))


def _shapes(k: NeuralKernelNetwork) -> list[tuple[int, ...]]:
    return [jnp.shape(q.weight) for q in k.layers if isinstance(q, NonNegativeLinear)]


PRESETS = {
    "regression": (lambda: nkn_regression(_table(40, 5), key=KEY), 6, 210),
    "time series": (lambda: nkn_time_series(jnp.asarray(AXIS), key=KEY), 8, 495),
    "texture": (lambda: nkn_texture(jnp.asarray(AXIS), key=KEY), 4, 70),
    "optimisation": (lambda: nkn_bayesian_optimisation(10, key=KEY), 10, 1001),
}


@pytest.mark.parametrize("name", PRESETS)
def test_networks_have_the_published_widths(name):
    build, num_primitives, num_terms = PRESETS[name]
    k = build()
    assert len(k.primitives) == num_primitives
    assert _shapes(k) == [(8, num_primitives), (4, 4), (1, 2)]
    assert k.formula().num_terms == num_terms


def test_primitives_of_regression_start_at_the_published_lengthscales():
    with jax.enable_x64(True):
        x = _table(50, 3)
        pairs = np.triu_indices(50, 1)
        distances = np.abs(np.asarray(x)[:, None] - np.asarray(x)[None])[pairs]
        scale = np.sqrt(3) * np.median(distances, axis=0)
        a, b, rbf, wide, low, high = nkn_regression(x, key=KEY).primitives
        for linear in (a, b):
            assert isinstance(linear, Linear)
            np.testing.assert_allclose(linear.variance, np.full(3, 1 / 3), rtol=1e-12)
        for kernel, family, factor in (
            (rbf, RBF, 1 / 6),
            (wide, RBF, 2 / 3),
            (low, RationalQuadratic, 1 / 3),
            (high, RationalQuadratic, 1 / 3),
        ):
            assert isinstance(kernel, family)
            np.testing.assert_allclose(kernel.lengthscale, factor * scale, rtol=1e-12)
        mixtures = [parameters(kernel)["mixture"].value for kernel in (low, high)]
        np.testing.assert_allclose(mixtures, [0.1, 1.0])


def test_periodic_primitives_are_those_of_the_paper():
    with jax.enable_x64(True):
        x = jnp.asarray(AXIS)
        k = nkn_time_series(x, key=KEY)
        length = float(np.median(np.abs(AXIS - AXIS.T)[np.triu_indices(40, 1)]))
        for kernel, scale in ((k.primitives[1], length), (k.primitives[7], length / 4)):
            assert isinstance(kernel, Periodic)
            sine = np.sin(np.pi * (AXIS - AXIS.T) / scale)
            gram = jax.jit(lambda x, kernel=kernel: kernel.gram(x))(x)
            np.testing.assert_allclose(gram, np.exp(-0.5 * sine**2 / scale**2), atol=1e-12)


@pytest.mark.parametrize("dims", [1, 4, 8, 13, 90])
def test_the_mean_variance_at_the_start_is_near_one_before_it_is_one(dims):
    with jax.enable_x64(True):
        x = _table(200, dims)
        k = nkn_regression(x, key=KEY)
        assert float(jnp.mean(k.diag(x))) == pytest.approx(1, abs=1e-6)
        twice = nkn_regression(x, key=KEY, variance=2.0)
        assert float(jnp.mean(twice.diag(x))) == pytest.approx(2, abs=1e-6)

        @jax.jit
        @partial(jax.vmap, in_axes=(0, None))
        def unscaled(key: jax.Array, variance: float) -> jax.Array:
            primitives = (Linear(variance), Linear(variance), *k.primitives[2:])
            network = NeuralKernelNetwork.from_widths(primitives, (8, 4), key=key)
            return jnp.mean(network.diag(x))

        keys = jax.random.split(KEY, 50)
        assert 0.5 <= float(jnp.mean(unscaled(keys, 1 / dims))) <= 4
        if dims >= 8:  # what 1/D repairs
            assert float(jnp.mean(unscaled(keys, 1.0))) > 100


def test_units_of_the_inputs_do_not_matter():
    with jax.enable_x64(True):
        x = _table(60, 4)
        gram = nkn_regression(x, key=KEY).gram(x)
        for unit in (1e-9, 1e6):
            np.testing.assert_allclose(
                nkn_regression(unit * x, key=KEY).gram(unit * x), gram, rtol=1e-9
            )


def test_columns_that_hardly_vary():
    with jax.enable_x64(True):
        x = _table(100, 4)
        rare = jnp.where(jnp.arange(100) < 5, 4.0, -0.2)  # more than half of the pairs coincide
        x = x.at[:, 1].set(3.7).at[:, 2].set(rare).at[:, 3].set(0.0)
        k = nkn_regression(x, key=KEY)
        lengthscale = 6 * parameters(k.primitives[2])["lengthscale"].value
        expected = [1.0, float(jnp.std(rare)), 1.0]
        np.testing.assert_allclose(lengthscale[1:], expected, rtol=1e-12)
        gradient = jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(k.gram(x)))))(k)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
        assert np.isfinite(nkn_regression(jnp.zeros((5, 2)), key=KEY).gram(x[:, :2])).all()


def test_unusable_inputs_are_refused():
    x = _table(10, 2)
    with pytest.raises(ValueError, match="`x` must be finite; 1 values are not"):
        nkn_regression(x.at[3, 1].set(jnp.nan), key=KEY)
    with pytest.raises(ValueError, match=r"`x` must be \(N, 1\).*got shape \(10, 2\)"):
        nkn_time_series(x, key=KEY)
    with pytest.raises(ValueError, match=r"`x` must be \(N, D\) with N >= 2; got shape \(1, 2\)"):
        nkn_regression(x[:1], key=KEY)
    with pytest.raises(ValueError, match="`num_dims` must be at least 1; got 0"):
        nkn_bayesian_optimisation(0, key=KEY)
    with pytest.raises(ValueError, match="`variance` must be positive"):
        nkn_regression(x, key=KEY, variance=0.0)
