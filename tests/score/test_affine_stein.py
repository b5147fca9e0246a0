"""The affine correction: Stein's identity for affine functions, exactly and not otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score import SSGE, affine_stein_correction

correct = jax.jit(affine_stein_correction)


def _samples(size: int, dim: int, dtype: jnp.dtype, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(dim, dim)) + 2 * np.eye(dim)
    return np.asarray(scale * (rng.normal(size=(size, dim)) @ mixing + 1.0), dtype)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_both_identities_hold_exactly(precision, scale):
    x = _samples(100, 3, precision, scale)
    raw = np.asarray(SSGE().fit(x)(x))
    s = np.asarray(correct(raw, x))
    centred = x - np.mean(x, axis=0)
    tolerance = 1e-3 if precision == jnp.float32 else 1e-10
    np.testing.assert_allclose(s.T @ centred / 100, -np.eye(3), atol=tolerance)
    np.testing.assert_allclose(np.mean(s, axis=0) * scale, 0.0, atol=tolerance)
    short = np.trace(raw.T @ centred / 100)
    assert float(short) > -2.97, "there must be something to correct"


def test_it_is_the_smallest_affine_correction(precision):
    """What is added is affine in x: its least-squares fit on (1, x) leaves nothing."""
    x = _samples(80, 2, precision)
    raw = SSGE().fit(x)(x)
    added = np.asarray(np.asarray(correct(raw, x)) - np.asarray(raw), np.float64)
    design = np.concatenate([np.ones((80, 1)), np.asarray(x, np.float64)], axis=1)
    left = added - design @ np.linalg.lstsq(design, added, rcond=None)[0]
    assert np.abs(left).max() < (1e-3 if precision == jnp.float32 else 1e-9)
    assert np.abs(added).max() > 1e-2


def test_scores_that_satisfy_the_identity_are_left_alone():
    x = _samples(50, 2, jnp.dtype(jnp.float32))
    centred = x - np.mean(x, axis=0)
    exact = -centred @ np.linalg.inv(centred.T @ centred / 50)
    np.testing.assert_allclose(correct(exact, x), exact, atol=1e-3)


def test_the_entropy_gradient_of_an_affine_family_is_exact():
    """For x = a e, minus the entropy has the gradient -D / a, with no Monte Carlo error."""
    noise = _samples(60, 2, jnp.dtype(jnp.float32))
    noise = noise - np.mean(noise, axis=0)
    a = 1.7
    raw = SSGE().fit(a * noise)(a * noise)
    corrected = correct(raw, a * noise)
    gradient = np.mean(np.sum(np.asarray(corrected) * noise, axis=1))
    assert gradient == pytest.approx(-2 / a, rel=1e-3)
    assert np.mean(np.sum(np.asarray(raw) * noise, axis=1)) != pytest.approx(-2 / a, rel=1e-2)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_few_samples_and_constant_coordinates_stay_finite(size):
    x = _samples(size, 4, jnp.dtype(jnp.float32))
    x[:, 1] = 3.0
    s = np.asarray(correct(np.ones_like(x), x))
    assert np.all(np.isfinite(s))
    np.testing.assert_array_equal(s[:, 1], 0.0)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`scores` must have the shape of `samples`"):
        affine_stein_correction(jnp.ones((3, 2)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="`samples` must have at least 2 rows; got 1"):
        affine_stein_correction(jnp.ones((1, 2)), jnp.ones((1, 2)))
