"""What every kernel promises, each promise a function of a kernel that raises `AssertionError`."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from implicitppl.kernels import Kernel, White, constrain, parameters, unconstrain
from implicitppl.kernels._parameters import as_arrays

Names = tuple[tuple[str, str], ...]
"""Parameters in order, each with its kind."""


def points(num: int, seed: int = 0, dtype: jnp.dtype | None = None) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 3)), dtype)


def twins(dtype: jnp.dtype | None = None) -> jax.Array:
    """Rows of which two are equal and one is the origin."""
    X = points(4, dtype=dtype)
    return jnp.concatenate([X[:1], X, jnp.zeros_like(X[:1])])


def has_white_noise(kernel: Kernel) -> bool:
    return any(isinstance(part, White) for part in _parts(kernel))


def _parts(kernel: Kernel) -> list[Kernel]:
    inside = [value for value in vars(kernel).values() if isinstance(value, Kernel)]
    return [kernel, *(part for value in inside for part in _parts(value))]


def check_matrices(kernel: Kernel) -> None:
    X, Y = points(20), points(5, 1)
    grams = jax.jit(lambda k, X, Y: (k.gram(X), k.gram(X, X), k.gram(X, Y), k.diag(X)))
    gram, cross_gram, other, diag = grams(as_arrays(kernel), X, Y)
    scale = float(jnp.max(jnp.abs(gram)))
    np.testing.assert_allclose(gram, gram.T, rtol=0, atol=1e-15 * scale)  # a few last bits
    np.testing.assert_allclose(jnp.diagonal(gram), diag, atol=1e-12 * scale)
    eigenvalues = np.linalg.eigvalsh(gram)
    assert eigenvalues[0] >= -1e-10 * eigenvalues[-1]
    pairs = jax.jit(lambda k, X, Y: jax.vmap(lambda x: jax.vmap(lambda y: k(x, y))(Y))(X))
    np.testing.assert_allclose(pairs(as_arrays(kernel), X, Y), other, atol=1e-12 * scale)
    np.testing.assert_allclose(pairs(as_arrays(kernel), X, X), cross_gram, atol=1e-7 * scale)
    if not has_white_noise(kernel):
        np.testing.assert_allclose(gram, cross_gram, atol=1e-12 * scale)


def check_derivatives(kernel: Kernel, smooth: bool = True) -> None:
    X, Y = twins(), jnp.concatenate([twins()[:3], points(2, 1)])

    def total(k: Kernel, X: jax.Array, Y: jax.Array) -> jax.Array:
        mixed = jnp.sum(jnp.sin(k.gram(X))) + jnp.sum(jnp.sin(k.gram(X, Y)))
        return mixed + jnp.sum(k.gram(X, X)) + jnp.sum(k.diag(X))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1, 2)))(as_arrays(kernel), X, Y)):
        assert np.all(np.isfinite(leaf))
    orders = [jax.grad(kernel.__call__)] + [jax.jacfwd(jax.grad(kernel.__call__, 1))] * smooth
    for x in (X[0], X[-1]):
        for order in orders:
            assert np.all(np.isfinite(jax.jit(order)(x, x)))


def check_against_differences(kernel: Kernel) -> None:
    """At distinct points, for the inputs and all parameters at once."""
    # The logarithm of a bias that is left out is not finite.
    free = jax.tree.map(lambda u: jnp.where(jnp.isfinite(u), u, 0), unconstrain(kernel))
    vector, restore = ravel_pytree(free)
    X, Y = points(3), points(2, 1)

    @jax.jit
    def values(u: jax.Array, X: jax.Array, Y: jax.Array) -> tuple[jax.Array, ...]:
        k = constrain(restore(u))
        return k.gram(X, Y), k.diag(X)

    check_grads(
        lambda *args: values(*(jnp.asarray(a) for a in args)),
        (vector, X, Y),
        order=1,
        modes=["rev"],
        atol=1e-6,
        rtol=1e-6,
    )


def check_contractions(kernel: Kernel) -> None:
    X, Y, V = points(4), points(5, 1), points(5, 2)
    w = jnp.linspace(0.1, 1.0, 5)

    @jax.jit
    def both(k: Kernel) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        def rows(argument: int) -> jax.Array:
            gradient = jax.grad(k.__call__, argument)
            return jax.vmap(lambda x: jax.vmap(lambda y: gradient(x, y))(Y))(X)

        fast = k.mean_gradient(X, Y, w), k.directional_gradient(X, Y, V)
        slow = jnp.einsum("m,nmd->nd", w, rows(1)), jnp.einsum("md,nmd->n", V, rows(0))
        return fast, slow

    for fast, slow in zip(*both(as_arrays(kernel)), strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-9)


def check_precision(make: Callable[[], Kernel], digits: float) -> None:
    grams = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            dtype = jnp.float64 if x64 else jnp.float32
            X, Y, kernel = points(6, dtype=dtype), points(3, 1, dtype), make()
            parts = jax.jit(lambda k, X, Y: (k.gram(X), k.gram(X, Y), k.diag(X), k(X[0], Y[0])))(
                as_arrays(kernel), X, Y
            )
            assert {part.dtype for part in parts} == {jnp.dtype(dtype)}
            grams.append(np.concatenate([np.ravel(part) for part in parts]))
    np.testing.assert_allclose(grams[0], grams[1], atol=digits * np.abs(grams[1]).max())


def check_transformations(kernel: Kernel) -> None:
    """The matrix under `jit`, and under `vmap` over kernels and inputs at once."""
    X = jnp.stack([points(5), points(5, 1)])
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.3 * leaf]), as_arrays(kernel))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], pair) for i in range(2)]
    compiled = jax.jit(lambda k, X: k.gram(X))
    expected = [np.asarray(each[0].gram(X[0])), np.asarray(compiled(each[1], X[1]))]
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(compiled(each[0], X[0]), expected[0], atol=1e-12 * scale)
    batched = eqx.filter_jit(eqx.filter_vmap(lambda k, x: k.gram(x)))(pair, X)
    np.testing.assert_allclose(batched, np.stack(expected), atol=1e-12 * scale)


def check_memory(kernel: Kernel) -> None:
    """No array of a matrix or of its derivatives is larger than the matrix: traced, not run."""
    num = 3000
    X = jnp.zeros((num, 3), jnp.float32)

    def total(k: Kernel, X: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(k.gram(X, X + 1)))

    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(as_arrays(kernel), X)
    assert num * num <= largest_array(jaxpr.jaxpr) < 1.5 * num * num


def largest_array(jaxpr: Any) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars]
        sizes += [largest_array(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


def check_parameters(kernel: Kernel, names: Names) -> None:
    found = parameters(kernel)
    assert tuple((name, parameter.kind) for name, parameter in found.items()) == names
    free = unconstrain(kernel)
    back = constrain(free)
    assert str(jax.tree.structure(back)) == str(jax.tree.structure(kernel))
    for name, parameter in parameters(back).items():
        np.testing.assert_allclose(parameter.value, found[name].value, rtol=1e-12)
        assert parameter.is_positive == (name.split(".")[-1] != "frequency")
