"""The KL gradient beyond moments, from estimated scores.

    d KL / d phi = E_q[ (s_q(f) - s_p(f)) . df / d phi ],      s = grad log density

An estimated score misses the entropy of directions in which functions hardly vary, and a prior
whose score is exact then shrinks the posterior: at noise .01 and 25 points a third of the entropy
gradient is lost. So the part of a score that is affine in f is not estimated. By Stein's identity
it is minus the inverse covariance times the distance to the mean, and its whole contribution is
the gradient of `gaussian_kl`, exactly, noise and all. What is estimated is the remainder, in the
directions in which the prior varies most: coordinates u = L^-1/2 U^T (f - m) of unit prior
variance, with U, L the leading eigenpairs of the prior's noisy covariance; and among those only
where the guide varies more than the noise.

The remainder of a spectral estimate is what an affine fit to it over its own samples leaves.

Sun et al. (2019), arXiv 1903.05779, gradient of the functional KL; the decomposition is ours.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_positive
from implicitppl.divergences._divergence import NoisyDivergence, Pair
from implicitppl.divergences._gaussian import gaussian_kl
from implicitppl.kernels import InverseMultiquadric
from implicitppl.score import SSGE, Stein, entropy_term
from implicitppl.score._contract import EstimatorLike
from implicitppl.score._in_sample import default_estimator

FORMS = ("remainder", "residual", "plain")
DIRECTION_FLOOR = 2.0
AFFINE_RIDGE = 1e-6


class ScoreKL(NoisyDivergence):
    """KL of the noisy values; moments exactly, and beyond moments the score of the particles.

    Args:
        estimator: of the guide's score at its own particles, with `fit(samples)`; None for the one
            of `ImplicitELBO`.
        prior_estimator: of the score of a prior without a density, which is asked at the guide's
            particles and so away from its samples; None for `Stein` with a Gaussian reference.
        noise: standard deviation of the noise added to both, in units of the prior's.
        num_directions: leading directions of the prior in which more than moments is estimated;
            at most the number of points. What is not normal in others, the steps of a step
            function for one, is seen through the moments only.
        form: "remainder", as above; "residual", the difference of the two scores estimated at once
            by SSGE with the prior's as reference, in the leading directions, for Gaussian priors;
            "plain", the published form: both scores at all points, the prior's exact if it is
            Gaussian. The last two are comparisons, and are known to shrink or to miss.

    The value is `gaussian_kl` of the moments, for Gaussian priors a lower bound of the KL; the
    gradient is that of the KL. Where guide and prior are Gaussian processes it is `GaussianKL`.

    Raises:
        ValueError: for a value outside its range.

    Cost O(n^3 + S n^2), and that of a fit with S samples: a decomposition of S x S.

    Reference: Sun et al. (2019), gradient of the functional KL by the spectral estimator.
    """

    estimator: EstimatorLike
    prior_estimator: EstimatorLike
    noise: float = eqx.field(static=True)
    num_directions: int = eqx.field(static=True)
    form: str = eqx.field(static=True)

    def __init__(
        self,
        estimator: EstimatorLike | None = None,
        noise: float = 0.01,
        num_directions: int = 10,
        form: str = "remainder",
        prior_estimator: EstimatorLike | None = None,
    ):
        check_positive("noise", noise)
        check_positive("num_directions", num_directions)
        if form not in FORMS:
            raise ValueError(f"`form` must be one of {FORMS}; got {form!r}.")
        self.estimator = default_estimator() if estimator is None else estimator
        away = Stein(reference="gaussian") if prior_estimator is None else prior_estimator
        self.prior_estimator = away
        self.noise, self.num_directions, self.form = noise, num_directions, form

    def __call__(self, pair: Pair, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the KL of moments, with the gradient of the KL."""
        ridge = self.added_variance(pair)
        value = gaussian_kl(pair.guide, pair.prior, ridge)
        if pair.is_exact and pair.draws is None:
            return value  # both are normal: nothing is left to estimate
        if self.form == "plain":
            return jax.lax.stop_gradient(value) + _plain(pair, ridge, key, self.estimator)
        size = min(self.num_directions, pair.prior.mean.shape[0])
        u, u_prior, noise = leading_coordinates(pair, ridge, key, size)
        if self.form == "residual":
            if pair.draws is not None:
                raise ValueError('`form` "residual" needs a Gaussian prior; use "remainder".')
            score = _difference(u)
            return jax.lax.stop_gradient(value) + entropy_term(score, u)
        held = jax.lax.stop_gradient(u)
        beyond = above_noise(self.estimator, held, noise)
        if u_prior is not None:
            beyond = beyond - non_affine(self.prior_estimator, u_prior)(held)
        return value + entropy_term(beyond, u)

    def describe(self) -> str:
        """Return in words what is computed."""
        kinds = {
            "remainder": f"moments, and estimated scores in {self.num_directions} directions",
            "residual": f"estimated score differences in {self.num_directions} directions",
            "plain": "estimated scores at all points",
        }
        return f"KL by {kinds[self.form]}, noise {self.noise:g} of the prior's sd"


def leading_coordinates(
    pair: Pair, ridge: Array, key: PRNGKeyArray, size: int
) -> tuple[Float[Array, "S R"], Float[Array, "S R"] | None, Float[Array, " R"]]:
    """Return noisy values of guide and prior in the prior's leading R directions.

    A direction in which the prior varies less than the noise is 0 throughout. The directions are
    constants; draws of the prior, where there are any, are as many as the particles. The third is
    the standard deviation of the noise in each direction.
    """
    held = jax.lax.stop_gradient(pair.prior)
    eye = jnp.eye(held.mean.shape[0], dtype=held.mean.dtype)
    values, vectors = jnp.linalg.eigh(held.covariance + ridge * eye)
    scale, basis = values[-size:], vectors[:, -size:]
    keep = scale > DIRECTION_FLOOR * ridge
    inverse = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, scale, 1)), 0)

    def coordinates(values: Array, key: PRNGKeyArray) -> Array:
        noise = jnp.sqrt(ridge) * jax.random.normal(key, values.shape, values.dtype)
        return jnp.matmul(values + noise - held.mean, basis, precision="highest") * inverse

    guide_key, prior_key = jax.random.split(key)
    u, deviation = coordinates(pair.values, guide_key), jnp.sqrt(ridge) * inverse
    if pair.draws is None:
        return u, None, deviation
    draws = jax.lax.stop_gradient(pair.draws[: pair.values.shape[0]])
    return u, coordinates(draws, prior_key), deviation


def above_noise(
    estimator: EstimatorLike, bank: Float[Array, "S R"], noise: Float[Array, " R"]
) -> Float[Array, "S R"]:
    """Return what is not affine in the score of a bank at itself, where it is more than noise.

    Along directions in which the noise makes most of the variance the law is normal, and the little
    that an estimate finds there would be divided by a small variance. So the remainder is estimated
    in the principal coordinates v of the bank in units of the noise, those of less than twice the
    noise's variance left out, and taken back by the chain rule: s_u = J^T s_v for v = J u.
    """
    unit = jnp.where(noise > 0, noise, 1)
    centred = (bank - jnp.mean(bank, axis=0)) / unit
    variances, vectors = jnp.linalg.eigh(centred.T @ centred / bank.shape[0])
    keep = variances > DIRECTION_FLOOR
    inverse = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, variances, 1)), 0)
    v = jnp.matmul(centred, vectors, precision="highest") * inverse
    found = non_affine(estimator, v)(v) * inverse
    return jnp.matmul(found, vectors.T, precision="highest") / unit


def non_affine(
    estimator: EstimatorLike, bank: Float[Array, "S R"]
) -> Callable[[Float[Array, "Q R"]], Float[Array, "Q R"]]:
    """Return the estimated score of a bank, less its affine fit over the bank."""
    fitted = estimator.fit(bank)
    centre, scale = jnp.mean(bank, axis=0), jnp.std(bank, axis=0)
    unit = jnp.where(scale > 0, scale, 1)

    def design(x: Array) -> Array:
        return jnp.column_stack([jnp.ones(x.shape[0], x.dtype), (x - centre) / unit])

    rows, scores = design(bank), fitted(bank)
    gram = rows.T @ rows / bank.shape[0] + AFFINE_RIDGE * jnp.eye(rows.shape[1], dtype=bank.dtype)
    slope = jnp.linalg.solve(gram, rows.T @ scores / bank.shape[0])

    def remainder(x: Array) -> Array:
        found = fitted(x) - design(x) @ slope
        return jnp.where(scale > 0, found, 0)

    return remainder


def _difference(u: Float[Array, "S R"]) -> Float[Array, "S R"]:
    """Return s_q - s_p at the particles, where the prior is standard normal in u."""
    held = jax.lax.stop_gradient(u)
    estimator = SSGE(InverseMultiquadric, metric="diagonal", reference=jnp.negative)
    return estimator.fit(held)(held) + held


def _plain(pair: Pair, ridge: Array, key: PRNGKeyArray, estimator: EstimatorLike) -> Array:
    """Return the published surrogate: scores of noisy values at all points."""
    guide_key, prior_key = jax.random.split(key)

    def noisy(values: Array, key: PRNGKeyArray) -> Array:
        return values + jnp.sqrt(ridge) * jax.random.normal(key, values.shape, values.dtype)

    values = noisy(pair.values, guide_key)
    held = jax.lax.stop_gradient(values)
    score = estimator.fit(held)(held)
    if pair.draws is not None:
        draws = noisy(pair.draws[: values.shape[0]], prior_key)
        return entropy_term(score - estimator.fit(draws)(held), values)
    eye = jnp.eye(values.shape[1], dtype=values.dtype)
    covariance = pair.prior.covariance + ridge * eye
    mean, factor = pair.prior.mean, jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(factor, (values - mean).T, lower=True)
    log_prior = -0.5 * jnp.sum(white * white) / values.shape[0]
    log_prior = log_prior - jnp.sum(jnp.log(jnp.diagonal(factor)))
    zero_value = -log_prior + jax.lax.stop_gradient(log_prior)
    return entropy_term(score, values) + zero_value
