"""The Gaussian plug-in score: the comparator that every kernel estimate must beat.

s(x) = -P (x - mu), with mu the sample mean and P the shrunk, unbiased precision of
`implicitppl.score._reference`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from implicitppl._core.moments import moments
from implicitppl.score._checks import check_weighted, join_covariates, or_equal
from implicitppl.score._fitted import FittedScore, fit_info
from implicitppl.score._reference import gaussian_reference


class Gaussian(eqx.Module):
    """Score of the Gaussian with the samples' mean and covariance: s(x) = -P (x - mu).

    C = (1 - a) cov + a diag(cov) and P = C^{-1} (1 - (1 - a)(D + 1)/(M - 1)) for M > D + 3, which
    is unbiased for Gaussian samples at a = 0; P = C^{-1} for fewer samples.

    Args:
        shrinkage: a in [0, 1]; None for 0 where M >= 5 (D + 1), rising to 1 at M = D + 1. With
            the default every affine map of enough samples maps the score exactly.

    Raises:
        ValueError: if `shrinkage` is outside [0, 1].

    Cost of `fit` O(M D^2 + D^3), of a query O(D^2). Wrong wherever q is not Gaussian, but stable
    everywhere; where it shrinks, it understates strong correlations.

    Reference: Wishart mean of an inverse, e.g. Anderson, An Introduction to Multivariate
    Statistical Analysis, lemma 7.7.1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import Gaussian
        >>> samples = 2.0 * jax.random.normal(jax.random.key(0), (4000, 1))
        >>> round(float(Gaussian().fit(samples)(jnp.array([4.0]))[0]), 1)
        -1.0
    """

    shrinkage: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"`shrinkage` must be in [0, 1]; got {self.shrinkage}.")

    def fit(
        self,
        samples: ArrayLike,
        *,
        covariates: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        key: Array | None = None,
    ) -> FittedScore:
        """Return the Gaussian score fitted to samples.

        Args:
            samples: (M, D), M >= 2, finite, each row a draw from q.
            covariates: (M, C), for the conditional score: that of the linear regression of x on
                c with Gaussian residuals.
            weights: (M,) non-negative importance weights; None for equal ones.
            key: not used.

        Returns:
            A `FittedScore` without a kernel part.

        Raises:
            ValueError: for a wrong rank, fewer than two samples, or values that are not finite.
        """
        del key
        samples, weights = check_weighted(samples, weights)
        joint, num_covariates = join_covariates(samples, covariates)
        return _fit(self, joint, weights, num_covariates)


@eqx.filter_jit
def _fit(
    estimator: Gaussian, samples: Array, weights: Array | None, num_covariates: int
) -> FittedScore:
    size, dimension = samples.shape
    samples = jax.lax.stop_gradient(samples)
    m = moments(samples, jax.lax.stop_gradient(or_equal(weights, samples)))
    reference = gaussian_reference(m, estimator.shrinkage, num_covariates)
    finite = jnp.all(jnp.isfinite(samples)) & jnp.all(jnp.isfinite(reference.precision))
    info = fit_info("Gaussian", size, m.size, finite, reference="gaussian")
    return FittedScore(
        info, None, reference, dimension - num_covariates, num_covariates=num_covariates
    )
