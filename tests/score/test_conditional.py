"""Conditional scores: the block of x of a joint score, for every metric, judged on x alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import RBF, InverseMultiquadric
from implicitppl.score import (
    KDE,
    KEF,
    SSGE,
    Gaussian,
    KernelEstimator,
    Stein,
    Tikhonov,
    matching_loss,
    select,
)
from implicitppl.score._spectral.filters import RelativeRidge

KEY = jax.random.key(2)


def _draw(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x | c ~ N((sin 2 c_1 + 3 c_2, c_1), diag(.5, 1)), c (C = 2), and the score in x."""
    rng = np.random.default_rng(seed)
    c = np.stack([rng.normal(size=num), rng.integers(0, 2, num)], axis=1)
    mean = np.stack([np.sin(2 * c[:, 0]) + 3 * c[:, 1], c[:, 0]], axis=1)
    variance = np.array([0.5, 1.0])
    x = mean + rng.normal(size=(num, 2)) * np.sqrt(variance)
    return x, c, -(x - mean) / variance


def test_with_a_kernel_in_data_units_it_is_a_block_of_the_joint_score():
    with jax.enable_x64(True):
        x, c, _ = _draw(80)
        queries, given, _ = _draw(7, seed=1)
        for estimator in (SSGE(RBF(1.5)), Tikhonov(lengthscale=2.0), SSGE(RBF(1.0), ridge=1.0)):
            conditional = estimator.fit(x, covariates=c)
            joint = estimator.fit(np.concatenate([c, x], axis=1))
            expected = joint(np.concatenate([given, queries], axis=1))[:, 2:]
            np.testing.assert_allclose(conditional(queries, given), expected, atol=1e-10)


def test_gaussian_is_the_regression_on_the_covariates():
    with jax.enable_x64(True):
        x, c, _ = _draw(200)
        queries, given, _ = _draw(5, seed=1)
        design = np.concatenate([np.ones((200, 1)), c], axis=1)
        slopes = np.linalg.lstsq(design, x, rcond=None)[0]
        residual = x - design @ slopes
        # Unbiased precision: (M - 1 - C - D - 1) / RSS, of M - 1 - C degrees of freedom.
        precision = np.linalg.inv(residual.T @ residual) * (200 - 1 - 2 - 2 - 1)
        mean = np.concatenate([np.ones((5, 1)), given], axis=1) @ slopes
        expected = -(queries - mean) @ precision
        fitted = Gaussian().fit(x, covariates=c)
        np.testing.assert_allclose(fitted(queries, given), expected, rtol=1e-9)
        np.testing.assert_allclose(fitted.divergence(queries, given), -np.trace(precision))


ESTIMATORS: dict[str, Any] = {
    "isotropic": SSGE(),
    "diagonal": Stein(metric="diagonal", reference="gaussian"),
    "whitened": SSGE(metric="whitened", reference="gaussian"),
    "landmarks": SSGE(num_landmarks=30, metric="whitened"),
    "function": SSGE(reference=lambda x, c: -(x - c)),
    "Gaussian": Gaussian(),
}
every_metric = pytest.mark.parametrize("name", ESTIMATORS)


@every_metric
def test_divergence_is_the_trace_over_x_alone(name):
    with jax.enable_x64(True):
        x, c, _ = _draw(60)
        fitted = ESTIMATORS[name].fit(x, covariates=c)
        queries, given = jnp.asarray(x[:4] + 0.1), jnp.asarray(c[:4])
        jacobians = jax.vmap(jax.jacfwd(lambda p, q: fitted(p, q)))(queries, given)
        expected = jnp.trace(jacobians, axis1=1, axis2=2)
        np.testing.assert_allclose(fitted.divergence(queries, given), expected, rtol=1e-8)


# Not "function": that reference is one of the covariates in their own units.
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "function"])
def test_units_of_the_covariates_do_not_matter(name):
    with jax.enable_x64(True):
        x, c, _ = _draw(60)
        unit = np.array([1e3, 1e-3])
        one = ESTIMATORS[name].fit(x, covariates=c)(x, c)
        other = ESTIMATORS[name].fit(x, covariates=unit * c - 5)(x, unit * c - 5)
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["isotropic", "diagonal", "whitened", "Gaussian"])
def test_constant_covariates_are_no_covariates(name):
    with jax.enable_x64(True):
        # Many samples: how much the covariance is shrunk depends on C + D.
        x, _, _ = _draw(60)
        constant = np.full((60, 1), 7.0)
        estimator = ESTIMATORS[name]
        plain, conditional = estimator.fit(x), estimator.fit(x, covariates=constant)
        if name == "diagonal" or name == "whitened" or name == "Gaussian":
            # The unbiased precision counts one regressor more: (M - D - 3) for (M - D - 2).
            reference = plain.parts[0].precision[0, 0], conditional.parts[0].precision[1, 1]
            assert float(reference[1] / reference[0]) == pytest.approx(55 / 56)
        np.testing.assert_allclose(conditional(x, constant), plain(x), rtol=0.05, atol=0.05)
        if name == "isotropic":
            np.testing.assert_allclose(conditional(x, constant), plain(x), rtol=1e-9)


@pytest.mark.smoke
def test_one_set_of_covariates_for_many_points_and_compiled_use():
    x, c, _ = (jnp.asarray(a, jnp.float32) for a in _draw(60))
    fitted = SSGE().fit(x, covariates=c)
    grid = jnp.zeros((3, 4, 2))
    scores = fitted(grid, c[0])
    assert scores.shape == (3, 4, 2)
    np.testing.assert_allclose(scores[1, 2], fitted(grid[0, 0], c[0]), rtol=1e-5)
    two = jax.vmap(lambda s, w: SSGE().fit(s, covariates=w))(jnp.stack([x, x]), jnp.stack([c, c]))
    both = jax.vmap(lambda f: f(x, c))(two)
    np.testing.assert_allclose(both[1], fitted(x, c), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def chosen():
    x, c, _ = (jnp.asarray(a, jnp.float32) for a in _draw(300))
    return x, c, select(x, key=KEY, covariates=c)


@pytest.mark.slow
def test_select_sees_the_covariates(chosen):
    x, c, fitted = chosen
    queries, given, truth = (jnp.asarray(a, jnp.float32) for a in _draw(2000, seed=1))
    conditional = float(jnp.mean((fitted(queries, given) - truth) ** 2))
    without = float(jnp.mean((select(x, key=KEY)(queries) - truth) ** 2))
    linear = float(jnp.mean((Gaussian().fit(x, covariates=c)(queries, given) - truth) ** 2))
    size = float(jnp.mean(truth**2))
    assert conditional < 0.25 * size
    assert conditional < 0.6 * linear
    assert without > 2 * conditional  # power: the covariates are what made it small
    assert not bool(jnp.any(fitted.off_support(x, c)))
    assert bool(fitted.off_support(x[0], c[0] + 50))


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_select_judges_the_score_in_x_alone(dimension):
    # Held-out gains of the grid, for every metric, and of a candidate from outside are those of
    # separate conditional fits.
    with jax.enable_x64(True):
        x, c, _ = (jnp.asarray(a) for a in _draw(60))
        x = x[:, :dimension]
        fitted = select(x, key=KEY, covariates=c, candidates=(Tikhonov(),))
        info = fitted.info
        order = np.asarray(jax.random.permutation(KEY, 60)).reshape(5, 12)
        scale = x.std(axis=0, ddof=1)

        def loss(estimator: Any, rows: np.ndarray, held: np.ndarray) -> jax.Array:
            found = estimator.fit(x[rows], covariates=c[rows])
            slopes = jax.vmap(jax.jacfwd(lambda p, q: found(p, q)))(x[held], c[held])
            terms = 0.5 * found(x[held], c[held]) ** 2 + jnp.diagonal(slopes, 0, 1, 2)
            return jnp.mean(jnp.sum(terms * scale[None, :] ** 2, axis=1))

        def mean_loss(estimator: Any) -> float:
            splits = [(np.concatenate(np.delete(order, k, 0)), order[k]) for k in range(5)]
            return float(np.mean([loss(estimator, *split) for split in splits]))

        gaussian = mean_loss(Gaussian())
        assert float(info.gaussian_loss) == pytest.approx(gaussian, rel=1e-9)
        gain = mean_loss(Tikhonov()) - gaussian
        assert float(info.candidate_gain[0]) == pytest.approx(gain, rel=1e-7)
        # With one coordinate "diagonal" would be "isotropic" again.
        assert ("diagonal" in info.metrics) == (dimension == 2)
        for place in (0, 6, len(info.grid) - 1):
            kind, metric, factor = np.asarray(info.grid)[place]
            reference, power, level = np.asarray(info.filters)[30]
            estimator = KernelEstimator(
                RelativeRidge(level, power),
                (RBF, InverseMultiquadric)[int(kind)],
                lengthscale_factor=factor,
                metric=info.metrics[int(metric)],
                reference=(None, "gaussian")[int(reference)],
            )
            gain = mean_loss(estimator) - gaussian
            assert float(info.all_gains[place, 30]) == pytest.approx(gain, rel=1e-6)
        at, given = x[:5], c[:5]
        trace = jax.vmap(lambda p, q: jnp.trace(jax.jacfwd(lambda s: fitted(s, q))(p)))(at, given)
        np.testing.assert_allclose(fitted.divergence(at, given), trace, rtol=1e-8)
        spread = jnp.square(scale)[None, :]
        if dimension == 1:  # one unit, so that the loss in data units is the standardised one
            alone = Tikhonov().fit(x, covariates=c)
            terms = 0.5 * alone(x, c) ** 2 * spread + alone.divergence(x, c)[:, None] * spread
            expected = jnp.mean(terms) / spread[0, 0]
            assert float(matching_loss(alone, x, c)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, c: SSGE().fit(x, covariates=c[:5]), r"`covariates` must have shape \(M, C\)"),
        (lambda x, c: SSGE().fit(x, covariates=c[:, 0]), r"M = 30.*got shape \(30,\)"),
        (lambda x, c: Gaussian().fit(x, covariates=c * np.nan), "`covariates` must be finite"),
        (lambda x, c: SSGE().fit(x, covariates=c)(x), r"`covariates` of shape .* are needed"),
        (lambda x, c: SSGE().fit(x)(x, c), "the score was fitted without any"),
        (lambda x, c: SSGE().fit(x, covariates=c)(x[0], c), r"of shape \(30, 2\) do not fit `x`"),
        (lambda x, c: SSGE().fit(x, covariates=c)(x[:3], c[:5]), "leading axes must be those of"),
        (
            lambda x, c: select(x, key=KEY, covariates=c, candidates=(KEF(),)),
            "must take covariates where there are some; KEF does not",
        ),
        (lambda x, c: SSGE().fit(x, covariates=c)(x, c[:, :1]), "with C = 2; got shape"),
        (lambda x, c: SSGE().fit(x, covariates=c)(c[:, :1], c), r"`x` must have shape \(D,\)"),
        (
            lambda x, c: Gaussian().fit(x, covariates=c).unnormalized_log_density(x),
            "not defined for a conditional score",
        ),
    ],
)
def test_bad_covariates_raise_at_once(call, message):
    x, c, _ = _draw(30)
    with pytest.raises(ValueError, match=message):
        call(x, c)


@pytest.mark.parametrize("estimator", [KEF(), KDE()], ids=["KEF", "KDE"])
def test_no_conditional_form(estimator):
    x, c, _ = _draw(30)
    with pytest.raises(TypeError, match="covariates"):
        estimator.fit(x, covariates=c)
