"""What a kernel declares: names, kinds, the map to unconstrained values and back."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import (
    RBF,
    Cosine,
    Kernel,
    Matern32,
    Periodic,
    SpectralMixture,
    constrain,
    parameters,
    positive,
    real,
    unconstrain,
)
from implicitppl.kernels._parameters import as_arrays
from tests.helpers import assert_compiles_once, compilations


class Weighted(Kernel):
    """A kernel of one's own: several kernels, weights, a shift and structure."""

    parts: tuple[Any, ...]
    by_name: dict[str, Kernel]
    weights: jax.Array = positive(kind="weight")
    shift: float = real(0.0, kind="bias")
    power: int = eqx.field(default=2, static=True)

    def __call__(self, x, y):
        values = [part(x, y) for part in (*self.parts, *self.by_name.values())]
        return jnp.dot(self.weights, jnp.stack(values)) ** self.power


class Warped(Kernel):
    """A kernel of features that a network makes of the points."""

    network: eqx.nn.MLP
    kernel: RBF

    def __call__(self, x, y):
        return self.kernel(self.network(x), self.network(y))


class Undeclared(Kernel):
    """A number that no declaration describes."""

    width: Any = 1.0

    def __call__(self, x, y):
        return jnp.exp(-jnp.sum(jnp.square(x - y)) / self.width)


def weighted() -> Weighted:
    return Weighted((RBF(0.5), Cosine(-2.0)), {"slow": Matern32(3.0).on(1)}, jnp.array([1.0, 2, 3]))


def test_names_are_paths_and_kinds_are_declared():
    found = parameters(weighted())
    assert {name: (p.kind, p.is_positive) for name, p in found.items()} == {
        "parts[0].lengthscale": ("lengthscale", True),
        "parts[0].variance": ("variance", True),
        "parts[1].frequency": ("frequency", False),
        "parts[1].variance": ("variance", True),
        "by_name['slow'].kernel.lengthscale": ("lengthscale", True),
        "by_name['slow'].kernel.variance": ("variance", True),
        "weights": ("weight", True),
        "shift": ("bias", False),
    }
    assert float(found["parts[1].frequency"].value) == -2.0
    assert found["weights"].value.shape == (3,)
    nested = 2.0 * (RBF() + Periodic() * RBF()).on((0, 2))
    assert list(parameters(nested)) == [
        "kernel.kernel.first.lengthscale",
        "kernel.kernel.first.variance",
        "kernel.kernel.second.first.lengthscale",
        "kernel.kernel.second.first.variance",
        "kernel.kernel.second.first.period",
        "kernel.kernel.second.second.lengthscale",
        "kernel.kernel.second.second.variance",
        "scale",
    ]


def test_unconstrained_values_are_logarithms_of_what_is_positive():
    free = unconstrain(weighted())
    assert float(free.parts[0].lengthscale) == pytest.approx(np.log(0.5))
    assert float(free.parts[1].frequency) == -2.0 and float(free.shift) == 0.0
    np.testing.assert_allclose(free.weights, np.log([1, 2, 3]), rtol=1e-6)
    assert free.power == 2


def test_round_trip_keeps_values_and_structure():
    kernel = as_arrays(weighted())
    back = constrain(unconstrain(kernel))
    assert str(jax.tree.structure(back)) == str(jax.tree.structure(kernel))
    for leaf, expected in zip(jax.tree.leaves(back), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_every_unconstrained_value_gives_a_kernel_that_can_be_learned():
    @jax.jit
    def loss(free, X):
        return jnp.sum(jnp.sin(constrain(free).gram(X)))

    free = jax.tree.map(lambda leaf: leaf - 1.5, unconstrain(weighted()))
    gradient = jax.grad(loss)(free, jnp.arange(6.0).reshape(3, 2))
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == 8 and all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
    assert any(bool(jnp.any(leaf != 0)) for leaf in leaves)


def test_a_number_without_a_declaration_is_refused():
    message = (
        r"field `width` of Undeclared holds numbers and does not say which: declare it with "
        r"`ip.kernels.positive\(..., kind=...\)` or `ip.kernels.real\(..., kind=...\)`, or make it "
        r"static with `eqx.field\(static=True\)`."
    )
    for use in (parameters, unconstrain, constrain):
        with pytest.raises(ValueError, match=message):
            use(RBF() + Undeclared())
    assert as_arrays(Undeclared()).width.shape == ()  # which needs no declaration


def test_the_weights_of_a_network_inside_a_kernel_are_real(key):
    network = eqx.nn.MLP(2, 1, 3, 1, key=key)
    kernel = Warped(network, RBF(0.5))
    found = parameters(kernel)
    weights = {name for name in found if name.startswith("network")}
    assert weights == {f"network.layers[{i}].{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert all(found[name].kind == "weight" and not found[name].is_positive for name in weights)
    free = unconstrain(kernel)
    np.testing.assert_array_equal(free.network.layers[0].weight, network.layers[0].weight)
    np.testing.assert_allclose(free.kernel.lengthscale, np.log(0.5), rtol=1e-6)


def test_lists_and_numbers_become_arrays():
    kernel = as_arrays(SpectralMixture([1, 2], [[1], [2]], [[1], [1]]) + RBF(1))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(kernel))
    assert parameters(RBF(2))["lengthscale"].value.dtype == jnp.float32


def test_arrays_need_no_new_program_for_new_values():
    X = jnp.ones((3, 2))
    first, second = as_arrays(RBF(0.5)), as_arrays(RBF(0.7))
    gram = eqx.filter_jit(lambda kernel, X: kernel.gram(X))
    assert_compiles_once(gram, (first, X), (second, X))
    jax.block_until_ready(gram(RBF(0.9), X))
    with compilations() as names:  # a Python number is part of the structure
        jax.block_until_ready(gram(RBF(1.1), X))
    assert names


def test_the_path_of_an_optimiser_does_not_depend_on_units():
    """Gradients of the unconstrained values are those of relative changes, in metres or in km."""
    X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1)), jnp.float32)

    def slope(map_back, start, scale: float) -> jax.Array:
        slopes = jax.jit(jax.grad(lambda free: jnp.sum(map_back(free).gram(scale * X))))(start)
        return slopes.lengthscale

    metres, kilometres = RBF(jnp.array(500.0)), RBF(jnp.array(0.5))
    steps = [
        slope(constrain, unconstrain(kernel), scale)
        for kernel, scale in ((metres, 1000.0), (kilometres, 1.0))
    ]
    assert float(steps[0]) == pytest.approx(float(steps[1]), rel=1e-4)
    direct = [  # while those of the lengthscales themselves do
        slope(lambda kernel: kernel, as_arrays(kernel), scale)
        for kernel, scale in ((metres, 1000.0), (kilometres, 1.0))
    ]
    assert float(direct[1]) == pytest.approx(1000 * float(direct[0]), rel=1e-4)
