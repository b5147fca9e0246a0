"""Reference scores s0: what is known, or easily fitted, and need not be expanded in the kernel.

s(x) = s0(x) + residual; the residual is what the kernel estimates, and away from the samples,
where a kernel says nothing, s0 rules.

    Gaussian: s0(x) = -P (x - mu), C = (1 - a) cov + a diag(cov), a from `shrinkage_amount`,
              P = C^{-1} (1 - (1 - a)(D + 1)/(M - 1)) if M > D + 3, else C^{-1};
              at a = 0 the factor is (M - D - 2)/(M - 1), unbiased for Gaussian samples.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from implicitppl._core.moments import scaled_cholesky, shrinkage_amount, shrunk_covariance
from implicitppl.score._field import Field, GradientField
from implicitppl.score._sample import Sample

ReferenceLike = str | Callable[..., Array] | None


class GaussianReference(GradientField):
    """The score of a Gaussian; 0 in constant coordinates."""

    mean: Float[Array, " D"]
    precision: Float[Array, "D D"]

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return -jnp.matmul(x - self.mean[None, :], self.precision, precision="highest")

    def divergence(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.full((x.shape[0],), -jnp.trace(self.precision), x.dtype)

    def log_density(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return -(x - mu)^T P (x - mu) / 2 for every row."""
        return 0.5 * jnp.sum((x - self.mean[None, :]) * self.score(x), axis=1)


class CallableReference(Field):
    """A score given by the user as a function of one point (D,), and of its covariates (C,)."""

    function: Callable[..., Array]
    num_covariates: int = eqx.field(static=True, default=0)

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return jax.vmap(self._one)(x)

    def _one(self, row: Float[Array, " D"]) -> Float[Array, " D"]:
        covariates, point = row[: self.num_covariates], row[self.num_covariates :]
        arguments = (point, covariates) if self.num_covariates else (point,)
        value = jnp.asarray(self.function(*arguments))
        if value.shape != point.shape:
            raise ValueError(
                f"`reference` must map a point of shape {point.shape} to a score of the same "
                f"shape; got shape {value.shape}."
            )
        return jnp.concatenate([jnp.zeros_like(covariates), value.astype(point.dtype)])


class StaticFunction(eqx.Module):
    """A plain function as a PyTree without leaves, so that what holds it passes through `jit`."""

    function: Callable[[Array], Any] = eqx.field(static=True)

    def __call__(self, *arguments: Array) -> Any:
        return self.function(*arguments)


def gaussian_reference(
    sample: Sample, shrinkage: float | Float[Array, ""] | None = None
) -> GaussianReference:
    """Return the plug-in Gaussian score of a sample.

    With covariates that of the linear regression on them: of P only the columns of x are kept.
    """
    m = sample.moments
    dimension = m.mean.shape[0]
    amount = shrinkage_amount(m) if shrinkage is None else jnp.asarray(shrinkage, m.size.dtype)
    factor = scaled_cholesky(shrunk_covariance(m, amount))
    inverse = cho_solve((factor, True), jnp.eye(dimension, dtype=factor.dtype))
    unbiased = 1 - (1 - amount) * (dimension + 1) / jnp.maximum(m.size - 1, 1e-6)
    precision = inverse * jnp.where(m.size > dimension + 3, unbiased, 1)
    both = m.varies[:, None] & (m.varies & sample.is_scored)[None, :]
    return GaussianReference(m.mean, jnp.where(both, precision, 0))


class _FittedGaussian(eqx.Module):
    """Stands for `reference="gaussian"`, so that an estimator is a PyTree without strings."""


def as_reference(reference: ReferenceLike) -> eqx.Module | None:
    """Return a reference that is a PyTree, or raise what is wrong with it."""
    if reference is None or isinstance(reference, eqx.Module):
        return reference
    if isinstance(reference, str):
        if reference != "gaussian":
            raise ValueError(
                f'`reference` must be None, "gaussian" or a callable; got {reference!r}.'
            )
        return _FittedGaussian()
    if not callable(reference):
        raise ValueError(f'`reference` must be None, "gaussian" or a callable; got {reference!r}.')
    return StaticFunction(reference)


def fit_reference(reference: Any, sample: Sample) -> Field | None:
    """Return the reference score of a fit: fitted, the user's, or none."""
    if reference is None:
        return None
    if isinstance(reference, _FittedGaussian):
        return gaussian_reference(sample)
    return CallableReference(reference, sample.num_covariates)


def reference_name(reference: eqx.Module | None) -> str:
    """Return what `ScoreInfo.reference` says."""
    if reference is None:
        return "none"
    return "gaussian" if isinstance(reference, _FittedGaussian) else "callable"
