"""Regression on values: exact where it must be, against a dense version, no worse than without."""

from collections.abc import Iterator
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl._core.frames import Frame, weighted_frame
from implicitppl.infer._score_hmc.learners.regression import (
    FittedValues,
    fit_values,
    initial_hyper,
)


@pytest.fixture(autouse=True)
def strict_arrays() -> Iterator[None]:
    """As below NumPyro, implicit promotion of ranks or dtypes is an error."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


M = 80  # compiled without optimisation, a fit takes seconds


def points(dimension: int, num: int = M, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (num, dimension))


@partial(jax.jit, static_argnames=("gaussian", "keep_whitener"))
def fitted(
    x: jax.Array, y: jax.Array, *, gaussian: bool = True, keep_whitener: bool = False
) -> FittedValues:
    size = x.shape[0]
    weights = jnp.full((size,), 1 / size, x.dtype)
    return fit_values(
        x,
        y[:, None] if y.ndim == 1 else y,
        jnp.zeros((size,), x.dtype),
        jnp.ones((size,), bool),
        weighted_frame(x, weights),
        gaussian=gaussian,
        keep_whitener=keep_whitener,
    )


@jax.jit
def bent(x: jax.Array) -> jax.Array:
    return 0.5 * x[..., 0] ** 2 + 0.5 * (x[..., 1] - 0.5 * jnp.sin(x[..., 0])) ** 2


def test_a_quadratic_is_recovered_with_its_gradient() -> None:
    # 6 dimensions have 28 coefficients; 80 values are more than enough.
    x = points(6)
    root = np.asarray(jax.random.normal(jax.random.key(1), (6, 6)))
    precision = root @ root.T + np.eye(6, dtype=np.float32)

    @jax.jit
    def potential(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x @ precision) * x, axis=-1) + x[..., 0] + 7.0

    fit = fitted(x, potential(x))
    new = points(6, seed=2)
    truth = np.asarray(potential(new))
    found = np.asarray(eqx.filter_jit(fit)(new))[:, 0]
    assert np.max(np.abs(found - truth)) < 0.02 * np.std(truth)
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(lambda x: fit(x)[0])))(new))
    exact = np.asarray(jax.jit(jax.vmap(jax.grad(potential)))(new))
    assert np.linalg.norm(slopes - exact) < 0.01 * np.linalg.norm(exact)
    assert bool(fit.info.used)


@pytest.mark.slow
def test_a_quadratic_of_many_dimensions_is_told_from_the_rest() -> None:
    # 496 terms and 256 rows for the hyper-parameters, which cannot tell a quadratic: without the
    # choice by leave-one-out the error is .26 of the function's spread, with it .0015.
    dimension = 30
    x = points(dimension, 700)
    factor = 0.5 * jax.random.normal(jax.random.key(7), (dimension, dimension)) + jnp.eye(dimension)

    def quadratic(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x @ factor) ** 2, axis=-1)

    fit = fitted(x, quadratic(x)[:, None], gaussian=True)
    new = points(dimension, 200, seed=5)
    error = np.asarray(fit(new)[:, 0] - quadratic(new))
    assert error.std() < 0.02 * float(quadratic(new).std())
    assert float(fit.info.error) < 0.02 * float(fit.info.trend_error)


def test_the_residual_beats_the_gaussian_where_there_is_one() -> None:
    x = points(2)
    fit = fitted(x, bent(x))
    new = points(2, seed=2)
    found = np.asarray(eqx.filter_jit(fit)(new))[:, 0]
    assert np.std(found - bent(new)) < 0.05  # the Gaussian's is 0.3
    assert float(fit.info.error) < 0.3 * float(fit.info.trend_error)


@pytest.mark.slow
def test_the_gaussian_is_used_where_values_are_noise() -> None:
    x = points(4, num=60)
    noise = 3.0 * jax.random.normal(jax.random.key(5), (60,))
    fit = fitted(x, 0.5 * jnp.sum(x * x, axis=1) + noise)
    assert not bool(fit.info.used)
    slope = jax.grad(lambda x: fit(x)[0])(jnp.ones(4))
    # That of |y|^2 / 2 in the coordinates of the points.
    factor = fit.frame.scale
    y = jnp.linalg.solve(factor, jnp.ones(4) - fit.frame.shift)
    np.testing.assert_allclose(slope, jnp.linalg.solve(factor.T, y), rtol=1e-4)


def test_leave_one_out_and_deviation_agree_with_a_dense_version() -> None:
    with jax.enable_x64(True):
        x = points(2, num=30).astype(jnp.float64)
        y = bent(x)
        fit = fitted(x, y, keep_whitener=True)
        p = jax.tree.map(lambda a: np.asarray(a), fit.hyper)
        to = eqx.filter_jit(fit.frame.to)
        z = np.asarray(to(x))

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            out = np.zeros((len(a), len(b)))
            for i, u in enumerate(a):
                for j, v in enumerate(b):
                    inner = u @ v / len(u)
                    square = np.sum(((u - v) / np.exp(p.lengths)) ** 2)
                    out[i, j] = (
                        np.exp(p.constant)
                        + np.exp(p.linear) * inner
                        + np.exp(p.quadratic) * inner**2
                        + np.exp(p.cubic) * inner**3
                        + np.exp(p.residual - square / 2)
                    )
            return out

        target = np.asarray(y) - 0.5 * np.sum(z**2, axis=1)
        target = (target - float(fit.offset[0])) / float(fit.scale[0])
        gram = kernel(z, z)
        noisy = gram + np.diag(np.full(30, np.exp(p.noise) + 1e-9))
        left = []
        for i in range(30):
            rest = np.arange(30) != i
            weights = np.linalg.solve(noisy[np.ix_(rest, rest)], target[rest])
            left.append(target[i] - gram[i, rest] @ weights)
        error = np.sqrt(np.mean(np.square(left))) * float(fit.scale[0])
        np.testing.assert_allclose(float(fit.info.error), error, rtol=1e-3)

        new = points(2, num=5, seed=3).astype(jnp.float64)
        cross = kernel(np.asarray(to(new)), z)
        own = np.diag(kernel(np.asarray(to(new)), np.asarray(to(new))))
        variance = own - np.sum(cross * np.linalg.solve(noisy, cross.T).T, axis=1)
        np.testing.assert_allclose(
            eqx.filter_jit(fit.deviation)(new), np.sqrt(variance) * float(fit.scale[0]), rtol=1e-2
        )


@pytest.mark.slow
def test_rows_that_hold_nothing_change_nothing() -> None:
    x = points(3, num=40)
    y = 0.5 * jnp.sum(x**2, axis=1) + 0.3 * jnp.cos(2 * x[:, 0])
    more = jnp.concatenate([x, jnp.full((24, 3), jnp.nan)])
    values = jnp.concatenate([y, jnp.full((24,), jnp.inf)])
    frame = weighted_frame(x, jnp.full((40,), 1 / 40))
    valid = jnp.arange(64) < 40
    full = fit_values(more, values[:, None], jnp.zeros(64), valid, frame, gaussian=True)
    part = fit_values(x, y[:, None], jnp.zeros(40), valid[:40], frame, gaussian=True)
    new = points(3, num=10, seed=4)
    np.testing.assert_allclose(full(new), part(new), atol=2e-3)


@pytest.mark.slow
def test_far_values_do_not_spoil_near_ones() -> None:
    x = jnp.concatenate([points(2, num=60), 8.0 * points(2, num=60, seed=7)])
    far = jnp.sum(x**2, axis=1) > 20
    # What happens far away has nothing to do with the function near.
    y = jnp.where(far, 40.0 + 30.0 * jnp.sin(9.0 * x[:, 0] * x[:, 1]), bent(x))
    slack = jnp.where(far, 2.0, 0.0)
    frame = Frame(jnp.zeros(2), jnp.eye(2), jnp.eye(2))
    valid = jnp.ones((120,), bool)
    fit = fit_values(x, y[:, None], slack, valid, frame, gaussian=True)
    naive = fit_values(x, y[:, None], 0 * slack, valid, frame, gaussian=True)
    new = 0.7 * points(2, num=200, seed=8)
    error, worse = (float(jnp.std(f(new)[:, 0] - bent(new))) for f in (fit, naive))
    assert error < 0.25
    assert worse > 3 * error


@pytest.mark.slow
def test_several_outputs_share_a_kernel() -> None:
    x = points(2)
    y = jnp.stack([jnp.sin(x[:, 0]) + 5, 100.0 * x[:, 0] * x[:, 1]], axis=1)
    fit = fitted(x, y, gaussian=False)
    new = 0.8 * points(2, num=50, seed=2)
    exact = jnp.stack([jnp.sin(new[:, 0]) + 5, 100.0 * new[:, 0] * new[:, 1]], axis=1)
    error = jnp.std(fit(new) - exact, axis=0) / jnp.std(exact, axis=0)
    assert jnp.max(error) < 0.03
    assert fit(new[0]).shape == (2,)


@pytest.mark.parametrize("dimension", [1, 5])
def test_coordinates_whiten(dimension: int) -> None:
    x = 10.0 * points(dimension, num=400) + 3.0
    frame = jax.jit(weighted_frame)(x, jnp.full((400,), 1 / 400))
    y = eqx.filter_jit(frame.to)(x)
    np.testing.assert_allclose(
        np.cov(np.asarray(y).T).reshape(dimension, dimension), np.eye(dimension), atol=0.02
    )
    np.testing.assert_allclose(eqx.filter_jit(frame.back)(y), x, rtol=1e-4, atol=1e-3)


def test_the_search_starts_at_the_mode_of_its_prior() -> None:
    hyper = initial_hyper(3, jnp.dtype(jnp.float32))
    assert hyper.lengths.shape == (3,)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(hyper))
