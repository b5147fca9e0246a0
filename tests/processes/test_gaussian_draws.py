"""Functions drawn from Gaussian processes: one joint law over calls, values that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.gp import GaussianProcess, SparseGaussianProcess
from implicitppl.kernels import RBF, Constant, Linear, Matern12, Matern32, White

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def points():
    return jnp.asarray(np.random.default_rng(0).uniform(-2, 2, size=(9, 2)))


def test_calls_give_the_numbers_of_one_call(points):
    gp = GaussianProcess(Matern12(1.0), 0.4)
    for process in (gp, gp.condition(points[:3] + 0.1, jnp.arange(3.0), 0.1)):
        draws = process.draw(KEY, 3)
        parts = jnp.concatenate([draws(points[:4]), draws(points[4:5]), draws(points[5:])], axis=1)
        np.testing.assert_allclose(parts, process.draw(KEY, 3)(points), atol=1e-12)
        np.testing.assert_array_equal(draws(points[::-1]), parts[:, ::-1])


def deviations(covariance, draws):
    """Deviations of all second moments in their standard errors."""
    num = draws.shape[0]
    spread = np.diag(covariance)
    errors = np.sqrt((covariance**2 + np.outer(spread, spread)) / num)
    return np.abs(np.cov(draws.T) - covariance) / errors


@pytest.mark.statistical
@pytest.mark.parametrize("kernel", [RBF(2.0), Matern32(), Linear() + Constant(0.3)])
def test_several_calls_have_one_joint_law(points, kernel):
    num = 20_000
    prior = GaussianProcess(kernel, 0.4)
    for process in (prior, prior.condition(points[:2] + 0.3, jnp.array([1.0, -1.0]), 0.5)):
        draws = process.draw(KEY, num)
        values = jnp.concatenate([draws(points[:3]), draws(points[2:6])], axis=1)
        asked = jnp.concatenate([points[:3], points[2:6]])
        covariance = np.asarray(process.covariance(asked))
        mean = np.abs(values.mean(0) - process.mean_at(asked)) / np.sqrt(np.diag(covariance) / num)
        assert mean.max() < 4 and deviations(covariance, values).max() < 4.5
        # Two draws are not one: what independent calls would give is seen.
        apart = jnp.concatenate([values[:, :3], jnp.roll(values[:, 3:], 1, axis=0)], axis=1)
        assert deviations(covariance, apart).max() > 4.5


@pytest.mark.parametrize("kernel", [RBF(3.0), Linear(), Constant(), RBF() + White()])
@pytest.mark.parametrize("compiled", [False, True])
def test_repeated_points_have_repeated_values_and_no_nan(points, kernel, compiled):
    line = jnp.linspace(0, 1, 40)[:, None] * jnp.ones((1, 2))
    asked = jnp.concatenate([line, line[:3], points, line[5:7]])

    def values(key):
        draws = GaussianProcess(kernel).draw(key, 3)
        return draws(asked), draws(points), draws(line[::-1])

    first, again, back = (jax.jit(values) if compiled else values)(KEY)
    first, again, back = np.asarray(first), np.asarray(again), np.asarray(back)
    assert np.all(np.isfinite(first))
    np.testing.assert_allclose(first[:, 40:43], first[:, :3], atol=1e-5)
    np.testing.assert_allclose(first[:, -2:], first[:, 5:7], atol=1e-5)
    np.testing.assert_allclose(again, first[:, 43:-2], atol=1e-5)
    np.testing.assert_allclose(back[:, ::-1], first[:, :40], atol=1e-5)


def test_a_kernel_without_variance_at_a_point_has_its_value_there():
    draws = GaussianProcess(Linear(), 0.7).draw(KEY, 2)
    np.testing.assert_allclose(draws(jnp.zeros((1, 1))), 0.7, atol=1e-12)
    slopes = draws(jnp.ones((1, 1))) - 0.7
    np.testing.assert_allclose(draws(jnp.full((1, 1), 3.0)) - 0.7, 3 * slopes, atol=1e-6)


def test_float32_singular_grams_give_numbers():
    with jax.enable_x64(False):
        x = jnp.linspace(0, 1, 60)
        draws = GaussianProcess(RBF(0.5)).draw(KEY, 4)
        both = draws(x[::2]), draws(x)
        assert both[1].dtype == jnp.float32 and all(jnp.all(jnp.isfinite(v)) for v in both)
        np.testing.assert_array_equal(both[1][:, ::2], both[0])


def test_draws_follow_conditioning_on_their_own_values(points):
    """Given what was drawn, the mean over functions of what comes next is the conditional mean."""
    gp = GaussianProcess(Matern32())
    draws = gp.draw(KEY, 4)
    known = draws(points[:4])
    later = draws(points[4:])

    # Noise of the new rows is the same for draws of equal mean: L differs from none of them.
    @jax.jit
    @jax.vmap
    def whiten(y, f):
        exact = gp.condition(points[:4], y, 0.0)(points[4:])
        return jax.scipy.linalg.solve_triangular(exact.scale_tril, f - exact.mean, lower=True)

    white = whiten(known, later)
    noise = [jax.random.normal(jax.random.fold_in(KEY, row), (4,), float) for row in range(4, 9)]
    np.testing.assert_allclose(white, np.stack(noise, axis=1), atol=1e-8)


def test_any_gaussian_process_draws(points):
    sparse = SparseGaussianProcess(GaussianProcess(RBF()), points[:4])
    posterior = sparse.condition(points, jnp.sin(points[:, 0]), 0.2)
    draws = posterior.draw(KEY, 2)
    np.testing.assert_array_equal(draws(points)[:, :3], draws(points[:3]))


def test_gradients_reach_the_kernel(points):
    @jax.jit
    def total(lengthscale):
        draws = GaussianProcess(Matern32(lengthscale)).draw(KEY, 2)
        return jnp.sum(draws(points[:3])) + jnp.sum(draws(points[2:]))

    step = 1e-6
    slope = (total(1.0 + step) - total(1.0 - step)) / (2 * step)
    assert float(jax.grad(total)(1.0)) == pytest.approx(float(slope), rel=1e-6)


def test_draws_refuse_to_be_called_where_they_cannot_remember(points):
    draws = GaussianProcess(RBF()).draw(KEY)
    for call in (jax.jit(draws), jax.vmap(draws), jax.grad(lambda x: draws(x).sum())):
        with pytest.raises(ValueError, match="remember what was asked"):
            call(points)
    draws(points)
    with pytest.raises(ValueError, match="must have 2 coordinates, as before; got 1"):
        draws(jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="`num_samples` must be at least 1; got 0"):
        GaussianProcess(RBF()).draw(KEY, 0)
