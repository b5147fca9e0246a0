"""SSGE: the published algorithm, its identities, its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import RBF, InverseMultiquadric, Matern32
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score import SSGE, Cutoff, matching_loss
from implicitppl.score._spectral.filters import Ridge

M, D = 40, 3


def _samples(seed: int = 0, num: int = M) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num, D))
    return np.stack([z[:, 0], 0.5 * z[:, 1] + 0.3 * z[:, 0] ** 2, 2 * z[:, 2] + z[:, 0]], axis=1)


def original_ssge(
    x: np.ndarray, queries: np.ndarray, width: float, number: int, ridge: float = 0.0
) -> np.ndarray:
    """SSGE as published, transcribed with explicit loops over eigenfunctions, in float64."""
    num = len(x)
    gram = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * width**2))
    values, vectors = np.linalg.eigh(gram)
    score = np.zeros_like(queries)
    for value, u in list(zip(values[::-1], vectors.T[::-1], strict=True))[:number]:
        scale = np.sqrt(num) / (value + ridge)
        beta = np.zeros(x.shape[1])
        for i in range(num):
            for m in range(num):
                gradient = gram[i, m] * (x[m] - x[i]) / width**2
                beta -= scale * u[m] * gradient / num
        for q, query in enumerate(queries):
            k = np.exp(-((x - query) ** 2).sum(-1) / (2 * width**2))
            score[q] += beta * scale * (u @ k)
    return score


@pytest.mark.smoke
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_agrees_with_the_published_algorithm(ridge, precision):
    x, queries = _samples(), _samples(1, 7)
    expected = original_ssge(x, queries, 2.5, 6, ridge)
    estimator = SSGE(lengthscale=2.5, num_eigenfunctions=6, ridge=ridge)
    fitted = estimator.fit(jnp.asarray(x, precision))
    result = fitted(jnp.asarray(queries, precision))
    assert result.dtype == precision
    tolerance = 1e-10 if precision == jnp.float64 else 1e-5
    assert np.max(np.abs(result - expected)) < tolerance * np.max(np.abs(expected))


def test_one_eigenfunction_fewer_is_a_different_estimate():
    x, queries = _samples(), _samples(1, 7)
    five, six = (original_ssge(x, queries, 2.5, number) for number in (5, 6))
    assert np.max(np.abs(five - six)) > 0.05 * np.max(np.abs(six))


@pytest.mark.parametrize("reference", [None, "gaussian", lambda x: -0.5 * x])
def test_empirical_stein_identity_holds_for_every_kept_eigenfunction(reference):
    # (1/M) sum_i [psi_j(x_i) s(x_i) + grad psi_j(x_i)] = 0 for j <= J, psi_j the Nystrom
    # eigenfunctions, which are orthonormal on the samples.
    with jax.enable_x64(True):
        x = jnp.asarray(_samples())
        kernel = RBF(2.5)
        values, vectors = np.linalg.eigh(jax.jit(kernel.gram)(x))
        weights = vectors[:, ::-1] * (np.sqrt(M) / values[::-1])

        def psi(point: jax.Array) -> jax.Array:
            return kernel.gram(point[None, :], x)[0] @ weights

        functions = np.asarray(jax.jit(jax.vmap(psi))(x))
        gradients = np.asarray(jax.jit(jax.vmap(jax.jacfwd(psi)))(x))
        np.testing.assert_allclose(functions.T @ functions / M, np.eye(M), atol=1e-8)
        scores = SSGE(kernel, num_eigenfunctions=8, reference=reference).fit(x)(x)
        gap = functions.T @ np.asarray(scores) / M + np.mean(gradients, axis=0)
        np.testing.assert_allclose(gap[:8], 0, atol=1e-10)
        assert np.max(np.abs(gap[8])) > 1e-3  # the first that was dropped


def test_number_of_eigenfunctions_from_explained_mass():
    x = jnp.asarray(_samples(), jnp.float32)
    values = np.linalg.eigvalsh(np.asarray(jax.jit(RBF(2.5).gram)(x), np.float64))[::-1]
    share = np.cumsum(values) / M
    for explained in (0.5, 0.9, 0.99):
        info = SSGE(lengthscale=2.5, explained=explained).fit(x).info
        number = int(np.sum(share < explained)) + 1
        assert int(info.num_eigenfunctions) == number
        assert float(info.explained) == pytest.approx(share[number - 1], rel=1e-4)
    assert int(SSGE(lengthscale=100.0, explained=0.5).fit(x).info.num_eigenfunctions) == 1


def test_automatic_lengthscale_is_the_median_times_the_factor_in_data_units():
    x = jnp.asarray(1e3 * _samples(), jnp.float32)
    info = SSGE(lengthscale_factor=1.5).fit(x).info
    median = float(jax.jit(median_lengthscale)(x))
    assert float(info.lengthscale) == pytest.approx(1.5 * median, rel=1e-5)
    assert (info.metric, info.estimator, info.num_samples) == ("isotropic", "SSGE", M)


CONFIGURATIONS = {
    "default": SSGE(),
    "gaussian reference": SSGE(reference="gaussian"),
    "ridge": SSGE(ridge=0.1),
    "whitened": SSGE(metric="whitened", reference="gaussian"),
    "multiquadric": SSGE(InverseMultiquadric),
    "diagonal": SSGE(metric="diagonal"),
}
ROTATION = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_scaled_and_shifted_samples(name):
    estimator, x, queries = CONFIGURATIONS[name], _samples(), _samples(1, 7)
    before = estimator.fit(jnp.asarray(x, jnp.float32))
    scores = before(jnp.asarray(queries, jnp.float32))
    for a in (1e-3, 1.0, 1e3):
        moved = estimator.fit(jnp.asarray(a * x + 5 * a, jnp.float32))
        result = a * moved(jnp.asarray(a * queries + 5 * a, jnp.float32))
        assert int(moved.info.num_eigenfunctions) == int(before.info.num_eigenfunctions)
        assert jnp.max(jnp.abs(result - scores)) < 1e-4 * jnp.max(jnp.abs(scores))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_rotated_samples(name):
    estimator, x, queries = CONFIGURATIONS[name], _samples(), _samples(1, 7)
    scores = estimator.fit(jnp.asarray(x, jnp.float32))(jnp.asarray(queries, jnp.float32))
    turned = estimator.fit(jnp.asarray(x @ ROTATION.T + 3, jnp.float32))
    result = turned(jnp.asarray(queries @ ROTATION.T + 3, jnp.float32))
    gap = jnp.max(jnp.abs(result - scores @ ROTATION.T)) / jnp.max(jnp.abs(scores))
    if name == "diagonal":
        assert float(gap) > 1e-2  # this metric is not made for rotations
    else:
        assert float(gap) < 1e-4


@pytest.mark.parametrize("name", ["whitened", "diagonal"])
def test_coordinates_rescaled_one_by_one(name):
    estimator, x, queries = CONFIGURATIONS[name], _samples(), _samples(1, 7)
    scales = np.array([1e-2, 1.0, 1e2])
    scores = estimator.fit(jnp.asarray(x, jnp.float32))(jnp.asarray(queries, jnp.float32))
    stretched = estimator.fit(jnp.asarray(x * scales, jnp.float32))
    result = np.asarray(stretched(jnp.asarray(queries * scales, jnp.float32))) * scales
    assert np.max(np.abs(result - scores)) < 1e-4 * float(jnp.max(jnp.abs(scores)))


def test_order_of_samples_and_company_of_a_query_do_not_matter():
    x, queries = jnp.asarray(_samples(), jnp.float32), jnp.asarray(_samples(1, 100), jnp.float32)
    fitted = SSGE(reference="gaussian").fit(x)
    scores = fitted(queries)
    scale = float(jnp.max(jnp.abs(scores)))
    np.testing.assert_allclose(fitted(queries[3]), scores[3], atol=1e-5 * scale)
    reshaped = fitted(queries.reshape(4, 25, D))
    np.testing.assert_allclose(reshaped.reshape(100, D), scores, atol=1e-6 * scale)
    shuffled = SSGE(reference="gaussian").fit(x[np.random.default_rng(0).permutation(M)])
    np.testing.assert_allclose(shuffled(queries), scores, atol=5e-5 * scale)


def test_an_exact_reference_leaves_the_residual_to_the_kernel():
    # A wrong reference is corrected where the kernel sees data and rules elsewhere.
    x = jnp.asarray(_samples(), jnp.float32)
    far = jnp.full((1, D), 1e3)
    fitted = SSGE(reference=lambda p: -2.0 * p).fit(x)
    np.testing.assert_allclose(fitted(far), -2 * far, rtol=1e-6)
    np.testing.assert_array_equal(SSGE().fit(x)(far), jnp.zeros((1, D)))
    assert fitted.info.reference == "callable"


def test_repeated_samples_equal_weights():
    x = _samples(num=12)
    counts = np.random.default_rng(0).integers(1, 4, size=12)
    queries = jnp.asarray(_samples(1, 7))
    with jax.enable_x64(True):
        for estimator in (
            SSGE(lengthscale=2.5, num_eigenfunctions=6),
            SSGE(lengthscale=2.5, num_eigenfunctions=6, reference=lambda p: -p),
        ):
            weighted = estimator.fit(jnp.asarray(x), weights=jnp.asarray(counts))
            repeated = estimator.fit(jnp.asarray(np.repeat(x, counts, axis=0)))
            # The ridge-free cut-off sees K/M, which repetition leaves as it is.
            np.testing.assert_allclose(weighted(queries), repeated(queries), atol=1e-9)


def test_composite_kernel_and_filter_are_the_seam_for_new_estimators():
    x, queries = jnp.asarray(_samples(), jnp.float32), jnp.asarray(_samples(1, 7), jnp.float32)
    by_filter = SSGE(lengthscale=2.5, filter=Cutoff(6) * Ridge(0.1)).fit(x)(queries)
    by_option = SSGE(lengthscale=2.5, num_eigenfunctions=6, ridge=0.1).fit(x)(queries)
    np.testing.assert_array_equal(by_filter, by_option)
    halves = SSGE(0.5 * RBF(2.5) + 0.5 * RBF(2.5), num_eigenfunctions=6).fit(x)(queries)
    whole = SSGE(RBF(2.5), num_eigenfunctions=6).fit(x)(queries)
    np.testing.assert_allclose(halves, whole, atol=1e-4 * float(jnp.max(jnp.abs(whole))))
    family = SSGE(lambda scale: RBF(scale) + Matern32(scale), lengthscale=2.5).fit(x)(queries)
    ready = SSGE(RBF(2.5) + Matern32(2.5)).fit(x)(queries)
    np.testing.assert_allclose(family, ready, atol=1e-4 * float(jnp.max(jnp.abs(ready))))


def test_subspace_iteration_gives_the_same_score():
    x, queries = jnp.asarray(_samples(num=150), jnp.float32), jnp.asarray(_samples(1, 7))
    full = SSGE(num_eigenfunctions=8).fit(x)
    part = SSGE(num_eigenfunctions=8, max_eigenfunctions=12).fit(x)
    scale = float(jnp.max(jnp.abs(full(queries))))
    np.testing.assert_allclose(part(queries), full(queries), atol=1e-3 * scale)
    assert float(part.info.explained) == pytest.approx(float(full.info.explained), rel=1e-5)


def test_divergence_in_closed_form():
    with jax.enable_x64(True):
        x, queries = jnp.asarray(_samples()), jnp.asarray(_samples(1, 5))
        for estimator in (
            SSGE(metric="whitened", reference="gaussian"),
            SSGE(InverseMultiquadric, metric="diagonal", reference=lambda p: -jnp.tanh(p)),
            SSGE(RBF(2.0) * Matern32(3.0)),
        ):
            fitted = estimator.fit(x)
            jacobians = jax.vmap(jax.jacfwd(fitted))(queries)
            expected = np.trace(jacobians, axis1=1, axis2=2)
            np.testing.assert_allclose(fitted.divergence(queries), expected, rtol=1e-9, atol=1e-9)
            score = np.asarray(fitted(queries))
            loss = np.mean(0.5 * np.sum(score**2, axis=1) + expected)
            np.testing.assert_allclose(matching_loss(fitted, queries), loss, rtol=1e-9)
        points, step = np.asarray(queries), 1e-5
        differences = sum(
            np.asarray(fitted(points + step * e) - fitted(points - step * e)) @ e for e in np.eye(D)
        )
        np.testing.assert_allclose(fitted.divergence(queries), differences / (2 * step), atol=1e-6)


def test_many_queries_go_in_blocks(monkeypatch):
    x, queries = jnp.asarray(_samples(), jnp.float32), jnp.asarray(_samples(1, 50), jnp.float32)
    fitted = SSGE().fit(x)
    whole, divergence = fitted(queries), fitted.divergence(queries)
    monkeypatch.setattr("implicitppl.score._fitted._BLOCK", 7 * M)
    jax.clear_caches()
    np.testing.assert_allclose(fitted(queries), whole, atol=1e-5)
    np.testing.assert_allclose(fitted.divergence(queries), divergence, atol=1e-4)
    text = str(jax.make_jaxpr(lambda q: fitted(q))(queries))
    assert f"[50,{M}]" not in text
