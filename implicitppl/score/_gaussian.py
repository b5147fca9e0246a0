"""The Gaussian plug-in score: the comparator that every kernel estimate must beat.

s(x) = -P (x - mu), with mu the sample mean and P the shrunk, unbiased precision of
`implicitppl.score._reference`.
"""

import equinox as eqx
from jaxtyping import Array

from implicitppl.score._contract import Estimator
from implicitppl.score._fitted import FittedScore, make_fitted, score_info
from implicitppl.score._reference import gaussian_reference
from implicitppl.score._sample import Sample


class Gaussian(Estimator):
    """Score of the Gaussian with the samples' mean and covariance: s(x) = -P (x - mu).

    C = (1 - a) cov + a diag(cov) and P = C^{-1} (1 - (1 - a)(D + 1)/(M - 1)) for M > D + 3, which
    is unbiased for Gaussian samples at a = 0; P = C^{-1} for fewer samples.

    Args:
        shrinkage: a in [0, 1]; None for 0 where M >= 5 (D + 1), rising to 1 at M = D + 1. With
            the default every affine map of enough samples maps the score exactly.

    Raises:
        ValueError: if `shrinkage` is outside [0, 1].

    With covariates the score is that of the linear regression of x on c with Gaussian residuals.
    Cost of `fit` O(M D^2 + D^3), of a query O(D^2); `key` is not used. Wrong wherever q is not
    Gaussian, but stable everywhere; where it shrinks, it understates strong correlations.

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

    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        del key
        reference = gaussian_reference(sample, self.shrinkage)
        info = score_info("Gaussian", sample, reference.precision, reference="gaussian")
        return make_fitted(sample, info, reference)
