"""Eigenfunctions on all samples and on landmarks: one is the other where they coincide."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels import RBF, InverseMultiquadric
from implicitppl.score._sample import make_sample
from implicitppl.score._spectral.basis import full_basis, landmark_basis, stein_targets

M, D = 40, 3
compiled_landmark_basis: Any = eqx.filter_jit(landmark_basis)


@pytest.fixture
def points():
    with jax.enable_x64(True):
        yield jnp.asarray(np.random.default_rng(0).normal(size=(M, D)))


def _weights(kind: str) -> jax.Array:
    values = np.ones(M) if kind == "equal" else np.random.default_rng(1).uniform(0.1, 2, M)
    return jnp.asarray(values / values.sum())


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("kernel", [RBF(1.5), InverseMultiquadric(1.0)], ids=["rbf", "imq"])
def test_landmarks_at_all_samples_give_the_full_eigenfunctions(points, kernel, kind):
    sample = make_sample(points, weights=_weights(kind))
    full = eqx.filter_jit(full_basis)(kernel, sample)
    landmark = compiled_landmark_basis(kernel, sample, points)
    np.testing.assert_allclose(landmark.values, full.values, rtol=1e-6, atol=1e-12)
    assert float(landmark.trace) == pytest.approx(float(full.trace))
    queries = np.random.default_rng(2).normal(size=(7, D))
    leading = 15  # the sign of an eigenfunction is free
    gram = np.asarray(jax.jit(kernel.gram)(queries, points))
    a, b = (gram @ np.asarray(c.transform)[:, :leading] for c in (full, landmark))
    np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_orthonormal_on_the_samples_and_stein_identity_with_landmarks(points, kind):
    # sum_i w_i psi_j psi_k = delta_jk, and beta_j = -sum_i w_i [grad psi_j + psi_j s0] at x_i.
    weights, kernel = _weights(kind), RBF(1.5)

    @jax.jit
    def evaluate(w: jax.Array) -> tuple[jax.Array, ...]:
        sample = make_sample(points, weights=w)
        basis = landmark_basis(kernel, sample, points[:12])
        reference = -0.5 * points
        targets = stein_targets(kernel, sample, basis.centres, reference)

        def functions(x: jax.Array) -> jax.Array:
            return kernel.gram(x[None, :], points[:12])[0] @ basis.transform

        psi = kernel.gram(points, points[:12]) @ basis.transform
        gradients = jax.vmap(jax.jacfwd(functions))(points)
        return w, psi, gradients, reference, basis.transform.T @ targets

    w, psi, gradients, reference, found = map(np.asarray, evaluate(weights))
    np.testing.assert_allclose(psi.T @ (w[:, None] * psi), np.eye(12), atol=1e-9)
    expected = -np.einsum("i,ijd->jd", w, gradients + psi[:, :, None] * reference[:, None, :])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_blocks_change_nothing(points, monkeypatch):
    w, kernel = _weights("unequal"), RBF(1.5)

    def both() -> tuple[jax.Array, jax.Array]:
        @jax.jit  # anew at each call, so that the patched size is seen
        def evaluate(points: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
            sample = make_sample(points, weights=w)
            basis = landmark_basis(kernel, sample, points[:12])
            return basis.values, stein_targets(kernel, sample, basis.centres, points)

        return evaluate(points, w)

    whole = both()
    monkeypatch.setattr(
        "implicitppl.score._spectral.basis._BLOCK", 12 * 9
    )  # 9 rows: the last block is short
    for a, b in zip(whole, both(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_coinciding_landmarks_are_dropped_not_divided_by(precision):
    rng = np.random.default_rng(3)
    x = np.asarray(rng.normal(size=(30, 2)), precision)
    landmarks = np.concatenate([x[:5], x[:5]])
    basis = compiled_landmark_basis(RBF(1.5), make_sample(jnp.asarray(x)), landmarks)
    assert np.sum(basis.kept) == 5
    assert np.max(np.abs(basis.transform)) < 1e4
