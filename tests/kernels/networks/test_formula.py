"""The polynomial that a kernel network is: equal to it, ranked, pruned, written."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import (
    RBF,
    Activation,
    Cosine,
    Linear,
    Matern32,
    NeuralKernelNetwork,
    NonNegativeLinear,
    PlaneWave,
    ProductLayer,
    nkn_regression,
)
from implicitppl.kernels._networks.layers import Layer

KEY = jax.random.key(0)


def _points(num: int, dims: int = 3, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, dims)), jnp.result_type(float))


def _small() -> NeuralKernelNetwork:
    """(a + 3 b) (2 a + 1)."""
    layers = (
        NonNegativeLinear(jnp.array([[1.0, 3.0], [2.0, 0.0]]), jnp.array([0.0, 1.0])),
        ProductLayer(),
    )
    return NeuralKernelNetwork((RBF(), Linear(2.0)), layers, names=("a", "b_2"))


def test_coefficients_in_closed_form():
    terms = {term.exponents: term.coefficient for term in _small().formula(min_share=0.0).terms}
    assert terms == {(2, 0): 2.0, (1, 0): 1.0, (1, 1): 6.0, (0, 1): 3.0}
    shares = [term.share for term in _small().formula().terms]
    np.testing.assert_allclose(shares, [6 / 12, 3 / 12, 2 / 12, 1 / 12])


def test_shares_are_parts_of_the_prior_variance():
    # Mean diagonals over X = (0, 1, 2): a = 1, b = 2 x^2 with mean 10/3.
    X = jnp.array([[0.0], [1.0], [2.0]])
    formula = _small().formula(X, min_share=0.1)
    assert [term.exponents for term in formula.terms] == [(1, 1), (0, 1)]
    np.testing.assert_allclose([t.share for t in formula.terms], [20 / 33, 10 / 33], rtol=1e-6)
    assert formula.num_terms == 4
    assert formula.discarded == pytest.approx(3 / 33, rel=1e-6)
    assert float(jnp.mean(_small().diag(X))) == pytest.approx(33, rel=1e-6)


def test_a_formula_is_written():
    X = jnp.array([[0.0], [1.0], [2.0]])
    assert str(_small().formula(X, min_share=0.05)).splitlines() == [
        " 60.6%  6 * a * b_2",
        " 30.3%  3 * b_2",
        "  6.1%  2 * a^2",
        "  3.0%  left out, number of terms: 1",
    ]
    assert _small().formula(X, min_share=0.05).latex() == (
        r"6 \, k_{\mathrm{a}} \, k_{\mathrm{b},2} + 3 \, k_{\mathrm{b},2}"
        r" + 2 \, k_{\mathrm{a}}^{2}"
    )
    assert "left out" not in str(_small().formula(X, min_share=0.0))


def test_primitives_are_named_by_class_and_numbered_if_repeated():
    kernels = (RBF(), Linear(), RBF(), RBF().on((0, 2)))
    k = NeuralKernelNetwork.from_widths(kernels, (), key=KEY)
    assert k.names == ("RBF_1", "Linear", "RBF_2", "RBF[0,2]")


def test_the_polynomial_is_the_network():
    with jax.enable_x64(True):
        X, Y = _points(15), _points(8, seed=9)
        k = nkn_regression(X, key=KEY)
        polynomial = k.polynomial()
        assert len(polynomial) == 210  # C(6 + 4, 4)
        grams = jax.jit(lambda X, Y: ([p.gram(X, Y) for p in k.primitives], k.gram(X, Y)))
        primitives, gram = jax.tree.map(np.asarray, grams(X, Y))
        slow = sum(
            c * np.prod([g**e for g, e in zip(primitives, powers, strict=True)], axis=0)
            for powers, c in polynomial.items()
        )
        scale = np.max(np.abs(slow))
        np.testing.assert_allclose(gram, slow, atol=1e-12 * scale, rtol=1e-12)
        assert np.max(np.abs(slow * (1 + 1e-9) - gram)) > 1e-12 * scale


def test_terms_add_up_to_the_network():
    with jax.enable_x64(True):
        X, Y = _points(12), _points(5, seed=1)
        waves = (PlaneWave(jnp.array([0.3, 0.1, 0.2])), PlaneWave(0.4))
        for primitives in ((RBF(0.7), Linear(0.2), Matern32()), (*waves, RBF(0.5))):
            k = NeuralKernelNetwork.from_widths(primitives, (4,), key=KEY)
            terms = [term.kernel for term in k.formula(min_share=0.0).terms]

            @jax.jit
            def totals(X, Y, k=k, terms=terms):
                return (
                    (sum(t.gram(X, Y) for t in terms), k.gram(X, Y)),
                    (sum(t.gram(X) for t in terms), k.gram(X)),
                    (sum(t.diag(X) for t in terms), k.diag(X)),
                    (sum(t(X[0], Y[0]) for t in terms), k(X[0], Y[0])),
                )

            for total, expected in totals(X, Y):
                np.testing.assert_allclose(total, expected, rtol=1e-11, atol=1e-12)


def test_posterior_means_of_the_terms_add_up():
    with jax.enable_x64(True):
        X, new = _points(20), _points(4, seed=1)
        k = NeuralKernelNetwork.from_widths((RBF(0.7), Linear(0.2)), (4,), key=KEY)
        terms = [term.kernel for term in k.formula(min_share=0.0).terms]
        grams = jax.jit(lambda new, X: (k.gram(X), k.gram(new, X), [t.gram(new, X) for t in terms]))
        gram, cross, parts = jax.tree.map(np.asarray, grams(new, X))
        alpha = np.linalg.solve(gram + 0.1 * np.eye(20), np.sin(X[:, 0]))
        np.testing.assert_allclose(sum(p @ alpha for p in parts), cross @ alpha, atol=1e-12)


def test_shares_add_up_and_pruning_says_what_it_left_out():
    with jax.enable_x64(True):
        X = _points(50, 8)
        k = nkn_regression(X, key=KEY)
        everything, pruned = k.formula(X, min_share=0.0), k.formula(X)
        assert sum(t.share for t in everything.terms) == pytest.approx(1, abs=1e-12)
        assert everything.discarded == 0.0 and everything.num_terms == pruned.num_terms == 210
        shares = [t.share for t in pruned.terms]
        assert shares == sorted(shares, reverse=True) and min(shares) >= 0.01
        assert sum(shares) + pruned.discarded == pytest.approx(1, abs=1e-12)
        # Each share, from the diagonal of the term's kernel.
        for term in itertools.islice(pruned.terms, 3):
            assert term.share == pytest.approx(float(jnp.mean(term.kernel.diag(X))), rel=1e-12)


def test_one_term_is_kept_whatever_the_threshold():
    formula = nkn_regression(_points(20), key=KEY).formula(min_share=0.9)
    assert len(formula.terms) == 1


def test_draws_of_weights_give_draws_of_coefficients():
    single = _small()
    keys = jax.random.split(KEY, 5)
    draws = jax.vmap(lambda key: NeuralKernelNetwork.from_widths((RBF(), Cosine()), (4,), key=key))(
        keys
    )
    for exponents, coefficient in draws.polynomial().items():
        assert coefficient.shape == (5,)
        for draw in range(5):
            one = jax.tree.map(lambda leaf, i=draw: leaf[i], draws)
            assert one.polynomial()[exponents] == pytest.approx(coefficient[draw])
    assert all(np.shape(c) == () for c in single.polynomial().values())


def test_a_power_is_expanded_and_other_series_are_refused():
    with jax.enable_x64(True):
        X = _points(6)
        weights = NonNegativeLinear(jnp.array([[2.0, 0.5]]), jnp.array([0.1]))
        k = NeuralKernelNetwork((RBF(), Linear()), (weights, Activation("power", 1.5, 3)))
        terms = [term.kernel for term in k.formula(min_share=0.0).terms]
        assert len(terms) == 10  # C(2 + 3, 3)
        total, gram = jax.jit(lambda X: (sum(t.gram(X) for t in terms), k.gram(X)))(X)
        np.testing.assert_allclose(np.asarray(total), gram, rtol=1e-12)
    for name in ("exp", "cosh"):
        k = NeuralKernelNetwork((RBF(), Linear()), (weights, Activation(name)))
        with pytest.raises(ValueError, match=f"'{name}' is no polynomial"):
            k.formula()

    class Own(Layer):
        def __call__(self, h):
            return h

        def out_width(self, in_width):
            return in_width

    with pytest.raises(ValueError, match="'Own' is no polynomial"):
        NeuralKernelNetwork((RBF(),), (Own(),)).polynomial()
    with pytest.raises(ValueError, match="`min_share` must be at least 0 and below 1; got 1"):
        _small().formula(min_share=1.0)
