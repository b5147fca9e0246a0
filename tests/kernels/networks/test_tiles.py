"""Matrices in tiles equal those computed at once, with their derivatives."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from implicitppl.kernels import RBF, Linear, Matern12, NeuralKernelNetwork, RationalQuadratic
from implicitppl.kernels._networks import tiles as tiles
from tests.helpers import assert_compiles_once

KEY = jax.random.key(0)


def _points(num: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 3)), jnp.result_type(float))


def _network() -> NeuralKernelNetwork:
    primitives = (Linear(0.3), RBF(jnp.array([0.7, 1.0, 2.0])), RationalQuadratic(0.5))
    return NeuralKernelNetwork.from_widths(primitives, (4,), key=KEY)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SIDE", 8)


def _close(found: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.max(np.abs(b))))


@pytest.mark.parametrize("size", [16, 37])
def test_symmetric_tiles_equal_the_whole(size, small_tiles):
    with jax.enable_x64(True):
        X, C = _points(size), jnp.asarray(np.random.default_rng(1).normal(size=(size, size)))
        network = _network()

        def in_tiles(k: NeuralKernelNetwork, X: jax.Array) -> jax.Array:
            return jnp.sum(C * tiles.symmetric_in_tiles(k._tile, X))

        def whole(k: NeuralKernelNetwork, X: jax.Array) -> jax.Array:
            return jnp.sum(C * k._tile(X, None))

        gram = np.asarray(eqx.filter_jit(tiles.symmetric_in_tiles)(network._tile, X))
        _close(gram, eqx.filter_jit(network._tile)(X, None), 1e-13)
        np.testing.assert_array_equal(gram[:8, 8:], gram[8:, :8].T)
        _close(
            jax.jit(jax.value_and_grad(in_tiles, (0, 1)))(network, X),
            jax.jit(jax.value_and_grad(whole, (0, 1)))(network, X),
            1e-10,
        )


def test_second_and_forward_derivatives_go_through_tiles(small_tiles):
    with jax.enable_x64(True):
        X = _points(19)
        network = _network()
        flat, restore = ravel_pytree(network)
        direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape))

        @partial(jax.jit, static_argnums=0)
        def derivatives(in_tiles: bool) -> Any:
            def value(flat: jax.Array) -> jax.Array:
                k = restore(flat)
                gram = tiles.symmetric_in_tiles(k._tile, X) if in_tiles else k._tile(X, None)
                return jnp.sum(jnp.sin(gram))

            return jax.jvp(value, (flat,), (direction,)), jax.jvp(
                jax.grad(value), (flat,), (direction,)
            )

        _close(derivatives(True), derivatives(False), 1e-9)


@pytest.mark.parametrize("shape", [(3, 7), (21, 37), (2, 300)])
def test_rectangular_tiles_equal_the_whole(shape, small_tiles):
    with jax.enable_x64(True):
        X, Y = _points(shape[0]), _points(shape[1], 1)
        network = _network()
        C = jnp.asarray(np.random.default_rng(1).normal(size=shape))

        def in_tiles(k: NeuralKernelNetwork) -> jax.Array:
            return jnp.sum(C * tiles.rectangular_in_tiles(k._tile, X, Y))

        found = eqx.filter_jit(tiles.rectangular_in_tiles)(network._tile, X, Y)
        _close(found, eqx.filter_jit(network._tile)(X, Y), 1e-13)
        expected = jax.jit(jax.grad(lambda k: jnp.sum(C * k._tile(X, Y))))(network)
        _close(jax.jit(jax.grad(in_tiles))(network), expected, 1e-10)


def test_gram_of_a_network_in_tiles_of_the_usual_size():
    with jax.enable_x64(True):
        X = _points(2 * tiles.SIDE + 5)
        network = _network()
        gram, whole = eqx.filter_jit(network.gram), eqx.filter_jit(network._tile)
        _close(gram(X), whole(X, None), 1e-13)
        _close(gram(X, X[:3]), whole(X, X[:3]), 1e-13)


def test_derivatives_are_finite_where_rows_coincide(small_tiles, precision):
    X = _points(30)
    X = X.at[20:].set(X[:10])  # in the same tile as the original, and in others
    k = NeuralKernelNetwork.from_widths((RBF(0.5), Matern12(0.5)), (4,), key=KEY)

    def value(k: NeuralKernelNetwork, X: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(tiles.symmetric_in_tiles(k._tile, X)))

    gram = eqx.filter_jit(tiles.symmetric_in_tiles)(k._tile, X)
    assert gram.dtype == precision
    np.testing.assert_allclose(np.diagonal(gram), k.diag(X), rtol=1e-5)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(value, (0, 1)))(k, X)):
        assert leaf.dtype == precision
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_new_weights_and_points_compile_nothing():
    first, second = _points(300), _points(300, 1)
    k = NeuralKernelNetwork.from_widths((RBF(0.5), Matern12(0.7)), (4,), key=KEY)
    other = NeuralKernelNetwork.from_widths((RBF(0.6), Matern12(0.9)), (4,), key=jax.random.key(1))
    assert_compiles_once(lambda k, X: k.gram(X), (k, first), (other, second))
