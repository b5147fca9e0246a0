"""Score networks: their losses in closed form, held-out stopping, weights, covariates, accuracy."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score import (
    DenoisingScoreMatching,
    Gaussian,
    SlicedScoreMatching,
    matching_loss,
)

SMALL: dict[str, Any] = {"width": 16, "num_steps": 60, "num_checks": 3, "batch_size": 64}
KINDS: dict[str, Any] = {"sliced": SlicedScoreMatching, "denoising": DenoisingScoreMatching}
every_kind = pytest.mark.parametrize(
    "kind", ["sliced", pytest.param("denoising", marks=pytest.mark.slow)]
)


def _bent(num: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num, 2))
    return jnp.asarray(np.stack([2 * z[:, 0], 0.7 * z[:, 1] + 0.8 * z[:, 0] ** 2], 1), jnp.float32)


def _bent_score(x: jax.Array) -> jax.Array:
    second = (x[:, 1] - 0.2 * x[:, 0] ** 2) / 0.49
    return jnp.stack([-x[:, 0] / 4 + 0.4 * x[:, 0] * second, -second], axis=1)


def test_losses_of_a_linear_score_are_exact_over_all_signs():
    # For s(z) = A z and signs v: the sliced mean is |A z|^2/2 + tr A; the denoising one has
    # t^2 |A|^2 / 2 more, the smoothing. With a covariate the derivative is in x alone.
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        A, z, t = rng.normal(size=(2, 3)), rng.normal(size=3), 0.3
        signs = [jnp.asarray(s) for s in itertools.product((-1.0, 1.0), repeat=2)]

        def score(x: jax.Array) -> jax.Array:
            return jnp.asarray(A) @ jnp.concatenate([jnp.asarray(z[:1]), x])

        def mean(estimator) -> float:
            losses = [estimator.loss(score, jnp.asarray(z[1:]), v) for v in signs]
            return float(np.mean(losses))

        exact = 0.5 * np.sum((A @ z) ** 2) + np.trace(A[:, 1:])
        assert mean(SlicedScoreMatching()) == pytest.approx(exact, rel=1e-12)
        smoothed = exact + 0.5 * t**2 * np.sum(A[:, 1:] ** 2)
        assert mean(DenoisingScoreMatching(noise=t)) == pytest.approx(smoothed, rel=1e-12)


@every_kind
def test_the_parameters_with_the_smallest_held_out_loss_are_returned(kind):
    x = _bent(200)
    fitted = KINDS[kind](**SMALL).fit(x)
    info = fitted.info
    assert info.losses.shape == (4,)
    assert int(info.best) == int(np.argmin(info.losses)) > 0
    fresh = _bent(4000, seed=1)
    assert float(matching_loss(fitted, fresh)) < float(matching_loss(Gaussian().fit(x), fresh))
    assert (info.metric, info.reference, info.solver) == (
        "whitened",
        "gaussian",
        "stochastic gradients",
    )


@every_kind
def test_a_training_that_diverges_returns_the_reference(kind):
    x = _bent(200)
    fitted = KINDS[kind](**SMALL | {"learning_rate": 1e12}).fit(x)
    assert int(fitted.info.best) == 0
    np.testing.assert_allclose(fitted(x), Gaussian().fit(x)(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fitted.divergence(x), Gaussian().fit(x).divergence(x), rtol=1e-5)


@pytest.mark.slow
@every_kind
def test_affine_maps_of_the_samples_map_the_score(kind):
    # The network sees whitened samples, equal up to rounding, which few steps do not amplify.
    with jax.enable_x64(True):
        x = jnp.asarray(_bent(200), jnp.float64)
        A, b = jnp.array([[3e2, 0.0], [40.0, 0.1]]), jnp.array([5.0, -2.0])
        estimator = KINDS[kind](**SMALL)
        plain, moved = estimator.fit(x), estimator.fit(x @ A.T + b[None, :])
        assert int(plain.info.best) > 0
        np.testing.assert_allclose(moved(x @ A.T + b[None, :]) @ A, plain(x), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@every_kind
def test_samples_of_weight_zero_are_not_seen(kind):
    x = _bent(200)
    w = jnp.where(jnp.arange(200) % 2 == 0, 1.0, 0.0)
    estimator = KINDS[kind](**SMALL)
    one = estimator.fit(x, weights=w)
    other = estimator.fit(jnp.where(w[:, None] > 0, x, 77.0), weights=w)
    np.testing.assert_allclose(other(x), one(x), rtol=1e-3, atol=1e-3)
    assert float(jnp.max(jnp.abs(estimator.fit(x)(x) - one(x)))) > 0.01  # the weights matter


@every_kind
def test_covariates_and_divergence(kind):
    x = _bent(200)
    estimator = KINDS[kind](**SMALL)
    fitted = estimator.fit(x[:, 1:], covariates=x[:, :1])
    assert int(fitted.info.best) > 0
    points, given = x[:6, 1:], x[:6, :1]
    jacobian = jax.vmap(jax.jacfwd(lambda p, c: fitted(p, c)))(points, given)
    np.testing.assert_allclose(
        fitted.divergence(points, given), np.trace(jacobian, axis1=1, axis2=2), rtol=1e-4
    )
    fresh = _bent(4000, seed=1)
    truth = np.asarray(jax.jit(_bent_score)(fresh))[:, 1:]
    regression = Gaussian().fit(x[:, 1:], covariates=x[:, :1])
    errors = [
        np.mean((np.asarray(f(fresh[:, 1:], fresh[:, :1])) - truth) ** 2)
        for f in (fitted, regression)
    ]
    assert errors[0] < errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("positive", [2, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_few_samples_that_count_are_on_both_sides_of_the_split(positive):
    x = _bent(30)
    w = jnp.where(jnp.arange(30) < positive, 1.0, 0.0)
    for seed in range(4):
        info = SlicedScoreMatching(**SMALL).fit(x, weights=w, key=jax.random.key(seed)).info
        assert bool(jnp.all(jnp.isfinite(info.losses)))


class _Bilinear(eqx.Module):
    weight: jax.Array

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.weight @ jnp.tanh(z)


@pytest.mark.smoke
def test_a_network_of_your_own():
    def build(key: jax.Array, num_in: int, num_out: int) -> _Bilinear:
        return _Bilinear(0.1 * jax.random.normal(key, (num_out, num_in)))

    x = _bent(200)
    fitted = SlicedScoreMatching(network=build, **SMALL).fit(x)
    part: Any = fitted.parts[-1]
    assert isinstance(part.network, _Bilinear)
    assert bool(fitted.info.finite)
    # Where it does not help it is not used, wherever it started.
    options = SMALL | {"learning_rate": 1e12}
    failed = SlicedScoreMatching(network=build, **options).fit(x)
    assert int(failed.info.best) == 0
    np.testing.assert_allclose(failed(x), Gaussian().fit(x)(x), rtol=1e-5, atol=1e-5)

    def wrong(key: jax.Array, num_in: int, num_out: int) -> _Bilinear:
        return _Bilinear(jnp.zeros((3, num_in)))

    with pytest.raises(ValueError, match=r"`network` must map \(2,\) to \(2,\); got shape \(3,\)"):
        SlicedScoreMatching(network=wrong, **SMALL).fit(_bent(200))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlicedScoreMatching(width=0), "`width` must be an integer of at least 1; got 0"),
        (lambda: SlicedScoreMatching(num_steps=5), "`num_checks` must be at most `num_steps`"),
        (lambda: SlicedScoreMatching(learning_rate=-1.0), "`learning_rate` must be positive"),
        (lambda: DenoisingScoreMatching(noise=0.0), "`noise` must be positive; got 0.0"),
        (lambda: DenoisingScoreMatching(metric="x"), "`metric` must be one of"),
        (
            lambda: SlicedScoreMatching(**SMALL).fit(_bent(20), key=jnp.zeros(())),
            "`key` must be one random key",
        ),
    ],
)
def test_bad_options_raise_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.statistical
@pytest.mark.parametrize("kind", KINDS)
def test_many_samples_are_learned(kind):
    # Relative squared error below .02: half the score would have .25, the Gaussian has .6.
    x, fresh = _bent(20000), _bent(4000, seed=1)
    fitted = KINDS[kind](width=64, num_steps=2000).fit(x, key=jax.random.key(1))
    truth = _bent_score(fresh)
    size = float(jnp.mean(truth**2))
    error = float(jnp.mean((fitted(fresh) - truth) ** 2)) / size
    gaussian = float(jnp.mean((Gaussian().fit(x)(fresh) - truth) ** 2)) / size
    assert error < 0.02
    assert gaussian > 0.3
