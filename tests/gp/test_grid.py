"""Processes on grids against the dense process of the same points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.gp import GaussianProcess, GridGaussianProcess, fit
from implicitppl.kernels import RBF, Matern52

ROWS, COLUMNS = np.linspace(0, 3, 9), np.linspace(0, 4, 7)
POINTS = np.stack(np.meshgrid(ROWS, COLUMNS, indexing="ij"), -1).reshape(-1, 2)
RNG = np.random.default_rng(0)
PICTURE = np.sin(ROWS)[:, None] * np.cos(COLUMNS) + 0.1 * RNG.normal(size=(9, 7))
SEEN = RNG.uniform(size=(9, 7)) < 0.8


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def _grid(length=0.7):
    return GridGaussianProcess((Matern52(length, 1.2), RBF(1.1)), 0.2)


def _dense(length=0.7):
    return GaussianProcess(Matern52(length, 1.2).on(0) * RBF(1.1).on(1), 0.2)


def test_evidence_and_its_gradient_on_a_complete_grid_are_exact():
    def ours(length, noise):
        return _grid(length).log_evidence((ROWS, COLUMNS), PICTURE, noise)

    def dense(length, noise):
        return _dense(length).log_evidence(POINTS, PICTURE.reshape(-1), noise)

    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(0.7, 0.1)
    expected = jax.jit(jax.value_and_grad(dense, (0, 1)))(0.7, 0.1)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-8)


def test_missing_outputs_are_solved_for_exactly():
    ours = _grid().condition((ROWS, COLUMNS), PICTURE, 0.1, observed=SEEN)
    dense = _dense().condition(POINTS, PICTURE.reshape(-1), 0.1, observed=SEEN.reshape(-1))
    assert float(ours.relative_residual) < 1e-5
    np.testing.assert_allclose(ours.on_grid().mean.reshape(-1), dense(POINTS).mean, atol=1e-5)
    ahead = np.array([[3.3, 1.0], [3.3, 4.5]])
    on_grid = ours.on_grid((np.array([3.3]), np.array([1.0, 4.5]))).mean
    np.testing.assert_allclose(on_grid[0], dense(ahead).mean, atol=1e-5)


def test_the_posterior_is_a_process_like_any_other():
    """Points of and off the grid, against the dense process; noise and sums come with it."""
    ours = _grid().condition((ROWS, COLUMNS), PICTURE, 0.1, observed=SEEN)
    dense = _dense().condition(POINTS, PICTURE.reshape(-1), 0.1, observed=SEEN.reshape(-1))
    x, y = np.array([[3.3, 1.0], [0.0, 0.0], [1.1, 4.5]]), POINTS[5:9]
    found = (*ours.moments(x), ours.mean_at(x), ours.covariance(x, y), ours.covariance(x))
    expected = (*dense.moments(x), dense.mean_at(x), dense.covariance(x, y), dense.covariance(x))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    values = jnp.array([0.3, -0.2, 0.1])
    noisy = (float(p(x, noise_scale=0.2).log_prob(values)) for p in (ours, dense))
    assert next(noisy) == pytest.approx(next(noisy), abs=1e-3)
    with pytest.raises(ValueError, match="must have 2 coordinates"):
        ours.moments(x[:, :1])
    with pytest.raises(ValueError, match="on the grid of the observations"):
        ours.on_grid((ROWS, ROWS)).sample(jax.random.key(0))


def test_the_approximate_log_determinant_is_near_the_true_one_and_the_rest_is_exact():
    """The quadratic form is exact, so two data sets differ by what the dense process says."""
    other = np.where(SEEN, np.cos(PICTURE), 0)

    def difference(gp, axes, shape):
        values = [
            gp.log_evidence(axes, y.reshape(shape), 0.1, observed=SEEN.reshape(shape))
            for y in (PICTURE, other)
        ]
        return float(values[0] - values[1]), float(values[0])

    ours, value = difference(_grid(), (ROWS, COLUMNS), (9, 7))
    exact, true = difference(_dense(), POINTS, (63,))
    assert ours == pytest.approx(exact, rel=1e-5)
    assert abs(value - true) < 0.1 * SEEN.sum()


def test_draws_have_the_moments_of_the_dense_posterior():
    num = 2000
    ours = _grid().condition((ROWS, COLUMNS), PICTURE, 0.1, observed=SEEN)
    draws = np.asarray(ours.on_grid().sample(jax.random.key(0), num)).reshape(num, -1)
    dense = _dense().condition(POINTS, PICTURE.reshape(-1), 0.1, observed=SEEN.reshape(-1))
    mean, variance = np.asarray(dense(POINTS).mean), np.asarray(dense(POINTS).variance)
    assert np.max(np.abs(draws.mean(0) - mean) / np.sqrt(variance / num)) < 4.5
    ratio = draws.var(0) / variance
    assert np.max(np.abs(ratio - 1)) < 4.5 * np.sqrt(2 / num)


def test_fit_raises_the_evidence():
    found = fit(_grid(2.0), (ROWS, COLUMNS), PICTURE, 0.3, observed=SEEN, num_steps=40)
    assert float(found.log_evidence) > 1 - float(found.losses[0])
    assert int(found.num_skipped) == 0


def test_an_evidence_that_was_not_solved_for_is_not_given():
    rough = GridGaussianProcess((Matern52(0.7, 1.2), RBF(1.1)), 0.2, max_iterations=1)
    hole = np.ones((9, 7), bool)
    hole[2:8, 1:6] = False
    assert jnp.isnan(rough.log_evidence((ROWS, COLUMNS), PICTURE, 1e-3, observed=hole))
    assert jnp.isfinite(_grid().log_evidence((ROWS, COLUMNS), PICTURE, 1e-3, observed=hole))


BAD = {
    "axes": (lambda: _grid().condition((ROWS,), PICTURE, 0.1), "must hold 2 axes"),
    "shape": (lambda: _grid().condition((ROWS, ROWS), PICTURE, 0.1), r"`y` must be \(9, 9\)"),
    "nan": (
        lambda: _grid().condition((ROWS, COLUMNS), PICTURE * np.nan, 0.1),
        "63 of 63 are not. Pass `observed=`",
    ),
    "mask": (
        lambda: _grid().condition((ROWS, COLUMNS), PICTURE, 0.1, observed=SEEN.astype(int)),
        "`observed` must be booleans",
    ),
    "noise": (lambda: _grid().log_evidence((ROWS, COLUMNS), PICTURE, 0.0), "must be positive"),
    "mean": (lambda: GridGaussianProcess((RBF(),), jnp.sin), "must be None or a number"),
    "one kernel": (lambda: GridGaussianProcess(RBF()), "must hold a kernel for each axis"),
    "kernels": (lambda: GridGaussianProcess(()), "must hold a kernel for each axis"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
