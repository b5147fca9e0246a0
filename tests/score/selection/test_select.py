"""`select`: its held-out losses against single fits, its choice, its symmetries, bad samples."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import RBF, InverseMultiquadric
from implicitppl.score import Gaussian, KernelEstimator, Selection, matching_loss, select
from implicitppl.score._sample import make_sample
from implicitppl.score._selection.folds import Folds, make_folds
from implicitppl.score._selection.judge import mean_and_error
from implicitppl.score._selection.prepared import equally_weighted
from implicitppl.score._spectral.filters import RelativeRidge
from tests.helpers import assert_compiles_once

M, D = 60, 2
KEY = jax.random.key(3)


def _bent(num: int = M, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num, D))
    return np.stack([2 * z[:, 0], 0.7 * z[:, 1] + 0.8 * z[:, 0] ** 2], axis=1)


@pytest.mark.slow
def test_held_out_losses_are_those_of_single_fits():
    # Every candidate of the grid is a public estimator; its held-out loss, averaged over the folds
    # in standardised coordinates, is what `matching_loss` gives for separate fits.
    with jax.enable_x64(True):
        x = jnp.asarray(_bent())
        info = select(x, key=KEY).info
        order = np.asarray(jax.random.permutation(KEY, M))
        scale = x.std(axis=0, ddof=1)
        for config in (0, 7, 22):
            for filter_index in (3, 21, 30):
                estimator = _candidate(info, config, filter_index)
                gains = [
                    _standardised_loss(estimator, x[rows], x[held], scale)
                    - _standardised_loss(Gaussian(), x[rows], x[held], scale)
                    for rows, held in _splits(order)
                ]
                found = float(info.all_gains[config, filter_index])
                assert found == pytest.approx(np.mean(gains), rel=1e-6, abs=1e-8)


def test_the_stack_is_the_sum_of_single_fits_on_all_samples():
    # On the samples, where the bound does not cut: every member is a public estimator, found in the
    # grid by its gain, and the Gaussians have closed forms.
    with jax.enable_x64(True):
        x = jnp.asarray(_bent())
        fitted = select(x, key=KEY)
        info = fitted.info
        expected = jnp.zeros_like(x)
        for r in np.flatnonzero(np.asarray(info.weights) > 0):
            gains = np.abs(np.asarray(info.all_gains) - float(info.gain[r]))
            config, filter_index = map(int, np.unravel_index(gains.argmin(), gains.shape))
            assert gains[config, filter_index] == 0
            estimator = _candidate(info, config, filter_index)
            expected += info.weights[r] * estimator.fit(x)(x)
        full, _, diagonal, _ = info.gaussian_weights
        assert float(info.gaussian_weights[1] + info.gaussian_weights[3]) == 0
        expected += full * Gaussian().fit(x)(x) + diagonal * Gaussian(shrinkage=1.0).fit(x)(x)
        np.testing.assert_allclose(fitted(x), expected, rtol=1e-7, atol=1e-9)
        assert bool(jnp.any((info.weights > 0) & (info.reference == 1)))
        assert float(jnp.sum(info.weights) + jnp.sum(info.gaussian_weights)) == pytest.approx(1)


def _candidate(info, config: int, filter_index: int) -> KernelEstimator:
    """Return the public estimator that a place in the grid stands for."""
    kind, metric, factor = np.asarray(info.grid)[config]
    reference, power, level = np.asarray(info.filters)[filter_index]
    return KernelEstimator(
        RelativeRidge(level, power),
        (RBF, InverseMultiquadric)[int(kind)],
        lengthscale_factor=factor,
        metric=info.metrics[int(metric)],
        reference=(None, "gaussian")[int(reference)],
    )


def _splits(order: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    held = order.reshape(5, -1)
    return [(np.concatenate(np.delete(held, k, axis=0)), held[k]) for k in range(5)]


def _standardised_loss(estimator, train, held, scale) -> float:
    """Return mean sum_d scale_d^2 (s_d^2 / 2 + ds_d/dx_d), by automatic differentiation."""
    fitted = estimator.fit(train)
    jacobian = jax.vmap(jax.jacfwd(fitted))(held)
    slopes = jnp.diagonal(jacobian, axis1=1, axis2=2)
    terms = 0.5 * fitted(held) ** 2 + slopes
    return float(jnp.mean(jnp.sum(terms * scale[None, :] ** 2, axis=1)))


@pytest.fixture(scope="module")
def bent():
    x = jnp.asarray(_bent(), jnp.float32)
    return x, select(x, key=KEY)


@pytest.mark.slow
def test_the_same_key_gives_the_same_score_and_queries_are_independent(bent):
    x, fitted = bent
    again = select(x, key=KEY)
    np.testing.assert_array_equal(fitted(x), again(x))
    np.testing.assert_allclose(fitted(x[3]), fitted(x)[3], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(select(x, key=jax.random.key(4))(x), fitted(x))


@pytest.mark.slow
def test_second_call_compiles_nothing_and_jit_is_the_same(bent):
    x, fitted = bent
    first, other = (jnp.asarray(_bent(50, seed), jnp.float32) for seed in (1, 2))
    assert_compiles_once(lambda s: select(s, key=KEY)(s), (first,), (other,))
    inside = jax.jit(lambda s: select(s, key=KEY)(s))(x)
    np.testing.assert_allclose(inside, fitted(x), rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.smoke
def test_several_problems_by_vmap(bent):
    x, fitted = bent
    several = jnp.stack([x, jnp.asarray(_bent(seed=1), jnp.float32)])
    together = jax.vmap(lambda samples: select(samples, key=KEY))(several)
    scores = jax.vmap(lambda f, samples: f(samples))(together, several)
    np.testing.assert_allclose(scores[0], fitted(x), rtol=1e-3, atol=1e-4)
    assert together.info.weights.shape == (2, 4)


@pytest.mark.slow
def test_derivatives_go_through_the_query_only(bent):
    x, fitted = bent
    through_fit, through_query = jax.grad(
        lambda samples, point: jnp.sum(select(samples, key=KEY)(point)), (0, 1)
    )(x, x[0])
    np.testing.assert_array_equal(through_fit, jnp.zeros_like(x))
    expected = jnp.sum(jax.jacfwd(fitted)(x[0]), axis=0)
    np.testing.assert_allclose(through_query, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_divergence_is_the_trace_of_the_jacobian():
    with jax.enable_x64(True):
        x = jnp.asarray(_bent())
        fitted = select(x, key=KEY)
        expected = jax.vmap(lambda p: jnp.trace(jax.jacfwd(fitted)(p)))(x[:5])
        np.testing.assert_allclose(fitted.divergence(x[:5]), expected, rtol=1e-8)
        assert float(jnp.sum(fitted.info.weights)) > 0.1  # a kernel part was there to be tested


@pytest.mark.parametrize("factor", [2.0**-10, pytest.param(2.0**10, marks=pytest.mark.exhaustive)])
def test_scaled_samples_give_the_scaled_score_and_the_same_choice(bent, factor):
    x, fitted = bent
    moved = select(factor * x, key=KEY)
    np.testing.assert_allclose(factor * moved(factor * x), fitted(x), rtol=1e-4, atol=1e-4)
    for name in ("kernel", "metric", "level", "power", "reference"):
        np.testing.assert_array_equal(getattr(moved.info, name), getattr(fitted.info, name))


def test_the_standard_error_is_charged(bent):
    # Without the charge kernel estimates are believed. With a large one none is, on normal samples;
    # on bent ones, which are hardly normal, the defaults that nobody searched for are.
    x, _ = bent
    assert float(jnp.sum(select(x, key=KEY, num_errors=0).info.weights)) > 0.5
    certain = select(x, key=KEY, num_errors=50).info
    assert float(certain.not_gaussian) > 0.5
    used = np.asarray(certain.weights) > 0
    assert used.any()
    np.testing.assert_allclose(certain.level[used], 10**-1.5, rtol=1e-5)
    assert set(np.asarray(certain.kernel)[used]) | set(np.asarray(certain.metric)[used]) == {0}
    assert "probably not Gaussian" in certain.explain()
    normal = select(jax.random.normal(KEY, (M, D)), key=KEY, num_errors=50).info
    assert float(normal.not_gaussian) == 0
    assert float(jnp.sum(normal.weights)) == 0
    assert "the score is that of a Gaussian" in normal.explain()


def test_select_is_an_estimator_like_the_others(bent):
    x, fitted = bent
    np.testing.assert_array_equal(Selection().fit(x, key=KEY)(x), fitted(x))
    with pytest.raises(ValueError, match="`key` must be one random key, .* got None"):
        Selection().fit(x)


@pytest.mark.smoke
def test_the_choice_is_explained(bent):
    _, fitted = bent
    text = fitted.info.explain()
    assert "judged on 60 held-out points" in text
    assert "lengthscale" in text
    assert "lower than the Gaussian" in text


@pytest.mark.parametrize(("num", "folds"), [(60, 5), (63, 5), (400, 3)])
def test_folds_are_disjoint_and_of_equal_size(num, folds):
    f = make_folds(num, folds, autocorrelated=False)
    judged = np.asarray(f.judge).ravel()
    assert len(set(judged.tolist())) == judged.size == num // folds * folds
    for train, judge in zip(np.asarray(f.train), np.asarray(f.judge), strict=True):
        assert set(train.tolist()) == set(range(num)) - set(judge.tolist())
    assert (f.landmarks is None) == (num < 400)
    if f.landmarks is not None:
        for train, landmarks in zip(np.asarray(f.train), np.asarray(f.landmarks), strict=True):
            assert len(set(landmarks.tolist())) == 200
            assert set(landmarks.tolist()) <= set(train.tolist())


def test_standard_errors_of_independent_and_of_dependent_losses():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=20), 50)  # 20 batches of 50 equal losses
    w = jnp.full((1000,), 1e-3)

    def error(groups: jax.Array, count: int) -> float:
        folds = Folds(jnp.zeros((1, 1), int), jnp.zeros((1, 1), int), None, groups, count)
        return float(mean_and_error(jnp.asarray(values, jnp.float32), w, folds)[1])

    independent = error(jnp.arange(1000), 1000)
    assert independent == pytest.approx(values.std(ddof=1) / np.sqrt(1000), rel=1e-4)
    batches = error(jnp.arange(1000) * 20 // 1000, 20)
    assert batches == pytest.approx(values[::50].std(ddof=1) / np.sqrt(20), rel=1e-4)
    assert np.unique(make_folds(100, 5, autocorrelated=True).groups).size == 20


@pytest.mark.slow
def test_importance_weights_move_the_target():
    # Draws of N(0, 3^2), weighted to N(0, 1): the score is -x, not -x/9.
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 * rng.normal(size=(400, 1)), jnp.float32)
    w = jnp.exp(-0.5 * x[:, 0] ** 2 * (1 - 1 / 9))
    queries = jnp.linspace(-1.5, 1.5, 7)[:, None]
    fitted = select(x, key=KEY, weights=w)
    np.testing.assert_allclose(fitted(queries), -queries, atol=0.25)
    assert float(jnp.max(jnp.abs(select(x, key=KEY)(queries) + queries))) > 1
    assert float(fitted.info.effective_size) < 300


def test_rows_in_proportion_to_their_weights():
    x = jnp.arange(8.0)[:, None]
    w = jnp.array([0.5, 0.0, 0.25, 0.0, 0.0, 0.25, 0.0, 0.0])
    rows = equally_weighted(make_sample(x, weights=w))
    np.testing.assert_array_equal(rows[:, 0], [0, 0, 0, 0, 2, 2, 5, 5])


@pytest.mark.exhaustive
def test_samples_of_weight_zero_do_not_set_the_width():
    # The far half would make every width of the grid twenty times too large.
    near = jnp.asarray(_bent(), jnp.float32)
    both = jnp.concatenate([near, near + 200])
    w = jnp.concatenate([jnp.ones(M), jnp.zeros(M)])
    fitted = select(both, key=KEY, weights=w)
    alone = select(near, key=KEY)
    fresh = jnp.asarray(_bent(4000, seed=5), jnp.float32)
    losses = [float(matching_loss(f, fresh)) for f in (fitted, alone, Gaussian().fit(near))]
    assert losses[0] < 0.5 * (losses[1] + losses[2])
    assert float(jnp.max(fitted.info.lengthscale)) < 4 * float(jnp.max(alone.info.lengthscale))


def test_off_support(bent):
    x, fitted = bent
    far = jnp.array([[0.0, 40.0], [30.0, 0.0]])
    off_support = eqx.filter_jit(fitted.off_support)
    np.testing.assert_array_equal(off_support(far), [True, True])
    assert not np.any(off_support(x))
    assert off_support(x[0]).shape == ()
    with pytest.raises(ValueError, match="`off_support` needs a score from `select`"):
        Gaussian().fit(x).off_support(x)


def test_the_residual_is_bounded_off_the_support():
    # Quadratic growth away from the samples, as any polynomial-like kernel fit has, is cut; the
    # divergence follows the bounded field.
    with jax.enable_x64(True):
        fitted = select(jnp.asarray(_bent()), key=KEY)
        samples, far = jnp.asarray(_bent()), jnp.asarray(_bent(30, 4)) * 4
        stack: Any = fitted.parts[-1]
        scale = np.asarray(stack.scale)[None, :]
        score, residual = eqx.filter_jit(stack.score), eqx.filter_jit(stack.residual)
        inside = np.linalg.norm(residual(samples) * scale, axis=1)
        np.testing.assert_allclose(score(samples), residual(samples))
        assert float(stack.bound) == pytest.approx(1.5 * inside.max())
        bounded = np.linalg.norm(score(far) * scale, axis=1)
        free = np.linalg.norm(residual(far) * scale, axis=1)
        assert bounded.max() <= float(stack.bound) * (1 + 1e-9)
        assert free.max() > float(stack.bound)  # there was something to be bounded
        trace = np.trace(jax.vmap(jax.jacfwd(fitted))(far), axis1=1, axis2=2)
        np.testing.assert_allclose(fitted.divergence(far), trace, rtol=1e-7)


@pytest.mark.slow
def test_autocorrelated_draws_are_believed_less():
    # Each draw four times in a row: the standard errors of independent draws are half of the truth.
    x = jnp.asarray(np.repeat(_bent(50), 4, axis=0), jnp.float32)
    chain = select(x, key=KEY, autocorrelated=True)
    independent = select(x, key=KEY)
    assert bool(chain.info.finite)
    ratio = jnp.median(chain.info.all_errors) / jnp.median(independent.info.all_errors)
    assert float(ratio) > 1.3


@pytest.mark.exhaustive
def test_one_dimension():
    rng = np.random.default_rng(0)
    x, queries = (jnp.asarray(rng.gumbel(size=(n, 1)), jnp.float32) for n in (150, 2000))
    truth = jnp.exp(-queries) - 1
    fitted = select(x, key=KEY)
    ours, gaussian = (
        float(jnp.mean((f(queries) - truth) ** 2)) for f in (fitted, Gaussian().fit(x))
    )
    assert ours < 0.5 * gaussian
    assert fitted.info.metrics == ("isotropic",)


@pytest.mark.exhaustive
def test_few_effective_samples_give_the_gaussian():
    x = jnp.asarray(_bent(), jnp.float32)
    for count in (2, 3, 6):
        w = jnp.zeros(M).at[:count].set(1.0)
        fitted = select(x, key=KEY, weights=w)
        assert bool(fitted.info.finite)
        np.testing.assert_allclose(fitted(x), Gaussian().fit(x, weights=w)(x), rtol=1e-3, atol=1e-3)
        assert "too few to judge" in fitted.info.explain()


def test_a_huge_charge_gives_a_gaussian():
    x = jax.random.normal(KEY, (M, D))
    for charge in (1e12, float("inf")):
        fitted = select(x, key=KEY, num_errors=charge)
        assert bool(fitted.info.finite)
        assert float(jnp.sum(fitted.info.weights)) == 0


DEGENERATE = {
    "duplicates": lambda x: np.concatenate([x[:6]] * 10),
    "constant coordinate": lambda x: np.stack([x[:, 0], np.full(M, 1e4)], axis=1),
    "all samples equal": lambda x: np.full_like(x, 3.7),
    "collinear": lambda x: x[:, :1] * np.array([[1.0, 2.0]]),
    "tiny": lambda x: 1e-12 * x,
    "huge": lambda x: 1e12 * x,
    "units": lambda x: x * np.array([[1e-6, 1e6]]),
    "cauchy": lambda x: np.random.default_rng(0).standard_cauchy(size=x.shape),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_samples_give_finite_scores(case):
    x = jnp.asarray(DEGENERATE[case](_bent()), jnp.float32)
    fitted = select(x, key=KEY)
    assert bool(fitted.info.finite)
    for points in (x, 2 * x + 1):
        assert bool(jnp.all(jnp.isfinite(fitted(points))))
    if case == "constant coordinate":
        np.testing.assert_array_equal(fitted(x)[:, 1], jnp.zeros(M))
    if case == "all samples equal":
        np.testing.assert_array_equal(fitted(x), jnp.zeros_like(x))


def test_few_samples_give_the_gaussian():
    x = jnp.asarray(_bent(19), jnp.float32)
    fitted = select(x, key=KEY)
    np.testing.assert_array_equal(fitted(x), Gaussian().fit(x)(x))
    assert "too few to hold any out" in fitted.info.explain()
    assert bool(eqx.filter_jit(fitted.off_support)(jnp.array([90.0, 0.0])))


def _bent_score(x: jax.Array) -> jax.Array:
    """Return the score of the distribution of `_bent`, for one point."""
    second = (x[1] - 0.2 * x[0] ** 2) / 0.49
    return jnp.stack([-x[0] / 4 + 0.4 * x[0] * second, -second])


@pytest.mark.slow
def test_candidates_of_your_own_are_judged_and_stacked():
    # One knows the truth, up to a kernel residual that is shrunk away; the other is useless.
    with jax.enable_x64(True):
        x = jnp.asarray(_bent())
        oracle = KernelEstimator(RelativeRidge(1e6), reference=_bent_score)
        useless = KernelEstimator(RelativeRidge(1e6), reference=lambda p: 3 * p)
        fitted = select(x, key=KEY, candidates=(useless, oracle))
        info = fitted.info
        order = np.asarray(jax.random.permutation(KEY, M))
        scale = x.std(axis=0, ddof=1)
        for index, estimator in enumerate((useless, oracle)):
            gains = [
                _standardised_loss(estimator, x[rows], x[held], scale)
                - _standardised_loss(Gaussian(), x[rows], x[held], scale)
                for rows, held in _splits(order)
            ]
            assert float(info.candidate_gain[index]) == pytest.approx(np.mean(gains), rel=1e-9)
        assert float(info.candidate_weights[0]) == 0
        assert float(info.candidate_weights[1]) > 0.5
        fresh = jnp.asarray(_bent(500, seed=7))
        truth = jax.vmap(_bent_score)(fresh)
        error, without = (
            float(jnp.mean((f(fresh) - truth) ** 2)) for f in (fitted, select(x, key=KEY))
        )
        assert error < 0.3 * without
        trace = jax.vmap(lambda p: jnp.trace(jax.jacfwd(fitted)(p)))(fresh[:5])
        np.testing.assert_allclose(fitted.divergence(fresh[:5]), trace, rtol=1e-8)
        assert "KernelEstimator: " in info.explain()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_candidate_without_a_share_changes_nothing(bent):
    x, fitted = bent
    same = select(x, key=KEY, candidates=[KernelEstimator(RelativeRidge(1e6))])
    np.testing.assert_array_equal(same.info.candidate_weights, [0.0])
    np.testing.assert_allclose(same(x), fitted(x), rtol=1e-4, atol=1e-4)
    inside = jax.jit(lambda s: select(s, key=KEY, candidates=(Gaussian(),))(s))(x)
    assert bool(jnp.all(jnp.isfinite(inside)))


class _Callable:
    def fit(self, samples, *, weights=None, key=None):
        return lambda x: x


@pytest.mark.exhaustive
@pytest.mark.slow
def test_hyperparameters_of_candidates_may_be_mapped():
    x = jnp.asarray(_bent(), jnp.float32)
    levels = jnp.array([1e-2, 1e6])

    def gain(level: jax.Array) -> jax.Array:
        candidate = KernelEstimator(RelativeRidge(level))
        return select(x, key=KEY, candidates=[candidate]).info.candidate_gain[0]

    found = jax.vmap(gain)(levels)
    np.testing.assert_allclose(found[0], gain(levels[0]), rtol=1e-3)
    assert float(found[1]) > float(found[0])


@pytest.mark.slow
def test_samples_of_weight_zero_do_not_set_the_bound():
    x = jnp.asarray(_bent(), jnp.float32)
    w = jnp.where(jnp.arange(M) < 50, 1.0, 0.0)

    def bound(far: float) -> float:
        stack: Any = select(jnp.where(w[:, None] > 0, x, far), key=KEY, weights=w).parts[-1]
        return float(stack.bound)

    bounds = [bound(far) for far in (70.0, 7000.0)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)  # it was 90 times larger


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: select(x[:, 0], key=KEY), r"`samples` must have shape \(M, D\)"),
        (lambda x: select(x.at[0, 0].set(jnp.nan), key=KEY), r"`samples` must be finite"),
        (lambda x: select(x, key=KEY, num_folds=1), r"`num_folds` must be at least 2; got 1"),
        (lambda x: select(x, key=KEY, num_folds=31), r"`num_folds` must leave at least 2 samples"),
        (lambda x: select(x, key=jnp.zeros(())), r"`key` must be one random key.*got float32"),
        (lambda x: select(x, key=jax.random.split(KEY)), r"`key` must be one random key"),
        (lambda x: select(x, key=KEY, num_errors=-1.0), r"`num_errors` must be non-negative"),
        (lambda x: select(x, key=KEY, weights=jnp.ones(3)), r"`weights` must have shape"),
        (
            lambda x: select(x, key=KEY, candidates=[_Callable()]),
            "must have a `fit` that returns a FittedScore; that of _Callable returned function",
        ),
        (lambda x: select(x, key=KEY, candidates="KEF"), "`candidates` must be a sequence"),
        (lambda x: select(x, key=KEY, candidates=(Gaussian,)), r"`candidates` must be estimators"),
        (lambda x: select(x, key=KEY, covariates=jnp.ones((3, 1))), "`covariates` must have"),
    ],
)
def test_bad_arguments_raise_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(_bent(), jnp.float32))


def test_matching_loss_of_the_choice_is_below_the_gaussians_on_fresh_samples(bent):
    x, fitted = bent
    fresh = jnp.asarray(_bent(4000, seed=5), jnp.float32)
    assert float(matching_loss(fitted, fresh)) < float(matching_loss(Gaussian().fit(x), fresh))
