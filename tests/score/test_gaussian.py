import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score import Gaussian, matching_loss


def _correlated(rng: np.random.Generator, num: int, dimension: int, rho: float) -> np.ndarray:
    covariance = (1 - rho) * np.eye(dimension) + rho
    return rng.normal(size=(num, dimension)) @ np.linalg.cholesky(covariance).T


def test_plug_in_formula_without_shrinkage(precision):
    x = _correlated(np.random.default_rng(0), 60, 4, 0.5) * np.array([1e-2, 1.0, 10.0, 1e3]) + 2
    x = np.asarray(x, precision).astype(np.float64)  # what the estimator sees, exactly
    queries = x[:5]
    precision_matrix = np.linalg.inv(np.cov(x.T)) * (60 - 4 - 2) / (60 - 1)
    expected = -(queries - x.mean(0)) @ precision_matrix
    fitted = Gaussian().fit(jnp.asarray(x, precision))
    result = fitted(jnp.asarray(queries, precision))
    tolerance = 1e-10 if precision == jnp.float64 else 1e-4
    np.testing.assert_array_less(
        np.abs(result - expected).max(0), tolerance * np.abs(expected).max(0)
    )
    trace = fitted.divergence(jnp.asarray(queries, precision))
    np.testing.assert_allclose(trace, -np.trace(precision_matrix), rtol=max(tolerance, 1e-10))


def test_plug_in_formula_with_shrinkage():
    x = _correlated(np.random.default_rng(0), 6, 4, 0.5)
    covariance = np.cov(x.T)
    shrunk = 0.7 * covariance + 0.3 * np.diag(np.diag(covariance))
    expected = -(x - x.mean(0)) @ np.linalg.inv(shrunk)  # M <= D + 3: no factor
    result = Gaussian(shrinkage=0.3).fit(jnp.asarray(x, jnp.float32))(x)
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-3)


def test_with_as_many_samples_as_dimensions_it_is_diagonal():
    x = _correlated(np.random.default_rng(0), 5, 5, 0.9)
    expected = -(x - x.mean(0)) / x.var(0, ddof=1)
    np.testing.assert_allclose(Gaussian().fit(jnp.asarray(x, jnp.float32))(x), expected, rtol=1e-4)


def test_constant_coordinate_has_score_zero():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    x[:, 1] = 123.456
    scores = Gaussian().fit(x)(2 * x)
    np.testing.assert_array_equal(scores[:, 1], np.zeros(20))
    alone = Gaussian(shrinkage=0.0).fit(x[:, [0, 2]])(2 * x[:, [0, 2]])
    ratio = scores[:, 0] / alone[:, 0]  # only the unbiasing factor knows of the third coordinate
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_weights_are_repetitions():
    x = np.random.default_rng(0).normal(size=(10, 2))
    counts = np.arange(1, 11)
    w = counts / counts.sum()
    mean = w @ x
    size = 1 / np.sum(w**2)
    covariance = (x - mean).T @ (w[:, None] * (x - mean)) * size / (size - 1)
    expected = -(x - mean) @ np.linalg.inv(covariance) * (1 - 3 / (size - 1))
    fitted = Gaussian(shrinkage=0.0).fit(jnp.asarray(x, jnp.float32), weights=counts)
    np.testing.assert_allclose(fitted(x), expected, rtol=1e-4, atol=1e-5)
    assert float(fitted.info.effective_size) == pytest.approx(size, rel=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_slope_is_one_for_independent_and_for_correlated_samples(rho):
    # <s_hat, s> / <s, s> over 40 data sets of 100 samples in 10 dimensions, 5 standard errors.
    def slopes(estimator: Gaussian) -> np.ndarray:
        values = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            x, queries = _correlated(rng, 100, 10, rho), _correlated(rng, 400, 10, rho)
            truth = -queries @ np.linalg.inv((1 - rho) * np.eye(10) + rho)
            scores = np.asarray(estimator.fit(jnp.asarray(x, jnp.float32))(queries))
            values.append(np.sum(scores * truth) / np.sum(truth * truth))
        return np.array(values)

    def z_score(values: np.ndarray) -> float:
        return abs(values.mean() - 1) / (values.std(ddof=1) / np.sqrt(len(values)))

    assert z_score(slopes(Gaussian())) < 5
    if rho > 0:  # the usual shrinkage (D + 1)/M halves the score of correlated samples
        assert z_score(slopes(Gaussian(shrinkage=0.11))) > 5


def test_matching_loss_in_closed_form():
    # On samples with mean 0 and covariance I, s = -P x has mean(|s|^2/2 + div s) =
    # tr(P^2)/2 - tr(P): smallest, -D/2, at P = I.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T
    losses = []
    for scale in (0.5, 1.0, 2.0):
        fitted = Gaussian(shrinkage=0.0).fit(jnp.asarray(scale * x, jnp.float32))
        p = (400 - 4) / 400 / scale**2
        losses.append(float(matching_loss(fitted, jnp.asarray(x, jnp.float32))))
        assert losses[-1] == pytest.approx(p**2 - 2 * p, abs=1e-4)
    assert np.argmin(losses) == 1
