"""Kernel networks: layers, covariance for any weights, start from data, complex primitives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from implicitppl.kernels import (
    RBF,
    Activation,
    Constant,
    Cosine,
    Kernel,
    Linear,
    Matern52,
    NeuralKernelNetwork,
    NonNegativeLinear,
    Periodic,
    PlaneWave,
    ProductLayer,
    RationalQuadratic,
    White,
    constrain,
    parameters,
    unconstrain,
)

KEY = jax.random.key(0)


def _points(num: int = 12, dims: int = 3, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, dims)), jnp.result_type(float))


def _primitives() -> tuple[Kernel, ...]:
    return (
        Linear(0.3),
        RBF(0.8),
        RationalQuadratic(0.5, mixture=0.2),
        Periodic(1.2, period=1.5),
        Cosine(jnp.array([0.3, -0.2, 0.1])),
        Matern52(1.5),
    )


def _network(key: jax.Array = KEY) -> NeuralKernelNetwork:
    return NeuralKernelNetwork.from_widths(_primitives(), (8, 4), key=key)


def _dense(num_inputs: int, *rows: list[float]) -> NonNegativeLinear:
    weight = jnp.asarray(rows, jnp.result_type(float)).reshape(-1, num_inputs)
    return NonNegativeLinear(weight, jnp.zeros(len(rows)))


def test_a_network_is_what_its_algebra_says():
    with jax.enable_x64(True):
        first, second, X, Y = RBF(0.7), Matern52(1.3), _points(), _points(7, seed=1)
        weight, bias = jnp.array([[2.0, 0.5], [1.0, 3.0]]), jnp.array([0.1, 0.2])
        layers = (NonNegativeLinear(weight, bias), ProductLayer(), _dense(1, [4.0]))
        k = NeuralKernelNetwork((first, second), layers)
        left = 2.0 * first + 0.5 * second + Constant(0.1)
        expected = 4.0 * (left * (first + 3.0 * second + Constant(0.2)))

        @jax.jit
        def values(X, Y):
            return [(f.gram(X, Y), f.gram(X), f.diag(X), f(X[0], Y[0])) for f in (k, expected)]

        for own, algebra in zip(*values(X, Y), strict=True):
            np.testing.assert_allclose(own, algebra, rtol=1e-13)


def test_gram_and_diag_agree_with_the_kernel_on_points(precision):
    k, X, Y = _network(), _points(5), _points(4, seed=1)
    point = jax.jit(lambda x, y: k(x, y))
    slow = [[float(point(x, y)) for y in np.asarray(Y)] for x in np.asarray(X)]
    gram, square, diag = jax.jit(lambda X, Y: (k.gram(X, Y), k.gram(X), k.diag(X)))(X, Y)
    tol = 50 * float(jnp.finfo(precision).eps)
    assert gram.dtype == precision
    np.testing.assert_allclose(gram, slow, atol=tol)
    np.testing.assert_allclose(diag, np.diagonal(square), rtol=tol)


def test_diag_is_the_diagonal_of_gram_and_white_noise_stays_there():
    with jax.enable_x64(True):
        X = _points(300)  # several tiles
        k = NeuralKernelNetwork.from_widths((*_primitives(), White(0.5)), (4,), key=KEY)
        matrices = jax.jit(lambda X: (k.diag(X), k.gram(X), k.gram(X, X)))
        diag, gram, cross = (np.asarray(part) for part in matrices(X))
        np.testing.assert_allclose(diag, np.diagonal(gram), rtol=1e-12)
        excess = gram - cross
        np.testing.assert_allclose(excess - np.diag(np.diagonal(excess)), 0, atol=1e-13)
        assert np.min(np.diagonal(excess)) > 0.01


def _smallest_eigenvalue(gram: jax.Array) -> jax.Array:
    """The smallest eigenvalue over the largest."""
    values = jnp.linalg.eigvalsh(gram)
    return values[0] / jnp.max(jnp.abs(values))


def _random_weights(k: NeuralKernelNetwork, key: jax.Array) -> NeuralKernelNetwork:
    """The network with weights and biases over four orders of magnitude."""
    layers = [
        NonNegativeLinear(
            10.0 ** jax.random.uniform(a, jnp.shape(layer.weight), minval=-3, maxval=1),
            10.0 ** jax.random.uniform(b, jnp.shape(layer.bias), minval=-3, maxval=1),
        )
        if isinstance(layer, NonNegativeLinear)
        else layer
        for layer, (a, b) in zip(k.layers, jax.random.split(key, (len(k.layers), 2)), strict=True)
    ]
    return NeuralKernelNetwork(k.primitives, layers, k.names)


def test_gram_is_positive_semi_definite_for_any_weights():
    with jax.enable_x64(True):
        X, start = _points(20), _network()

        @jax.jit
        @jax.vmap
        def smallest(key: jax.Array) -> jax.Array:
            return _smallest_eigenvalue(_random_weights(start, key).gram(X))

        assert np.min(smallest(jax.random.split(KEY, 1000))) >= -1e-10
        # Power: a negative weight is seen.
        broken = jax.jit(
            lambda X: _smallest_eigenvalue(RBF(0.8).gram(X) - 0.9 * Matern52(0.8).gram(X))
        )
        assert float(broken(X)) < -1e-3


@pytest.mark.parametrize(
    "activation", [Activation("exp"), Activation("cosh"), Activation("power", 0.5, 3)]
)
def test_power_series_keep_covariances(activation):
    with jax.enable_x64(True):
        X = _points(20)
        layers = (_dense(2, [1.0, 0.5]), activation)
        k = NeuralKernelNetwork((Linear(0.2), RBF(0.5)), layers)
        assert float(_smallest_eigenvalue(k.gram(X))) > -1e-12
        inner = Linear(0.2).gram(X) + 0.5 * RBF(0.5).gram(X)
        closed = {"exp": jnp.exp, "cosh": jnp.cosh, "power": lambda h: (0.5 + h) ** 3}
        np.testing.assert_allclose(k.gram(X), closed[activation.name](inner), rtol=1e-12)


def test_a_network_of_rbf_and_cosine_reproduces_spectral_mixtures_up_to_its_smallest_weights():
    # sum_q w_q exp(-r_q^2/2) cos(2 pi mu_q.(x-y)) = Linear(2Q, 2Q), products, Linear(Q, 1).
    with jax.enable_x64(True):
        rng, X = np.random.default_rng(0), _points(40, 4)
        gaussians = [RBF(jnp.asarray(rng.uniform(0.5, 2, 4))) for _ in range(3)]
        cosines = [Cosine(jnp.asarray(rng.normal(size=4))) for _ in range(3)]
        w = [0.5, 1.0, 2.0]

        @jax.jit
        def mixture(X):
            return sum(w[q] * gaussians[q].gram(X) * cosines[q].gram(X) for q in range(3))

        target = np.asarray(mixture(X))
        primitives = [k for pair in zip(gaussians, cosines, strict=True) for k in pair]

        gram = eqx.filter_jit(lambda k, X: k.gram(X))

        def error(eps: float) -> float:
            first = NonNegativeLinear(np.eye(6) + eps * (1 - np.eye(6)), np.full(6, eps))
            last = NonNegativeLinear(np.array([w]), np.full(1, eps))
            k = NeuralKernelNetwork(primitives, (first, ProductLayer(), last))
            return float(np.max(np.abs(gram(k, X) - target)))

        assert error(0.0) < 1e-14
        assert error(1e-3) / 1e-3 == pytest.approx(error(1e-6) / 1e-6, rel=0.05)
        assert error(1e-6) / 1e-6 > 1  # the ratio above does not compare rounding


def test_parameters_are_positive_and_learning_leaves_them_so():
    k = _network()
    found = parameters(k)
    weights = [name for name, row in found.items() if row.kind in ("weight", "bias")]
    assert len(weights) == 6 and "layers[0].weight" in weights
    assert all(found[name].is_positive for name in weights)
    moved = constrain(jax.tree.map(lambda leaf: leaf - 3.0, unconstrain(k)))
    assert all(
        bool(jnp.all(row.value > 0)) for row in parameters(moved).values() if row.is_positive
    )
    X = _points()
    gram = eqx.filter_jit(lambda k, X: k.gram(X))
    np.testing.assert_allclose(gram(constrain(unconstrain(k)), X), gram(k, X), rtol=2e-5)


def test_the_published_start():
    layer = NonNegativeLinear.init(4, 5000, key=KEY)
    assert float(jnp.min(layer.weight)) >= 1 / 8 and float(jnp.max(layer.weight)) <= 3 / 8
    standard_error = (1 / 4) / np.sqrt(12) / np.sqrt(20_000)  # of a mean of U(1/8, 3/8)
    assert float(jnp.mean(layer.weight)) == pytest.approx(1 / 4, abs=4 * standard_error)
    np.testing.assert_allclose(layer.bias, 0.01)
    k, other = _network(), _network(jax.random.key(1))
    weights = [row.value for name, row in parameters(k).items() if name.endswith("].weight")]
    assert [w.shape for w in weights] == [(8, 6), (4, 4), (1, 2)]
    assert not np.array_equal(weights[0], parameters(other)["layers[0].weight"].value)


@pytest.mark.parametrize(
    ("primitives", "layers", "message"),
    [
        ((), (), "at least one kernel"),
        ((RBF(), 1.0), (), "must be kernels; got float"),
        ((RBF(), RBF()), (), "one unit; got 2"),
        ((RBF(),) * 3, (ProductLayer(),), r"`layers\[0\]` \(ProductLayer\).*3 units.*`step` = 2"),
        ((RBF(),) * 3, (_dense(2, [1.0, 1.0]),), r"`layers\[0\]`.*2 columns for 3 inputs"),
    ],
)
def test_widths_that_do_not_fit_are_refused(primitives, layers, message, monkeypatch):
    # The type checker looks at one random item of a sequence: users do not have it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        NeuralKernelNetwork(primitives, layers)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`weight` must be non-negative"):
        NonNegativeLinear(jnp.array([[-1.0]]), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"\(outputs, inputs\).*got shapes \(2,\) and \(1,\)"):
        NonNegativeLinear(jnp.ones(2), jnp.zeros(1))
    with pytest.raises(ValueError, match="`step` must be"):
        ProductLayer(0)
    with pytest.raises(ValueError, match="one of exp, cosh, power; got 'tanh'"):
        Activation("tanh")
    with pytest.raises(ValueError, match="`exponent` must be an integer"):
        Activation("power", exponent=0)
    with pytest.raises(ValueError, match="`offset` must be finite"):
        Activation("power", offset=-1.0)
    with pytest.raises(ValueError, match="grouped by `step` = 2"):
        NeuralKernelNetwork.from_widths(_primitives(), (3,), key=KEY)
    with pytest.raises(ValueError, match="2 different names"):
        NeuralKernelNetwork((RBF(), RBF()), (_dense(2, [1.0, 1.0]),), names=("a", "a"))
    with pytest.raises(ValueError, match="last layer must be NonNegativeLinear"):
        NeuralKernelNetwork((RBF(),), (Activation("exp"),)).with_variance(_points())


def test_two_waves_multiply_to_one():
    with jax.enable_x64(True):
        a, b, X = jnp.array([0.3, 0.1, 0.0]), jnp.array([0.2, -0.4, 0.5]), _points(30)
        product = (ProductLayer(),)
        k = NeuralKernelNetwork((PlaneWave(a, 2.0), PlaneWave(b)), product)
        np.testing.assert_allclose(k.gram(X), 2 * Cosine(a + b).gram(X), atol=1e-13)
        np.testing.assert_allclose(k(X[0], X[1]), k.gram(X)[0, 1], atol=1e-13)
        real = NeuralKernelNetwork((Cosine(a, 2.0), Cosine(b)), product).gram(X)
        two = Cosine(a + b).gram(X) + Cosine(a - b).gram(X)
        np.testing.assert_allclose(real, two, atol=1e-13)


def test_complex_networks_are_symmetric_and_positive_semi_definite():
    with jax.enable_x64(True):
        rng, X = np.random.default_rng(0), _points(30)
        waves = [PlaneWave(jnp.asarray(rng.normal(size=3))) for _ in range(3)]
        start = NeuralKernelNetwork.from_widths((*waves, RBF(0.7), Linear(0.3)), (6,), key=KEY)

        @jax.jit
        @jax.vmap
        def worst(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            gram = _random_weights(start, key).gram(X)
            return _smallest_eigenvalue(gram), jnp.max(jnp.abs(gram - gram.T)) / jnp.max(gram)

        smallest, asymmetry = worst(jax.random.split(KEY, 300))
        assert np.min(smallest) >= -1e-10
        assert np.max(asymmetry) < 1e-14
        diag, gram = jax.jit(lambda X: (start.diag(X), start.gram(X)))(X)
        np.testing.assert_allclose(diag, np.diagonal(gram), rtol=1e-12)
        gradient = jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(k.gram(X)))))(start)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradient))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_the_number_of_flat_directions():
    # Sensitivities of k at many pairs to the logarithms of 79 weights and 6 variances.
    with jax.enable_x64(True):
        layers = _network().layers
        values = 10.0 ** jax.random.uniform(KEY, (6, 400), minval=-1.5, maxval=0.5)
        logarithms, restore = ravel_pytree((unconstrain(layers), jnp.zeros(6)))
        assert logarithms.shape == (85,)

        @jax.jit
        @jax.jacfwd
        def sensitivities(logarithms: jax.Array) -> jax.Array:
            layers, log_variances = restore(logarithms)
            h = jnp.exp(log_variances)[:, None] * values
            for layer in constrain(layers):
                h = layer(h)
            return jnp.log(h[0])

        singular = np.linalg.svd(sensitivities(logarithms), compute_uv=False)
        flat = singular < 1e-12 * singular[0]
        assert np.sum(flat) == 22
        assert float(singular[62] / singular[0]) > 1e-10  # and not by a threshold in the middle
