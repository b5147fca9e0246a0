"""How far the functions of a guide are from those of a prior, at finitely many points.

Both sides get the same normal noise, of standard deviation `noise` times that of the prior, since
without it the divergence of a finite network is infinite (see `_gaussian`). A Gaussian process
says its mean and covariance; of any other process they are taken from draws.

- `GaussianKL`: KL of the two normal laws with these moments. Of the KL itself it is a lower bound
  where the prior is Gaussian: of all laws with given moments the normal one has the least.
- `RegularizedKL`: the same with noise variance g n for n points, which converges as they grow.
- `GridKL`: averaged over random subsets of the points of random size.
- `ScoreKL` (in `_score`) adds what is not normal, by estimated scores.
"""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_positive
from implicitppl.divergences._gaussian import Moments, gaussian_kl, masked, sample_moments
from implicitppl.processes import AbstractGaussianProcess, Process
from implicitppl.processes._multi_output import MultiOutput

MIN_PRIOR_DRAWS, PRIOR_DRAWS_PER_POINT = 1000, 10


class Pair(NamedTuple):
    """A guide's functions beside the prior's, at the same n points.

    Attributes:
        values: (S, n) one function of the guide in each row; several outputs follow each other.
        guide: their moments; exact where the guide is Gaussian, else those of `values`.
        prior: moments of the prior; exact where it is Gaussian, else those of `draws`.
        draws: (S', n) functions of the prior, or None where it is Gaussian.
        is_exact: whether the guide's moments are exact.
    """

    values: Float[Array, "S n"]
    guide: Moments
    prior: Moments
    draws: Float[Array, "P n"] | None
    is_exact: bool


class Divergence(eqx.Module):
    """A divergence of processes from their values at n points."""

    @abstractmethod
    def __call__(self, pair: Pair, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the divergence in nats, differentiable in the guide's values and moments."""

    @abstractmethod
    def added_variance(self, pair: Pair) -> Float[Array, ""]:
        """Return the variance of the noise that both sides get."""

    @abstractmethod
    def describe(self) -> str:
        """Return in words what is computed, and with which settings."""


class NoisyDivergence(Divergence):
    """A divergence whose noise has a standard deviation in units of the prior's."""

    noise: eqx.AbstractVar[float]

    def added_variance(self, pair: Pair) -> Float[Array, ""]:
        """Return the variance of the noise that both sides get."""
        return self.noise**2 * prior_unit(pair)


class GaussianKL(NoisyDivergence):
    """KL of the normal laws that share mean and covariance with guide and prior.

    Args:
        noise: standard deviation of the noise added to both, in units of the prior's.

    Exact for Gaussian guides and priors, up to the noise: along a direction in which the posterior
    has variance v the optimal guide has v - r, with r the variance of the noise. From S particles
    of another guide the covariance has rank S - 1: take more particles than points.

    Raises:
        ValueError: if `noise` is not positive.
    """

    noise: float = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        check_positive("noise", self.noise)

    def __call__(self, pair: Pair, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return KL[N(m, C + r I) || N(m', C' + r I)]."""
        return gaussian_kl(pair.guide, pair.prior, self.added_variance(pair))

    def describe(self) -> str:
        """Return in words what is computed."""
        return f"KL of Gaussian moments, noise {self.noise:g} of the prior's sd"


class RegularizedKL(Divergence):
    """KL of the normal laws, with noise variance g n for n points: it converges as n grows.

    Args:
        strength: g, in units of the prior's mean variance.

    At n points it is `GaussianKL` with a noise of sqrt(g n): posterior deviations below that are
    lost, so that g must be small beside the square of the smallest one over n.

    Reference: Cinquin and Bamler (2024), arXiv 2406.04317.

    Raises:
        ValueError: if `strength` is not positive.
    """

    strength: float = eqx.field(static=True, default=1e-6)

    def __check_init__(self) -> None:
        check_positive("strength", self.strength)

    def __call__(self, pair: Pair, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return KL[N(m, C + g n I) || N(m', C' + g n I)]."""
        return gaussian_kl(pair.guide, pair.prior, self.added_variance(pair))

    def added_variance(self, pair: Pair) -> Float[Array, ""]:
        """Return g n, in units of the prior's mean variance."""
        return self.strength * pair.prior.mean.shape[0] * prior_unit(pair)

    def describe(self) -> str:
        """Return in words what is computed."""
        return f"regularised KL of Gaussian moments, g = {self.strength:g} of the prior's variance"


class GridKL(NoisyDivergence):
    """KL of the normal laws averaged over random subsets of the points, of random size.

    Args:
        num_subsets: how many are drawn in a step.
        noise: as in `GaussianKL`.

    The size is uniform between 1 and n. Smaller than the KL at all n points.

    Reference: Ma and Hernandez-Lobato (2021), "Functional variational inference based on
    stochastic process generators".

    Raises:
        ValueError: if `num_subsets` or `noise` is not positive.
    """

    num_subsets: int = eqx.field(static=True, default=4)
    noise: float = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        check_positive("num_subsets", self.num_subsets)
        check_positive("noise", self.noise)

    def __call__(self, pair: Pair, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the mean KL over the subsets."""
        ridge = self.added_variance(pair)

        def subset(key: PRNGKeyArray) -> Array:
            size_key, order_key = jax.random.split(key)
            total = pair.prior.mean.shape[0]
            size = jax.random.randint(size_key, (), 1, total + 1)
            keep = jax.random.permutation(order_key, total) < size
            fill = prior_unit(pair)
            return gaussian_kl(
                masked(pair.guide, keep, fill), masked(pair.prior, keep, fill), ridge
            )

        # One after the other: batched factorisations in a loop can stall XLA's CPU thread pool.
        return jnp.mean(jax.lax.map(subset, jax.random.split(key, self.num_subsets)))

    def describe(self) -> str:
        """Return in words what is computed."""
        return (
            f"KL of Gaussian moments on {self.num_subsets} random subsets of the points, "
            f"noise {self.noise:g} of the prior's sd"
        )


def prior_unit(pair: Pair) -> Array:
    """Return the prior's mean variance, in which noise is measured; it is not learned from."""
    return jax.lax.stop_gradient(pair.prior.mean_variance)


def make_pair(
    values: Float[Array, "S n"], guide: Process, prior: Process, x: Array, key: PRNGKeyArray
) -> Pair:
    """Return guide and prior at the points, exactly where they say their moments.

    In float64 where that is enabled, whatever the dtype of the guide: covariances are nearly
    singular, and cost little beside the functions.
    """
    precise = jnp.result_type(float)
    values, x = values.astype(precise), x.astype(precise)
    known, moments = exact_moments(prior, x), exact_moments(guide, x)
    draws = None
    if known is None:
        num = max(MIN_PRIOR_DRAWS, PRIOR_DRAWS_PER_POINT * values.shape[1])
        draws = flat(prior.sample(key, x, num))
        known = sample_moments(draws)
    found = sample_moments(values) if moments is None else moments
    return Pair(values, found, known, draws, moments is not None)


def exact_moments(process: Process, x: Array) -> Moments | None:
    """Return mean and covariance of a Gaussian process at x, else None.

    Outputs of several independent ones follow each other at every point, as in `flat`.
    """
    if isinstance(process, AbstractGaussianProcess):
        return Moments(process.mean_at(x), process.covariance(x))
    if not isinstance(process, MultiOutput):
        return None
    parts = [exact_moments(part, x) for part in process.processes]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    size, outputs = x.shape[0], len(parts)
    covariance = jnp.zeros((size, outputs, size, outputs), known[0].covariance.dtype)
    for p, part in enumerate(known):
        covariance = covariance.at[:, p, :, p].set(part.covariance)
    mean = jnp.stack([part.mean for part in known], axis=-1)
    return Moments(mean.reshape(-1), covariance.reshape(size * outputs, size * outputs))


def flat(values: Array) -> Array:
    """Return (S, n P) values of (S, n[, P])."""
    return values.reshape(values.shape[0], -1)
