"""Samples, weights and covariates of a distribution, checked once: what every estimator fits."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.frames import Frame, metric_frame
from implicitppl._core.moments import Moments, moments
from implicitppl.score._checks import check_covariates, check_samples, check_weights


class Sample(eqx.Module):
    """Draws from q, each a row (c, x) of R = C + D numbers, with their weights.

    Attributes:
        rows: (M, R), the covariates c first; the score is that of x given c.
        weights: (M,) non-negative, sum to one.
        num_covariates: C.
        is_weighted: False where all weights are equal.
    """

    rows: Float[Array, "M R"]
    weights: Float[Array, " M"]
    num_covariates: int = eqx.field(static=True, default=0)
    is_weighted: bool = eqx.field(static=True, default=True)

    @property
    def size(self) -> int:
        """M."""
        return self.rows.shape[0]

    @property
    def dimension(self) -> int:
        """D, the coordinates of x."""
        return self.rows.shape[1] - self.num_covariates

    @property
    def dtype(self) -> jnp.dtype:
        """The floating dtype of the rows, and of everything that is fitted to them."""
        return self.rows.dtype

    @property
    def x(self) -> Float[Array, "M D"]:
        """The rows without their covariates."""
        return self.rows[:, self.num_covariates :]

    @property
    def covariates(self) -> Float[Array, "M C"] | None:
        """The covariates, or None."""
        return self.rows[:, : self.num_covariates] if self.num_covariates else None

    @property
    def is_scored(self) -> Bool[Array, " R"]:
        """Which coordinates of a row belong to x."""
        return jnp.arange(self.rows.shape[1]) >= self.num_covariates

    @property
    def counts(self) -> Bool[Array, " M"]:
        """Which rows have a weight."""
        return self.weights > 0

    @property
    def effective_size(self) -> Float[Array, ""]:
        """1 / sum w^2; M without weights."""
        return 1 / jnp.sum(self.weights * self.weights)

    @property
    def moments(self) -> Moments:
        """Weighted mean and covariance of the rows."""
        return moments(self.rows, self.weights)

    @property
    def is_finite(self) -> Bool[Array, ""]:
        """Whether all rows are finite."""
        return jnp.all(jnp.isfinite(self.rows))

    def frame(self, metric: str) -> Frame:
        """Return the coordinates of a metric, fitted to the rows."""
        return metric_frame(metric, self.moments, self.num_covariates)

    def seen_in(self, frame: Frame) -> "Sample":
        """Return the same sample with its rows in the coordinates of a frame."""
        return self.with_rows(frame.to(self.rows))

    def with_rows(self, rows: Float[Array, "M R"]) -> "Sample":
        """Return other rows with these weights."""
        return Sample(rows, self.weights, self.num_covariates, self.is_weighted)

    def gathered(self) -> "Sample":
        """Return the same sample with rows of weight 0 moved onto one that counts.

        They say nothing, but far away they would cost the others their digits in distances.
        """
        if not self.is_weighted:
            return self
        likeliest = self.rows[jnp.argmax(self.weights)]
        return self.with_rows(jnp.where(self.counts[:, None], self.rows, likeliest[None, :]))

    def take(self, index: Int[Array, " m"]) -> "Sample":
        """Return some of the rows, with their weights scaled to sum to one."""
        rows = self.rows[index]
        if not self.is_weighted:
            return Sample(rows, _equal(rows), self.num_covariates, is_weighted=False)
        weights = self.weights[index]
        return Sample(rows, weights / jnp.sum(weights), self.num_covariates)


def check_arrays(
    samples: ArrayLike, covariates: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Float[Array, "M D"], Float[Array, "M C"] | None, Float[Array, " M"] | None]:
    """Return what a sample is made of as checked arrays of one dtype, or raise what is wrong."""
    array = check_samples(samples)
    w = None if weights is None else check_weights(weights, array)
    return array, None if covariates is None else check_covariates(covariates, array), w


def make_sample(
    samples: Float[Array, "M D"],
    covariates: Float[Array, "M C"] | None = None,
    weights: Float[Array, " M"] | None = None,
) -> Sample:
    """Return a sample of checked arrays; equal weights where none are given."""
    num_covariates, rows = 0, samples
    if covariates is not None:
        num_covariates = covariates.shape[1]
        rows = jnp.concatenate([covariates, samples], axis=1)
    if weights is None:
        return Sample(rows, _equal(rows), num_covariates, is_weighted=False)
    return Sample(rows, weights, num_covariates)


def _equal(rows: Float[Array, "M R"]) -> Float[Array, " M"]:
    """Return equal weights that sum to one."""
    return jnp.full(rows.shape[:1], 1 / rows.shape[0], rows.dtype)
