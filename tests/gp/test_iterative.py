"""Conjugate gradients against the exact process, and the probes against their expectation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.gp import GaussianProcess, IterativeGaussianProcess, fit
from implicitppl.kernels import RBF, White
from implicitppl.linalg import pivoted_cholesky
from implicitppl.linalg._cg import conjugate_gradients, log_of_tridiagonal

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, size=(150, 2))
Y = np.sin(2 * X[:, 0]) + 0.1 * RNG.normal(size=150)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def _exact(length=0.5):
    return GaussianProcess(RBF(length), 0.3)


def _iterative(length=0.5, key=None, **options):
    options = {"rank": 20, "block": 64, "tolerance": 1e-8, "num_probes": 8} | options
    key = jax.random.key(0) if key is None else key
    return IterativeGaussianProcess(_exact(length), key=key, **options)


def _system(size=12):
    root = RNG.normal(size=(size, size))
    return root @ root.T + np.eye(size), RNG.normal(size=(size, 3))


def test_solutions_and_the_lanczos_matrix_are_exact_after_n_products():
    matrix, right = _system()
    near = jnp.asarray(np.diag(1 / np.diag(matrix)))

    @jax.jit
    def solve(right):
        found = conjugate_gradients(
            lambda v: matrix @ v, right, precondition=lambda v: near @ v, tolerance=1e-13
        )
        return found.x, log_of_tridiagonal(found.diagonals, found.off_diagonals)

    solution, logs = solve(right)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, right), rtol=1e-8)
    # e' log(T) e = v' log(P^-1/2 C P^-1/2) v / |v|^2 with v = P^-1/2 b.
    root = np.sqrt(np.diag(near))
    values, vectors = np.linalg.eigh(root[:, None] * matrix * root)
    start = vectors.T @ (root[:, None] * right)
    expected = (start**2 * np.log(values)[:, None]).sum(0) / (start**2).sum(0)
    np.testing.assert_allclose(logs, expected, rtol=1e-6)


def test_columns_that_converge_early_wait_for_the_others():
    matrix, right = _system()
    right[:, 0], right[:, 1] = 0.0, np.linalg.eigh(matrix)[1][:, 3]
    solve = jax.jit(lambda b: conjugate_gradients(lambda v: matrix @ v, b, tolerance=1e-12))
    found = solve(right)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, right), atol=1e-9)
    assert float(jnp.max(found.relative_residuals)) < 1e-11


def test_pivoted_columns_reproduce_a_matrix_of_their_rank():
    root = RNG.normal(size=(20, 4))
    matrix = root @ root.T
    make = jax.jit(lambda m: pivoted_cholesky(lambda i: m[:, i], jnp.diagonal(m), 6))
    factor = np.asarray(make(matrix))
    np.testing.assert_allclose(factor @ factor.T, matrix, atol=1e-10)
    np.testing.assert_array_equal(factor[:, 4:], 0.0)


def test_posterior_is_that_of_the_exact_process():
    ours, true = _iterative().condition(X, Y, 0.1), _exact().condition(X, Y, 0.1)
    queries = X[:5] + 0.3
    np.testing.assert_allclose(ours(queries).mean, true(queries).mean, atol=1e-6)
    np.testing.assert_allclose(ours(queries).variance, true(queries).variance, atol=1e-6)
    covariance = eqx.filter_jit(lambda posterior: posterior.covariance(queries, X))
    np.testing.assert_allclose(covariance(ours), covariance(true), atol=1e-6)
    assert float(ours.relative_residual) < 1e-8


def test_white_noise_of_the_kernel_is_not_lost():
    noisy = GaussianProcess(RBF(0.5) + White(0.3), 0.3)
    ours = IterativeGaussianProcess(noisy, key=jax.random.key(0), block=64, tolerance=1e-8)
    queries = X[:5] + 0.3
    found, true = ours.condition(X, Y, 0.1)(queries), noisy.condition(X, Y, 0.1)(queries)
    np.testing.assert_allclose(found.mean, true.mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, true.variance, atol=1e-6)


@pytest.mark.statistical
def test_evidence_and_gradient_are_unbiased_over_probes():
    """The mean over 60 keys; the gradient of another lengthscale fails the same assertion."""

    def both(gp, length, noise, **options):
        return gp(length, **options).log_evidence(X, Y, noise)

    @jax.jit
    @jax.vmap
    def estimate(key):
        return jax.value_and_grad(lambda a, s: both(_iterative, a, s, key=key), (0, 1))(0.5, 0.1)

    found = estimate(jax.random.split(jax.random.key(1), 60))
    draws = [np.asarray(v) for v in jax.tree.leaves(found)]
    errors = [v.std() / np.sqrt(60) for v in draws]

    def deviations(length):
        value = jax.value_and_grad(lambda a, s: both(_exact, a, s), (0, 1))(length, 0.1)
        truth = jax.tree.leaves(value)
        return [abs(v.mean() - t) / e for v, t, e in zip(draws, truth, errors, strict=True)]

    assert max(deviations(0.5)) < 4
    assert max(deviations(0.55)) > 4


def test_fit_reaches_the_neighbourhood_of_the_exact_optimum():
    ours = fit(_iterative(1.0, num_probes=30), X, Y, 0.3, num_steps=60)
    true = fit(_exact(1.0), X, Y, 0.3, num_steps=60)
    ratio = ours.process.process.kernel.lengthscale / true.process.kernel.lengthscale
    assert 0.9 < float(ratio) < 1.1
    assert 0.9 < float(ours.noise_scale / true.noise_scale) < 1.1


def test_an_evidence_that_was_not_solved_for_is_not_given():
    assert jnp.isnan(_iterative(rank=1, max_iterations=2).log_evidence(X, Y, 0.01))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="without observations"):
        IterativeGaussianProcess(_exact().condition(X, Y, 0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match="`rank` must be positive; got 0"):
        _iterative(rank=0)
    with pytest.raises(ValueError, match="`observed` is not supported"):
        fit(_iterative(), X, Y, observed=np.ones(150, bool))
    with pytest.raises(ValueError, match="`noise_scale` must be positive"):
        _iterative().condition(X, Y, 0.0)
