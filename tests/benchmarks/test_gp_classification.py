"""Pseudo-marginal benchmark: the estimate is unbiased, the walk keeps its noisy values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.special import expit, logsumexp

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import read
from benchmarks.hmc import classification as bench
from benchmarks.hmc import gp_classification as gp
from benchmarks.hmc.run import ERRORS
from benchmarks.hmc.tables import PAGE

X, Y = np.array([[0.0], [0.7], [-1.1]]), np.array([1.0, 0.0, 1.0])
THETA = np.array([0.3, 1.5])
Estimator = Callable[[np.random.Generator, np.ndarray], float]


def on_grid(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whitened latent function `(3, n)` on a Gauss-Hermite grid, and its mass times p(y)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    v = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij")).reshape(3, -1)
    mass = np.prod(np.stack(np.meshgrid(weights, weights, weights)), axis=0).ravel()
    f = np.linalg.cholesky(gp.covariance(X, theta)) @ v
    likelihood = np.prod(expit(np.where(Y[:, None] > 0, f, -f)), axis=0)
    return v, mass * likelihood / (2 * np.pi) ** 1.5


def by_quadrature(theta: np.ndarray) -> float:
    """p(y | theta)."""
    return float(np.sum(on_grid(theta)[1]))


def deviation(estimator: Estimator, repeats: int = 3000) -> float:
    """Mean estimate less the truth, in standard errors."""
    rng = np.random.default_rng(0)
    found = np.exp([estimator(rng, THETA) for _ in range(repeats)])
    return float((found.mean() - by_quadrature(THETA)) / (found.std() / repeats**0.5))


def evidence(particles: int = 4, sweeps: int = gp.SWEEPS) -> gp.Evidence:
    return gp.Evidence(X, Y, particles, sweeps)


def mean_of_logs(rng: np.random.Generator, theta: np.ndarray) -> float:
    """Too low, by Jensen's inequality."""
    return float(np.mean(evidence().log_weights(rng, theta)))


@pytest.mark.parametrize("sweeps", [0, gp.SWEEPS])
def test_estimate_is_unbiased(sweeps: int) -> None:
    assert abs(deviation(evidence(sweeps=sweeps))) <= 3.5


def test_a_biased_estimate_fails() -> None:
    assert deviation(mean_of_logs) < -5


def test_more_particles_say_less_noise() -> None:
    rng = np.random.default_rng(0)
    sd = [np.std([evidence(k)(rng, THETA) for _ in range(200)]) for k in (2, 64)]
    assert sd[1] < 0.35 * sd[0]  # 1 / sqrt(32) = .18


def test_mode_is_where_the_gradient_vanishes() -> None:
    factor = np.linalg.cholesky(gp.covariance(X, THETA))
    mode, root = gp.laplace(factor, Y)
    p = expit(factor @ mode)
    np.testing.assert_allclose(factor.T @ (Y - p), mode, atol=1e-3)
    precision = np.eye(3) + factor.T @ np.diag(p * (1 - p)) @ factor
    np.testing.assert_allclose(root @ root.T, precision, rtol=1e-3, atol=1e-3)


def test_propagation_finds_the_moments_that_laplace_misses() -> None:
    theta = np.array([0.3, 2.5])  # amplitude 12
    v, mass = on_grid(theta)
    mean = v @ mass / mass.sum()
    factor = np.linalg.cholesky(gp.covariance(X, theta))
    found, root = gp.gaussian(factor, Y, 20)
    np.testing.assert_allclose(found, mean, atol=0.03)
    sd = np.sqrt(v**2 @ mass / mass.sum() - mean**2)
    np.testing.assert_allclose(np.sqrt(np.diag(np.linalg.inv(root @ root.T))), sd, rtol=0.03)
    assert np.abs(gp.laplace(factor, Y)[0] - mean).max() > 0.3


def test_propagation_evens_the_weights() -> None:
    """On real data at a large amplitude; estimates at the prior's upper tail decide who sticks."""
    x, y = gp.load("iris")
    theta, rng = np.array([1.0, 0.2, -1.0, 1.4, 3.0]), np.random.default_rng(0)
    sd = [np.std([gp.Evidence(x, y, 64, k)(rng, theta) for _ in range(20)]) for k in (0, 4)]
    assert sd[1] < 0.4 * sd[0]


@pytest.mark.parametrize(("mean", "variance"), [(0.4, 2.0), (-3.0, 0.3), (2.0, 30.0)])
def test_tilted_moments_are_those_of_quadrature(mean: float, variance: float) -> None:
    f = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 20_001)
    mass = np.exp(-0.5 * (f - mean) ** 2 / variance) * expit(f)
    first = np.sum(mass * f) / mass.sum()
    second = np.sum(mass * (f - first) ** 2) / mass.sum()
    ones = np.ones(1)
    found = gp.tilted_moments(ones, mean * ones, variance * ones)
    np.testing.assert_allclose(np.ravel(found), [first, second], rtol=2e-3)


def test_sites_stay_in_bounds_where_quadrature_cannot_follow() -> None:
    far, wide = np.array([-800.0]), np.array([3000.0])
    mean, variance = gp.tilted_moments(np.ones(1), far, wide)
    assert np.isfinite(mean).all()
    assert 0 <= 1 / variance[0] - 1 / wide[0] <= gp.CURVATURE + 1e-9


def test_student_density_is_that_of_scipy() -> None:
    from scipy.stats import multivariate_t

    e = np.array([0.3, -1.0, 2.0])
    expected = multivariate_t(df=gp.DEGREES, shape=np.eye(3)).logpdf(e)
    np.testing.assert_allclose(gp.log_student(e @ e, 3), expected)


def test_joint_model_has_the_same_evidence() -> None:
    """The joint density of NUTS's model, averaged over v, is that of quadrature, in float32."""
    v = np.random.default_rng(0).normal(size=(50, 3))
    factor = np.linalg.cholesky(gp.covariance(X, THETA))
    f = v @ factor.T
    expected = np.sum(np.log(expit(np.where(Y > 0, f, -f))), axis=1)
    args = jnp.asarray(X), jnp.asarray(Y)
    sites = {"log_length": jnp.asarray(THETA[:-1]), "log_amplitude": jnp.asarray(THETA[-1])}

    @jax.jit
    @jax.vmap
    def joint(v: jax.Array) -> jax.Array:
        return jnp.asarray(log_density(gp.joint, args, {}, sites | {"v": v})[0])

    found = joint(jnp.asarray(v))
    constant = np.asarray(found) + 0.5 * np.sum(v**2, axis=1) - expected
    np.testing.assert_allclose(constant, constant[0], atol=1e-4)


def test_the_walk_keeps_the_estimate_of_its_point() -> None:
    rng = np.random.default_rng(0)
    x, value = np.zeros((2, 1)), np.array([5.0, -5.0])
    asked: list[float] = []

    def estimate(point: np.ndarray) -> float:
        asked.append(float(point[0]))
        return 0.0

    new, kept, _ = bench.pseudo_marginal_step(rng, estimate, x, value, np.ones((2, 1)))
    assert asked == [1.0, 1.0]  # never the present points
    np.testing.assert_array_equal(new[:, 0], [0.0, 1.0])
    np.testing.assert_array_equal(kept, [5.0, 0.0])


def noisy_walk(again: bool, num: int = 4000) -> np.ndarray:
    """Means of a walk on N(0, 1) whose estimates are unbiased, and noisy for x > 0."""
    rng = np.random.default_rng(0)

    def estimate(point: np.ndarray) -> float:
        sd = 2.0 if point[0] > 0 else 0.0
        return float(-0.5 * point[0] ** 2 + sd * rng.normal() - 0.5 * sd**2)

    x = rng.normal(size=(20, 1))
    value, found = np.array([estimate(p) for p in x]), []
    for _ in range(num):
        proposal = x + 1.5 * rng.normal(size=x.shape)
        value = np.array([estimate(p) for p in x]) if again else value
        x, value, _ = bench.pseudo_marginal_step(rng, estimate, x, value, proposal)
        found.append(x[:, 0])
    return np.mean(found, axis=0)


@pytest.mark.statistical
def test_noise_leaves_the_posterior_alone_unless_it_is_drawn_again() -> None:
    kept, again = noisy_walk(False), noisy_walk(True)
    assert abs(kept.mean()) <= 4 * kept.std() / len(kept) ** 0.5
    assert abs(again.mean()) > 4 * again.std() / len(again) ** 0.5


def test_problems_are_standardised_and_of_two_classes() -> None:
    for name in gp.BUNDLED:
        x, y = gp.load(name)
        assert x.shape[0] == len(y) <= gp.ROWS
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(x.std(axis=0), 1)
        assert set(y) == {0.0, 1.0}
    with pytest.raises(ValueError, match="`data` must name the folder"):
        gp.load("energy")


def test_log_mean_of_weights_is_the_estimate() -> None:
    weights = evidence().log_weights(np.random.default_rng(1), THETA)
    found = evidence()(np.random.default_rng(1), THETA)
    np.testing.assert_allclose(found, logsumexp(weights) - np.log(4))


def test_report_has_medians_over_seeds() -> None:
    figures = ["rhat", "evaluations_to_400", "bulk_per_evaluation", "tail_per_evaluation"]
    figures += [*ERRORS, "noise", "cpu_seconds"]
    rows = [
        {"problem": "iris", "method": "score_hmc", "sweeps": 4, "particles": 64, "seed": seed}
        | dict.fromkeys(figures, value)
        for seed, value in enumerate((1.0, 2.0, 9.0))
    ]
    line = bench.report(rows).splitlines()[-1]
    assert line.startswith("| iris | ScoreHMC | 4 | 64 | 3 | 2.000 | 2 | 2e+03 |")


def test_table_of_the_page_is_that_of_the_result_file() -> None:
    assert bench.report(read(RESULTS / "hmc-classification.jsonl")) in PAGE.read_text()
