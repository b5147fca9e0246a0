"""Held-out score matching: how good a score estimate is, without the true score.

E_q[|s|^2/2 + div s] = E_q|s - grad log q|^2/2 - E_q|grad log q|^2/2 (integration by parts), so on
points that the fit has not seen the estimate with the smaller value is the better one.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl.score._checks import check_samples
from implicitppl.score._fitted import FittedScore


def matching_loss(
    fitted: FittedScore, samples: ArrayLike, covariates: ArrayLike | None = None
) -> Float[Array, ""]:
    """Return the held-out score-matching loss mean(|s(x)|^2 / 2 + div s(x)).

    Args:
        fitted: the score estimate, of which nothing may have been fitted on `samples`.
        samples: (V, D) draws from q.
        covariates: (V, C), for a score that was fitted with them.

    Returns:
        A scalar in units of 1/x^2, up to a constant half the mean squared error of the score;
        smaller is better, negative for a useful estimate, 0 for the estimate 0.

    Raises:
        ValueError: if `samples` is not (V, D) with the D of the fit, or is not finite.

    Cost O(V M D). Compare candidates in one coordinate system only. Samples that the fit has seen
    give a value that is too low; heavy tails make the mean noisy, so compare paired differences.

    Reference: Hyvarinen, "Estimation of non-normalized statistical models by score matching",
    JMLR 6 (2005), theorem 1.

    Example:
        >>> import jax
        >>> from implicitppl.score import Gaussian, matching_loss
        >>> train, held_out = jax.random.normal(jax.random.key(0), (2, 2000, 1))
        >>> round(float(matching_loss(Gaussian().fit(train), held_out)), 1)  # truth -1/2
        -0.5
    """
    points = check_samples(samples, min_samples=1)
    score = fitted(points, covariates)
    divergence = fitted.divergence(points, covariates)
    return jnp.mean(0.5 * jnp.sum(score * score, axis=-1) + divergence)
