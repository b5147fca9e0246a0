"""The rest of the family against slow independent versions in NumPy, each from its formula."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import RBF, InverseMultiquadric, Matern12, Matern52
from implicitppl.score import (
    KDE,
    KEF,
    SSGE,
    ConditionalMixture,
    Gaussian,
    Landweber,
    NuMethod,
    SpectralCutoff,
    Stein,
    Tikhonov,
    matching_loss,
)

M, D, WIDTH = 30, 2, 1.5


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def _samples(seed: int = 0, num: int = M) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(num, D))
    return np.stack([z[:, 0], 0.7 * z[:, 1] + 0.5 * z[:, 0] ** 2], axis=1)


def _gram_and_zeta(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return K / M and h_i = mean_m grad_{x_m} k(x_i, x_m), by broadcasting."""
    difference = x[:, None] - x[None]
    gram = np.exp(-(difference**2).sum(-1) / (2 * WIDTH**2))
    zeta = (gram[:, :, None] * difference / WIDTH**2).mean(axis=1)
    return gram / len(x), zeta


@pytest.mark.smoke
def test_tikhonov_solves_its_equation_on_the_samples():
    x = _samples()
    operator, zeta = _gram_and_zeta(x)
    lam = 0.05 * np.linalg.eigvalsh(operator)[-1]
    expected = -np.linalg.solve(operator + lam * np.eye(M), zeta)
    fitted = Tikhonov(RBF(WIDTH), level=0.05).fit(jnp.asarray(x))
    np.testing.assert_allclose(fitted(x), expected, rtol=1e-6, atol=1e-8)
    stein = Stein(RBF(WIDTH), ridge=M * lam).fit(jnp.asarray(x))
    np.testing.assert_allclose(stein(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_tikhonov_by_conjugate_gradients_is_the_exact_solution_everywhere(weighted):
    # (L + lam) s = -zeta - L s0 for the residual, solved by dense NumPy, on and off the samples.
    x, queries = _samples(), _samples(1, 7)
    w = np.random.default_rng(2).uniform(0.2, 2, M) if weighted else np.ones(M)
    w /= w.sum()
    gram, (cross, zeta) = _kernel(x, x)[0], _kernel(queries, x)
    at_samples = np.einsum("imd,m->id", _kernel(x, x)[1], w)
    at_queries = np.einsum("imd,m->id", zeta, w)
    root = np.sqrt(w)[:, None]
    lam = 0.02 * np.linalg.eigvalsh(root * gram * root.T)[-1]
    base = -x
    target = -(at_samples + gram @ (w[:, None] * base))
    residual = np.linalg.solve(gram * w[None, :] + lam * np.eye(M), target)
    expected = -(at_queries + cross @ (w[:, None] * (base + residual))) / lam - queries
    estimator = Tikhonov(
        RBF(WIDTH),
        level=0.02,
        reference=lambda p: -p,
        solver="conjugate gradients",
        tolerance=1e-12,
    )
    fitted = estimator.fit(jnp.asarray(x), weights=jnp.asarray(w) if weighted else None)
    # The largest eigenvalue is from ten power steps: 1% of it is 1% of lam.
    np.testing.assert_allclose(fitted(queries), expected, rtol=0.02, atol=0.02)
    exact = Tikhonov(
        RBF(WIDTH),
        level=lam / float(fitted.info.ridge / M) * 0.02,
        reference=lambda p: -p,
        solver="conjugate gradients",
        tolerance=1e-12,
    ).fit(jnp.asarray(x), weights=jnp.asarray(w) if weighted else None)
    np.testing.assert_allclose(exact(queries), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(exact(x), base + residual, rtol=1e-6, atol=1e-7)
    assert (fitted.info.solver, float(exact.info.residual) < 1e-10) == ("conjugate gradients", True)
    trace = jax.vmap(lambda p: jnp.trace(jax.jacfwd(exact)(p)))(jnp.asarray(queries))
    np.testing.assert_allclose(exact.divergence(queries), trace, rtol=1e-9)


def _kernel(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return k(x_i, y_m) and its gradient in y_m, by broadcasting."""
    difference = x[:, None] - y[None]
    gram = np.exp(-(difference**2).sum(-1) / (2 * WIDTH**2))
    return gram, gram[:, :, None] * difference / WIDTH**2


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        Tikhonov(solver="conjugate gradients", tolerance=1e-12),
        KEF(reference="gaussian", tolerance=1e-12),
    ],
)
def test_blocks_give_what_the_whole_gives(estimator, monkeypatch):
    x = jnp.asarray(_samples(num=50))
    whole = estimator.fit(x)(x[:5])
    for name, value in (("KEPT", 1), ("_BLOCK", 350)):  # blocks of seven rows
        monkeypatch.setattr(f"implicitppl.score._spectral.conjugate_gradients.{name}", value)
    monkeypatch.setattr("implicitppl.score._kef.KEPT", 1)
    jax.clear_caches()
    np.testing.assert_allclose(estimator.fit(x)(x[:5]), whole, rtol=1e-7, atol=1e-9)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "dense"}, r"`solver` must be \"spectral\" or \"conjugate gradients\"; got"),
        (
            {"solver": "conjugate gradients", "num_landmarks": 5},
            "`num_landmarks` belongs to the solver",
        ),
        ({"solver": "conjugate gradients", "level": 0.0}, "`level` must be positive"),
        ({"solver": "conjugate gradients", "kernel": Matern12}, "a continuous gradient"),
    ],
)
def test_solvers_of_tikhonov_that_do_not_fit_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Tikhonov(**options)


def test_landweber_is_the_recursion_on_the_samples():
    x = _samples()
    operator, zeta = _gram_and_zeta(x)
    step = 1 / np.linalg.eigvalsh(operator)[-1]
    s = np.zeros_like(x)
    for _ in range(37):
        s = s - step * (operator @ s + zeta)
    fitted = Landweber(RBF(WIDTH), num_iterations=37).fit(jnp.asarray(x))
    np.testing.assert_allclose(fitted(x), s, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("nu", [1.0, 2.0])
def test_the_nu_method_is_the_recursion_on_the_samples(nu):
    x = _samples()
    operator, zeta = _gram_and_zeta(x)
    norm = np.linalg.eigvalsh(operator)[-1]
    operator, zeta = operator / norm, zeta / norm
    before = np.zeros_like(x)
    s = -(4 * nu + 2) / (4 * nu + 1) * zeta
    for n in range(2, 13):
        bottom = (n + 2 * nu - 1) * (2 * n + 4 * nu - 1)
        u = (n - 1) * (2 * n - 3) * (2 * n + 2 * nu - 1) / (bottom * (2 * n + 2 * nu - 3))
        w = 4 * (2 * n + 2 * nu - 1) * (n + nu - 1) / bottom
        s, before = s + u * (s - before) - w * (operator @ s + zeta), s
    fitted = NuMethod(RBF(WIDTH), num_iterations=12, nu=nu).fit(jnp.asarray(x))
    np.testing.assert_allclose(fitted(x), s, rtol=1e-6, atol=1e-8)


def test_a_cutoff_projects_on_the_leading_eigenvectors_on_the_samples():
    x = _samples()
    operator, zeta = _gram_and_zeta(x)
    values, vectors = np.linalg.eigh(operator)
    values, vectors = values[-5:], vectors[:, -5:]
    expected = -vectors @ ((vectors.T @ zeta) / values[:, None])
    fitted = SpectralCutoff(RBF(WIDTH), num_eigenfunctions=5).fit(jnp.asarray(x))
    np.testing.assert_allclose(fitted(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "estimator", [Landweber(), NuMethod(), Tikhonov(), KEF(tolerance=1e-9, max_iterations=1000)]
)
def test_rescaled_samples_do_not_diverge(estimator):
    # With a step that is not relative to the operator's norm the iterations diverge here.
    x = jnp.asarray(_samples())
    plain = estimator.fit(x)(x)
    for a in (0.03, 1e3):
        np.testing.assert_allclose(a * estimator.fit(a * x)(a * x), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "reference", "weighted"),
    [
        (RBF, None, False),
        (RBF, "gaussian", True),
        (InverseMultiquadric, "gaussian", False),
    ],
)
def test_kef_is_the_dense_system(family, reference, weighted):
    # (L + lam) s = -zeta - L s0 with Kmat = grad_x grad_y^T psi, all by automatic differentiation.
    x = _samples(num=12)
    raw = np.random.default_rng(1).uniform(0.5, 1.5, 12) if weighted else np.ones(12)
    w = raw / raw.sum()
    fitted = KEF(family, level=0.02, reference=reference, tolerance=1e-12, max_iterations=2000).fit(
        x, weights=w if weighted else None
    )
    expansion: Any = fitted.parts[-1]
    kernel, scale = expansion.kernel, float(expansion.coordinates.scale)
    z = expansion.coordinates.to(jnp.asarray(x))

    def matrix(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.jacfwd(jax.grad(kernel.__call__, 0), 1)(a, b)

    def divergence(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.trace(jax.jacfwd(matrix, 1)(a, b), axis1=1, axis2=2)

    def of_all_pairs(function: Callable) -> np.ndarray:
        rows = jax.vmap(jax.vmap(function, (None, 0)), (0, None))
        return np.asarray(jax.jit(rows)(z, z))

    dense = np.swapaxes(of_all_pairs(matrix), 1, 2).reshape(24, 24)
    every = np.repeat(w, 2)
    zeta = np.einsum("j,ijd->id", w, of_all_pairs(divergence)).reshape(-1)
    s0 = np.zeros(24)
    if reference is not None:
        s0 = (np.asarray(Gaussian().fit(x, weights=w)(x)) * scale).reshape(-1)
    root = np.sqrt(every)
    lam = 0.02 * np.linalg.eigvalsh(root[:, None] * dense * root[None, :])[-1]
    operator = dense * every[None, :]
    # Ten power iterations find the largest eigenvalue to a percent or so; lam is what was used.
    assert float(fitted.info.ridge) == pytest.approx(float(lam), rel=0.05)
    ridge = float(fitted.info.ridge)
    s = np.linalg.solve(operator + ridge * np.eye(24), -zeta - operator @ s0)
    expected = (s + s0).reshape(12, 2) / scale
    np.testing.assert_allclose(fitted(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("family", "metric"),
    [(RBF, "isotropic"), (InverseMultiquadric, "diagonal"), (RBF, "whitened")],
)
def test_kef_is_the_gradient_of_its_log_density(family, metric):
    x = jnp.asarray(_samples())
    fitted = KEF(family, reference="gaussian", metric=metric).fit(x)
    queries = jnp.asarray(_samples(5, 4))
    gradient = jax.jit(jax.vmap(jax.grad(fitted.unnormalized_log_density)))(queries)
    np.testing.assert_allclose(gradient, fitted(queries), rtol=1e-8)
    jacobian = np.asarray(jax.vmap(jax.jacfwd(fitted))(queries))
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-10)
    trace = np.trace(jacobian, axis1=1, axis2=2)
    np.testing.assert_allclose(fitted.divergence(queries), trace, rtol=1e-8)


@pytest.mark.smoke
def test_kef_beats_its_reference_on_fresh_samples():
    x, fresh = jnp.asarray(_samples(num=200)), jnp.asarray(_samples(7, 2000))
    kef = KEF(reference="gaussian").fit(x)
    assert float(matching_loss(kef, fresh)) < float(matching_loss(Gaussian().fit(x), fresh)) - 0.1


def test_a_log_density_needs_a_gradient_field():
    x = jnp.asarray(_samples())
    with pytest.raises(ValueError, match=r"needs a score that is a gradient.*Expansion"):
        SSGE().fit(x).unnormalized_log_density(x)
    gaussian = Gaussian().fit(x)
    gradient = jax.jit(jax.vmap(jax.grad(gaussian.unnormalized_log_density)))(x)
    np.testing.assert_allclose(gradient, gaussian(x))


def test_kde_is_the_gradient_of_the_log_of_the_estimate_and_is_floored():
    x = _samples()
    plain, floored = KDE(floor=0.0).fit(x), KDE(floor=1e-2).fit(x)
    h = x.std(axis=0, ddof=1) * M ** (-1 / 6)
    query = np.array([0.3, -0.2])

    @jax.jit
    def log_density(point: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(-0.5 * jnp.sum(((point[None, :] - x) / h[None, :]) ** 2, axis=1))

    np.testing.assert_allclose(plain(query), jax.grad(log_density)(query))
    np.testing.assert_allclose(floored(query), plain(query))
    with pytest.raises(ValueError, match="has no log density"):  # the floor is not a gradient's
        floored.unnormalized_log_density(query)
    # Between: s = grad p / max(p, eps), eps 1% of what one sample has at its own place, p < eps.
    between = np.array([2.2, -1.2])
    one_sample = -np.log(M)  # log of (1/M) exp(0), the constant left out on both sides
    log_p = float(log_density(between)) - np.log(M)
    damping = np.exp(log_p - (one_sample + np.log(1e-2)))
    assert 1e-3 < damping < 0.5
    np.testing.assert_allclose(floored(between), damping * plain(between), rtol=1e-8)
    far = np.array([30.0, 0.0])
    assert abs(float(plain(far)[0])) > 50
    np.testing.assert_allclose(floored(far), 0, atol=1e-12)


def test_semi_implicit_scores_are_those_of_the_mixture_and_approach_the_truth():
    # z ~ N(0, I), x = z + N(0, I / 4): x ~ N(0, 1.25 I), score -x / 1.25.
    def conditional(x: jax.Array, z: jax.Array) -> jax.Array:
        return -2 * jnp.sum((x - z) ** 2)

    rng = np.random.default_rng(0)
    queries = rng.normal(size=(200, 2)) * np.sqrt(1.25)
    errors = []
    for size in (100, 1000, 10_000):
        fitted = ConditionalMixture(conditional).fit(jnp.asarray(rng.normal(size=(size, 2))))
        errors.append(np.mean((np.asarray(fitted(queries)) + queries / 1.25) ** 2))
    assert errors[0] > 2 * errors[1]
    assert errors[1] > 2 * errors[2]
    assert errors[2] < 0.02 * 0.8  # of E|s|^2 for each coordinate; weights are uneven in the tails
    gradient = jax.jit(jax.grad(fitted.unnormalized_log_density))(queries[0])
    np.testing.assert_allclose(gradient, fitted(queries[0]), rtol=1e-8)
    # From the same number of samples of x alone nothing comes close.
    x = rng.normal(size=(1000, 2)) * np.sqrt(1.25)
    alone = np.mean((np.asarray(KDE().fit(x)(queries)) + queries / 1.25) ** 2)
    assert errors[1] < 0.5 * alone


def test_semi_implicit_with_labels_as_mixing_variables():
    places = jnp.array([[0.0, 0.0], [4.0, 0.0]])
    fitted = ConditionalMixture(lambda x, z: -0.5 * jnp.sum((x - places[z]) ** 2)).fit(
        jnp.arange(2), dimension=2
    )
    np.testing.assert_allclose(fitted(jnp.array([2.0, 1.0])), [0.0, -1.0], atol=1e-12)


def test_semi_implicit_weights_and_trees():
    z = {"loc": _samples(num=20), "scale": np.full(20, 0.5)}

    def conditional(x: jax.Array, z: dict) -> jax.Array:
        return -0.5 * jnp.sum(((x - z["loc"]) / z["scale"]) ** 2) - 2 * jnp.log(z["scale"])

    w = np.isin(np.arange(20), (3, 4)).astype(float)
    fitted = ConditionalMixture(conditional).fit(z, dimension=2, weights=w)
    two = jax.tree.map(lambda leaf: leaf[3:5], z)
    query = jnp.array([0.2, 0.1])
    expected = ConditionalMixture(conditional).fit(two, dimension=2)(query)
    np.testing.assert_allclose(fitted(query), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tikhonov(level=-1.0), r"`level` must be non-negative; got -1.0"),
        (lambda: Landweber(num_iterations=0), r"`num_iterations` must be an integer of at least 1"),
        (lambda: Landweber(step=2.0), r"`step` must be in \(0, 2\); got 2.0"),
        (lambda: NuMethod(nu=0.0), r"`nu` must be positive; got 0.0"),
        (lambda: KEF(level=0.0), r"`level` must be positive; got 0.0"),
        (lambda: KEF(RBF(1.0)), r"`family` must be a radial kernel class such as RBF"),
        (lambda: KEF(Matern52), r"`family` must have four derivatives.*got Matern52"),
        (lambda: KEF(metric="euclid"), r"`metric` must be one of"),
        (lambda: KDE(floor=-1.0), r"`floor` must be non-negative; got -1.0"),
        (lambda: SSGE(num_landmarks=1), r"`num_landmarks` must be at least 2; got 1"),
        (lambda: ConditionalMixture(3.0), r"`log_conditional` must be a function .* got float"),
        (
            lambda: ConditionalMixture(lambda x, z: x).fit(jnp.ones((3, 2)))(jnp.ones(2)),
            r"`log_conditional` must return one number .* got shape \(2,\)",
        ),
        (lambda: ConditionalMixture(min).fit({"a": jnp.ones(3)}), r"`dimension` of x is needed"),
        (lambda: ConditionalMixture(min).fit([jnp.ones(3), jnp.ones(4)]), r"one leading axis K"),
    ],
)
def test_bad_options_raise_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_landmarks():
    x = jnp.asarray(_samples(num=200))
    every = SSGE(ridge=1.0, num_landmarks=200).fit(x)
    assert (every.info.solver, SSGE(num_landmarks=40).fit(x).info.solver) == ("full", "landmarks")
    some = SSGE(ridge=1.0, num_landmarks=60).fit(x, key=jax.random.key(0))
    truth = np.asarray(every(x))
    assert np.linalg.norm(some(x) - truth) / np.linalg.norm(truth) < 0.05
    expansion: Any = some.parts[-1]
    assert expansion.centres.shape == (60, 2)
    few = SSGE(ridge=1.0, num_landmarks=4).fit(x)
    assert np.linalg.norm(few(x) - truth) / np.linalg.norm(truth) > 0.05
