"""What every estimator promises: compiled, batched, no derivatives through the fit, bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import RBF
from implicitppl.score import (
    KDE,
    KEF,
    SSGE,
    DenoisingScoreMatching,
    Gaussian,
    Landweber,
    NuMethod,
    SlicedScoreMatching,
    SpectralCutoff,
    Stein,
    Tikhonov,
    matching_loss,
)
from tests.helpers import assert_compiles_once

TINY: dict[str, Any] = {"width": 4, "depth": 1, "num_steps": 20, "num_checks": 2, "batch_size": 8}
ESTIMATORS: dict[str, Any] = {
    "SSGE": SSGE(),
    "SSGE gaussian": SSGE(reference="gaussian"),
    "SSGE whitened": SSGE(metric="whitened", reference="gaussian"),
    "SSGE diagonal": SSGE(metric="diagonal"),
    "Stein": Stein(),
    "SSGE landmarks": SSGE(num_landmarks=12, reference="gaussian"),
    "Tikhonov": Tikhonov(),
    "Tikhonov iterated": Tikhonov(solver="conjugate gradients"),
    "SpectralCutoff": SpectralCutoff(),
    "Landweber": Landweber(),
    "NuMethod": NuMethod(),
    "KEF": KEF(),
    "KEF gaussian": KEF(reference="gaussian", metric="whitened"),
    "KDE": KDE(),
    "Gaussian": Gaussian(),
    "SlicedScoreMatching": SlicedScoreMatching(**TINY),
    "DenoisingScoreMatching": DenoisingScoreMatching(**TINY, noise=0.1),
}
# Seconds of compilation each; the second set differs little from the first.
LONG, LIKE_ANOTHER = ("DenoisingScoreMatching", "Tikhonov iterated"), ("SlicedScoreMatching",)


def _row(name: str) -> Any:
    marks = [pytest.mark.slow] if name in LONG else []
    return pytest.param(name, marks=[pytest.mark.exhaustive] if name in LIKE_ANOTHER else marks)


every_estimator = pytest.mark.parametrize(
    "name",
    [_row(name) for name in ESTIMATORS],
)


def _samples(num: int = 30, dimension: int = 3, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(num, dimension)), jnp.float32)


@every_estimator
def test_second_fit_and_query_of_equal_shapes_compile_nothing(name):
    estimator = ESTIMATORS[name]

    def fit_and_query(x: jax.Array, queries: jax.Array) -> jax.Array:
        return estimator.fit(x)(queries)

    first, second = (_samples(31), _samples(5)), (_samples(31, seed=1), _samples(5, seed=2))
    assert_compiles_once(fit_and_query, first, second)


@every_estimator
def test_several_samples_by_vmap_and_an_estimator_as_an_argument_of_jit(name):
    estimator = ESTIMATORS[name]
    several = jnp.stack([_samples(seed=seed) for seed in range(3)])
    fitted = jax.jit(lambda e, s: jax.vmap(e.fit)(s))(estimator, several)
    scores = jax.vmap(lambda f, x: f(x))(fitted, several)
    assert fitted.info.finite.shape == (3,)
    for samples, score in zip(several, scores, strict=True):
        np.testing.assert_allclose(score, estimator.fit(samples)(samples), atol=2e-3)


@every_estimator
def test_derivatives_go_through_the_query_only(name):
    x, query = _samples(), _samples(1)[0]
    estimator = ESTIMATORS[name]

    def total(samples: jax.Array, point: jax.Array) -> jax.Array:
        return jnp.sum(estimator.fit(samples)(point))

    through_fit, through_query = jax.grad(total, (0, 1))(x, query)
    np.testing.assert_array_equal(through_fit, jnp.zeros_like(x))
    expected = jnp.sum(jax.jacfwd(estimator.fit(x))(query), axis=0)
    # KEF's two terms are 1 / level = 300 times their difference, in float32.
    np.testing.assert_allclose(through_query, expected, rtol=2e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(through_query))) > 0


def test_floats_follow_the_samples(precision):
    x = _samples().astype(precision)
    fitted = SSGE(metric="whitened", reference="gaussian").fit(x)
    leaves = [leaf for leaf in jax.tree.leaves(fitted) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in leaves} == {precision}
    assert fitted(np.zeros(3)).dtype == fitted.divergence(np.zeros(3)).dtype == precision
    assert SSGE().fit(np.arange(6).reshape(3, 2)).info.finite  # integers become floats


def _constant(x: np.ndarray) -> np.ndarray:
    x[:, 1] = 1e4
    return x


DEGENERATE = {
    "duplicates": lambda x: np.concatenate([x[:5]] * 6),
    "constant coordinate": _constant,
    "all samples equal": lambda x: np.full_like(x, 3.7),
    "two samples": lambda x: x[:2],
    "fewer samples than dimensions": lambda x: x[:3].reshape(1, -1).repeat(3, 0) * [[1], [2], [4]],
    "collinear": lambda x: x[:, :1] * np.array([[1.0, 2.0, 3.0]]),
    "tiny": lambda x: 1e-12 * x,
    "huge": lambda x: 1e12 * x,
}


# The filters share the code of SSGE up to a multiplier.
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize(
    "name",
    [
        "SSGE",
        "SSGE whitened",
        "SSGE diagonal",
        "SSGE landmarks",
        "Stein",
        "KEF",
        "KDE",
        "Gaussian",
        _row("SlicedScoreMatching"),
    ],
)
def test_degenerate_samples_give_finite_scores(name, case):
    x = DEGENERATE[case](np.array(_samples(), np.float32)).astype(np.float32)
    fitted = ESTIMATORS[name].fit(x)
    assert bool(fitted.info.finite)
    scores = fitted(x)
    assert bool(jnp.all(jnp.isfinite(scores)))
    assert bool(jnp.all(jnp.isfinite(fitted(2 * x + 1))))
    if case == "constant coordinate":
        np.testing.assert_array_equal(scores[:, 1], jnp.zeros(30))
        assert float(jnp.max(jnp.abs(scores[:, 0]))) > 0.1
    if case == "all samples equal":
        np.testing.assert_array_equal(scores, jnp.zeros_like(scores))


@every_estimator
@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(3), r"`samples` must have shape \(M, D\).*got shape \(3,\)"),
        (np.zeros((2, 3, 4)), r"`samples` must have shape \(M, D\).*jax.vmap"),
        (np.zeros((1, 3)), r"`samples` must hold at least 2 samples; got 1"),
        (np.zeros((4, 0)), r"`samples` must have at least one coordinate"),
        (np.array([[0.0, np.nan], [1, 2], [np.inf, 0]]), r"`samples` must be finite; .* 2 rows"),
    ],
)
def test_bad_samples_raise_at_once(name, samples, message):
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name].fit(samples)


def test_shapes_raise_under_jit_and_values_set_a_flag():
    with pytest.raises(ValueError, match=r"`samples` must have shape"):
        jax.jit(SSGE().fit)(jnp.zeros(3))
    bad = jax.jit(SSGE().fit)(_samples().at[0, 0].set(jnp.nan))
    assert not bool(bad.info.finite)


def test_bad_queries_and_weights():
    fitted = SSGE().fit(_samples())
    for query in (jnp.zeros(2), jnp.zeros((5, 4)), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"`x` must have shape .* D = 3"):
            fitted(query)
        with pytest.raises(ValueError, match=r"D = 3"):
            fitted.divergence(query)
    with pytest.raises(ValueError, match=r"D = 3"):
        matching_loss(fitted, jnp.zeros((5, 2)))
    weights = {
        r"`weights` must have shape \(M,\)": np.ones(4),
        r"`weights` must be finite and non-negative": -np.ones(30),
        r"`weights` must be positive for at least 2": np.eye(30)[0],
    }
    for message, value in weights.items():
        with pytest.raises(ValueError, match=message):
            SSGE().fit(_samples(), weights=value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SSGE(num_eigenfunctions=0), r"`number` must be an integer of at least 1; got 0"),
        (lambda: SSGE(explained=0.0), r"`explained` must be in \(0, 1\]; got 0.0"),
        (lambda: SSGE(ridge=-1.0), r"`ridge` must be non-negative; got -1.0"),
        (lambda: SSGE(lengthscale=0.0), r"`lengthscale` must be positive; got 0.0"),
        (lambda: SSGE(lengthscale_factor=-1.0), r"`lengthscale_factor` must be positive"),
        (lambda: SSGE(metric="euclid"), r"`metric` must be one of isotropic, .*; got 'euclid'"),
        (lambda: SSGE(reference="normal"), r"`reference` must be None, \"gaussian\" or a callable"),
        (lambda: SSGE(RBF(1.0), lengthscale=1.0), r"`lengthscale` needs a kernel family"),
        (lambda: SSGE(metric="whitened", lengthscale=1.0), r"are in data units"),
        (lambda: SSGE(max_eigenfunctions=0), r"`max_eigenfunctions` must be at least 1; got 0"),
        (lambda: Stein(ridge=0.0), r"`ridge` must be positive; got 0.0"),
        (lambda: Gaussian(shrinkage=1.5), r"`shrinkage` must be in \[0, 1\]; got 1.5"),
        (lambda: SSGE(reference=lambda x: x[0]).fit(_samples()), r"`reference` must map a point"),
    ],
)
def test_bad_options_raise_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
