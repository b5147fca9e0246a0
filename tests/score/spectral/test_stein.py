import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from implicitppl.kernels import RBF, InverseMultiquadric
from implicitppl.score import KernelEstimator, Stein
from implicitppl.score._spectral.filters import TikhonovFilter


def _samples(seed: int = 0, num: int = 25) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 2)) * np.array([1.0, 2.0])


def stein_gradients(x: np.ndarray, lengthscale: float, eta: float) -> np.ndarray:
    """-(K + eta I)^{-1} H with the inverse multiquadric kernel, Li and Turner's equation (9)."""
    squared = cdist(x, x) ** 2 / lengthscale**2
    gram = (1 + squared) ** -0.5
    difference = x[:, None] - x[None]
    gradient = ((1 + squared) ** -1.5)[:, :, None] * difference / lengthscale**2  # in x^m
    return -np.linalg.solve(gram + eta * np.eye(len(x)), gradient.sum(axis=1))


@pytest.mark.parametrize("eta", [1.0, 1e-2])
def test_values_on_the_samples_are_those_of_the_linear_system(eta, precision):
    x = _samples()
    fitted = Stein(InverseMultiquadric, lengthscale=1.5, ridge=eta).fit(jnp.asarray(x, precision))
    expected = stein_gradients(x, 1.5, eta)
    tolerance = 1e-10 if precision == jnp.float64 else 1e-3
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(fitted(jnp.asarray(x, precision)), expected, atol=tolerance * scale)
    halved = stein_gradients(x, 1.5, 2 * eta)
    assert np.max(np.abs(halved - expected)) > 10 * tolerance * scale


def test_elsewhere_it_is_the_tikhonov_extension():
    # (K + M lam I) c = h / lam,  s(x) = k(x, X) c - zeta(x) / lam,  lam = eta / M.
    with jax.enable_x64(True):
        x, queries = jnp.asarray(_samples()), jnp.asarray(_samples(1, 6))
        kernel, eta = InverseMultiquadric(1.0), 0.5
        lam, uniform = eta / 25, np.full(25, 1 / 25)
        h = np.asarray(jax.jit(kernel.mean_gradient)(x, x, uniform))
        gram = np.asarray(jax.jit(kernel.gram)(x))
        c = np.linalg.solve(gram + eta * np.eye(25), h / lam)
        # The projection on the kernel's span drops zeta's part outside it, so compare the part
        # inside: the interpolant of the extension's values on the samples.
        on_samples = gram @ c - h / lam
        inside = np.linalg.solve(gram, on_samples)
        expected = np.asarray(jax.jit(kernel.gram)(queries, x)) @ inside
        result = Stein(kernel, ridge=eta).fit(x)(queries)
        np.testing.assert_allclose(result, expected, rtol=1e-7, atol=1e-8)


def test_it_is_the_spectral_fit_with_the_tikhonov_filter():
    x = jnp.asarray(_samples(), jnp.float32)
    general = KernelEstimator(TikhonovFilter(0.3), RBF, reference="gaussian").fit(x)
    special = Stein(ridge=0.3, reference="gaussian").fit(x)
    np.testing.assert_array_equal(general(x), special(x))
    assert special.info.estimator == "Stein"
    assert float(special.info.ridge) == pytest.approx(0.3)
