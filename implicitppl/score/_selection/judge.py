"""How predictions are judged: their losses beside the Gaussian's, paired at every held-out point.

A candidate is judged by the paired difference of its loss to that of the Gaussian,

    criterion = mean difference + c (its standard error),

because the smallest of a thousand noisy means is mostly noise: at M = 100 the candidate with the
smallest mean has twenty times the error of the Gaussian on normal samples.

Where the samples are clearly not Gaussian (`normality`), the Gaussian deserves no such protection,
and on heavy tails, where its loss is dominated by a few samples, no other estimate would ever be
believed. The standard error is then of the difference to the rival: the best by its mean of the
Gaussian and of two defaults that were not searched for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl.score._sample import Sample
from implicitppl.score._selection.folds import Folds, Problem


class Predictions(NamedTuple):
    """Scores and divergences at the n held-out points, of one candidate or of several."""

    scores: Float[Array, "*S n D"]
    divergences: Float[Array, "*S n"]


class Judge(NamedTuple):
    """What predictions are compared with.

    Attributes:
        gaussian: held-out predictions of the Gaussian.
        loss: (n,) of the Gaussian.
        rival: (n,) difference of the rival's loss to that; 0 where it is the Gaussian.
        weights: (n,) of the held-out points, sum to one.
        folds: says which points are dependent.
        doubt: from 0, errors are of the difference to the Gaussian, to 1, to the rival.
    """

    gaussian: Predictions
    loss: Float[Array, " n"]
    rival: Float[Array, " n"]
    weights: Float[Array, " n"]
    folds: Folds
    doubt: Float[Array, ""]

    def difference(self, candidate: Predictions) -> Float[Array, " n"]:
        """Return the loss of a candidate minus that of the Gaussian, at every point."""
        return matching_losses(candidate) - self.loss

    def gain_and_error(self, candidate: Predictions) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the mean difference to the Gaussian, and the error that it is charged with."""
        to_gaussian = self.difference(candidate)
        mean, error = mean_and_error(to_gaussian, self.weights, self.folds)
        _, to_rival = mean_and_error(to_gaussian - self.rival, self.weights, self.folds)
        return mean, (1 - self.doubt) * error + self.doubt * to_rival

    def gains_and_errors(
        self, candidates: Predictions
    ) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
        """Return the same for several candidates."""
        return jax.vmap(lambda s, d: self.gain_and_error(Predictions(s, d)))(*candidates)

    def best_rival(self, candidates: list[Predictions]) -> Float[Array, " n"]:
        """Return the differences of the smallest mean; zeros, the Gaussian's, if none is below."""
        rows = jnp.stack([*map(self.difference, candidates), jnp.zeros_like(self.loss)])
        means = rows @ self.weights
        return rows[jnp.argmin(jnp.where(jnp.isfinite(means), means, jnp.inf))]


def make_judge(gaussian: Predictions, sample: Sample, problem: Problem) -> Judge:
    """Return a judge of the points of a problem, `sample` those judged, without a rival yet."""
    weights = sample.weights[problem.folds.judge.reshape(-1)]
    loss = matching_losses(gaussian)
    none = jnp.zeros_like(loss)
    return Judge(gaussian, loss, none, weights / jnp.sum(weights), problem.folds, problem.doubt)


def matching_losses(predictions: Predictions) -> Float[Array, " n"]:
    """Return |s|^2 / 2 + div s at every point."""
    return 0.5 * jnp.sum(predictions.scores**2, axis=1) + predictions.divergences


def mean_and_error(
    values: Float[Array, " n"], weights: Float[Array, " n"], folds: Folds
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the weighted mean and its standard error, from sums over independent groups."""
    mean = jnp.sum(weights * values)
    sums = jax.ops.segment_sum(weights * (values - mean), folds.groups, folds.num_groups)
    count = folds.num_groups
    return mean, jnp.sqrt(jnp.sum(sums**2) * (count / (count - 1)))
