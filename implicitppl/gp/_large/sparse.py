"""Inducing points with the noise integrated out: the collapsed bound and its posterior.

With Q = K_fz K_zz^-1 K_zf, S = diag(s^2) and r = y - m(x),

    log p(y) >= log N(r; 0, Q + S) - 1/2 tr(S^-1 (K - Q)),

the bound at the best q(u) of the function's values u at the M inducing points. Everything follows
from A = L^-1 K_zf S^-1/2, L L' = K_zz, and B = I + A A' = R R':

    log N = -1/2 (N log 2 pi + log |S| + 2 sum log R_ii + |S^-1/2 r|^2 - |c|^2),
    c = R^-1 A S^-1/2 r;     f(x*):  mean = b' c,   var = k(x*, x*) - |a|^2 + |b|^2,
    a = L^-1 k(z, x*),  b = R^-1 a.

B has eigenvalues of at least 1, so only K_zz may need jitter. The bound rises, or stays, when an
inducing point is added, and equals log p(y) where z = x.

Titsias, Variational learning of inducing variables in sparse Gaussian processes, AISTATS 2009.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from implicitppl._core.checks import check_positive
from implicitppl._core.cholesky import safe_cholesky
from implicitppl._core.points import as_noise_variance, as_points, check_points
from implicitppl.gp._exact import GaussianProcess
from implicitppl.gp._inducing import Inducing, InducingPoints
from implicitppl.gp._nugget import nugget
from implicitppl.kernels import real
from implicitppl.processes import AbstractGaussianProcess


class SparseGaussianProcess(eqx.Module):
    """A Gaussian process seen through M inducing points, for a few thousand to 1e5 observations.

    Args:
        process: a `GaussianProcess` without observations.
        inducing: (M, D) or (M,) points; learned by `fit` unless "inducing" is fixed. K-means
            centres of the inputs, or a random subset of them, are usual starts.

    `log_evidence` is a lower bound of log p(y), so in a model it is a factor:

        numpyro.factor("y", sparse.log_evidence(x, y, noise_scale))

    Raises:
        ValueError: if the process was observed, or `inducing` are not points.

    Cost O(N M^2) time and O(N M) memory for the bound, its gradient, and `condition`; then O(M^2)
    for each new point.

    Reference: Titsias (2009), equation (9); Bauer et al., NeurIPS 2016, on what it does.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.gp import SparseGaussianProcess
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> x = jnp.linspace(0, 6, 50)
        >>> sparse = SparseGaussianProcess(GaussianProcess(RBF()), jnp.linspace(0, 6, 8))
        >>> posterior = sparse.condition(x, jnp.sin(x), noise_scale=0.1)
        >>> round(float(posterior(jnp.array([1.5])).mean[0]), 1)
        1.0
    """

    process: GaussianProcess
    inducing: Float[Array, "M D"] = real(kind="inducing")

    def __init__(self, process: GaussianProcess, inducing: ArrayLike):
        if not isinstance(process, GaussianProcess) or process.evidence is not None:
            raise ValueError("`process` must be a `GaussianProcess` without observations.")
        self.process = process
        self.inducing = as_points("inducing", inducing)

    def functionals(self, dtype: jnp.dtype) -> Inducing:
        """Return what is conditioned on in place of all points."""
        return InducingPoints(self.inducing.astype(dtype))

    def check_data(
        self, x: ArrayLike, y: ArrayLike, observed: ArrayLike | None
    ) -> tuple[Float[Array, "N D"], Float[Array, " N"], Bool[Array, " N"] | None]:
        """Return inputs, outputs and mask as arrays, or raise `ValueError`."""
        return check_points(x, y, observed)

    def log_evidence(
        self,
        x: ArrayLike,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """Return the lower bound of log p(y), in nats.

        Args:
            x: (N, D) or (N,) inputs.
            y: (N,) outputs.
            noise_scale: standard deviation of the noise, positive; a number or (N,).
            observed: (N,) booleans, False where an output is missing.

        Raises:
            ValueError: if shapes do not fit or known values are not finite.
        """
        check_positive("noise_scale", noise_scale)
        points, values, mask = check_points(x, y, observed)
        noise = as_noise_variance(noise_scale, points.shape[0], points.dtype)
        return _bound(self, points, values, noise, mask)

    def condition(
        self,
        x: ArrayLike,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> "SparsePosterior":
        """Return the process given the observations, at the best q(u); arguments as above."""
        check_positive("noise_scale", noise_scale)
        points, values, mask = check_points(x, y, observed)
        noise = as_noise_variance(noise_scale, points.shape[0], points.dtype)
        return _condition(self, points, values, noise, mask)


class SparsePosterior(AbstractGaussianProcess):
    """A Gaussian process given observations, through inducing points.

    Attributes:
        prior: the sparse process that was observed.
        factor: L, (M, M), of the inducing points' covariance.
        inner: R, (M, M), of I + A A'.
        weights: c, (M,).
        jitter: what was added to the variances of the inducing points to factorise them.
    """

    prior: SparseGaussianProcess
    factor: Float[Array, "M M"]
    inner: Float[Array, "M M"]
    weights: Float[Array, " M"]
    jitter: Float[Array, ""]

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        return self._projected(as_points("x", x)).mean

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        x = as_points("x", x)
        outer, inner, mean = self._projected(x)
        variance = self.prior.process.kernel.diag(x) - jnp.sum(outer**2, axis=0)
        return mean, jnp.maximum(variance, 0) + jnp.sum(inner**2, axis=0)

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        x = as_points("x", x)
        y = None if y is None else as_points("y", y)
        left = self._projected(x)
        right = left if y is None else self._projected(y)
        prior = self.prior.process.kernel.gram(x, y)
        return prior - left.outer.T @ right.outer + left.inner.T @ right.inner

    def _projected(self, x: Array) -> "_Projected":
        process, inducing = self.prior.process, self.prior.functionals(x.dtype)
        cross = inducing.cross(process.kernel, x)
        outer = solve_triangular(self.factor, cross, lower=True)
        inner = solve_triangular(self.inner, outer, lower=True)
        return _Projected(outer, inner, process.prior_mean.at(x) + self.weights @ inner)


class _Projected(NamedTuple):
    outer: Float[Array, "M N"]
    inner: Float[Array, "M N"]
    mean: Float[Array, " N"]


class _Collapsed(NamedTuple):
    factor: Float[Array, "M M"]
    jitter: Float[Array, ""]
    scaled: Float[Array, "M N"]  # A
    inner: Float[Array, "M M"]  # R
    residual: Float[Array, " N"]  # S^-1/2 r
    weights: Float[Array, " M"]  # c


def _collapse(
    sparse: SparseGaussianProcess,
    x: Array,
    y: Array,
    noise_variance: Array,
    observed: Array | None,
) -> _Collapsed:
    kernel, inducing = sparse.process.kernel, sparse.functionals(x.dtype)
    factor, jitter, _ = safe_cholesky(inducing.gram(kernel))
    root = jax.lax.rsqrt(noise_variance)
    if observed is not None:
        root = jnp.where(observed, root, 0)  # a missing output has infinite noise
    cross = inducing.cross(kernel, x) * root[None, :]
    scaled = solve_triangular(factor, cross, lower=True)
    identity = jnp.eye(factor.shape[0], dtype=x.dtype)
    inner = jnp.linalg.cholesky(identity + jnp.matmul(scaled, scaled.T, precision="highest"))
    residual = root * (y - sparse.process.prior_mean.at(x))
    weights = solve_triangular(inner, jnp.matmul(scaled, residual), lower=True)
    return _Collapsed(factor, jitter, scaled, inner, residual, weights)


@eqx.filter_jit
def _bound(
    sparse: SparseGaussianProcess,
    x: Float[Array, "N D"],
    y: Float[Array, " N"],
    noise_variance: Float[Array, " N"],
    observed: Bool[Array, " N"] | None,
) -> Float[Array, ""]:
    extra = nugget(sparse.process.kernel, x)
    noise_variance = noise_variance + extra
    parts = _collapse(sparse, x, y, noise_variance, observed)
    present = jnp.ones_like(y) if observed is None else observed.astype(y.dtype)
    log_scale = 0.5 * jnp.sum(present * jnp.log(2 * math.pi * noise_variance))
    log_det = jnp.sum(jnp.log(jnp.diagonal(parts.inner)))
    misfit = jnp.sum(parts.residual**2) - jnp.sum(parts.weights**2)
    prior = jnp.sum(present * (sparse.process.kernel.diag(x) - extra) / noise_variance)
    lost = prior - jnp.sum(parts.scaled**2)
    return -log_scale - log_det - 0.5 * misfit - 0.5 * lost


@eqx.filter_jit
def _condition(
    sparse: SparseGaussianProcess,
    x: Float[Array, "N D"],
    y: Float[Array, " N"],
    noise_variance: Float[Array, " N"],
    observed: Bool[Array, " N"] | None,
) -> SparsePosterior:
    noise_variance = noise_variance + nugget(sparse.process.kernel, x)
    parts = _collapse(sparse, x, y, noise_variance, observed)
    return SparsePosterior(sparse, parts.factor, parts.inner, parts.weights, parts.jitter)
