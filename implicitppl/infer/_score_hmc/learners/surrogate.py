"""The surrogate: fitted functions for the opaque parts, coordinates to move in, and a wall.

The sampler moves in y, x = m + L y, under U~(x) + wall(y), where U~ is the potential with the
fitted functions in it. Nothing is known away from the evaluations, where a regression may even
decrease for ever, so the wall turns trajectories back: R(y) = max(|B^{-1} (x - b)| - r, 0)^2 with
b, B the moments of the points that matter and r 1.5 times the farthest of them.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicitppl._core.frames import Frame, weighted_frame
from implicitppl.infer._score_hmc.evaluations import Evaluations, newest_first, usual_range
from implicitppl.infer._score_hmc.learners.regression import (
    FittedValues,
    fit_values,
    initial_hyper,
)
from implicitppl.infer._score_hmc.problem import WHOLE, Model

WALL_FACTOR, KNOWN_FACTOR = 1.5, 2.0  # of the farthest point that matters; of that


class Surrogate(eqx.Module):
    """What trajectories follow.

    Attributes:
        fits: a fitted function for each opaque part, or a force in place of the only one.
        frame: coordinates of the trajectories, in which the target has covariance of about I.
        wall: coordinates of the wall.
        radius: where the wall begins.
        fitted: False before the first fit, when there are only random-walk moves.
    """

    fits: dict[str, Any]  # FittedValues, or one Force
    frame: Frame
    wall: Frame
    radius: Float[Array, ""]
    fitted: Bool[Array, ""]

    def potential(self, model: Model, z: Float[Array, " D"]) -> Float[Array, ""]:
        """Return U~(z) without the wall."""
        return model.approximate(z, self.fits)

    def knows(self, z: Float[Array, " D"]) -> Bool[Array, ""]:
        """Return whether z is in the region that trajectories may begin and end in."""
        return jnp.sum(self.wall.to(z) ** 2) <= (KNOWN_FACTOR * self.radius) ** 2

    def walled(self, model: Model, y: Float[Array, " D"]) -> Float[Array, ""]:
        """Return the potential that trajectories follow, in their coordinates."""
        z = self.frame.back(y)
        out = jnp.sqrt(jnp.sum(self.wall.to(z) ** 2) + 1e-12) - self.radius
        return self.potential(model, z) + jnp.maximum(out, 0) ** 2


def nearness(slack: Float[Array, " N"], at_least: int) -> Float[Array, " N"]:
    """Return weights that fall with the slack and give `at_least` points (if there are) a say."""
    finite = jnp.where(jnp.isfinite(slack), slack, jnp.inf)
    needed = jnp.sort(finite)[min(at_least, slack.shape[0]) - 1]
    last = jnp.max(jnp.where(jnp.isfinite(slack), slack, 0))
    width = jnp.maximum(jnp.minimum(needed, last), 1)
    weights = jnp.where(jnp.isfinite(slack), 1 / (1 + slack / width) ** 2, 0)
    return weights / jnp.sum(weights)


class Chosen(NamedTuple):
    """Evaluations to fit, newest first, and the wall around them."""

    rows: Evaluations
    valid: Bool[Array, " N"]
    slack: Float[Array, " N"]
    weights: Float[Array, " N"]
    limit: Float[Array, ""]
    wall: Frame
    radius: Float[Array, ""]


def choose(evaluations: Evaluations) -> Chosen:
    """Return which evaluations matter: the better half, and all that are no farther than those.

    A point that turned out bad must be known as bad; what is far away in value and in place tells
    little.
    """
    dimension = evaluations.z.shape[1]
    rows = newest_first(evaluations)
    slack = rows.slack
    weights = nearness(slack, 2 * dimension + 2)
    finite = jnp.isfinite(slack)
    coefficients = (dimension + 1) * (dimension + 2) // 2
    rank = jnp.clip(jnp.sum(finite) // 2, 2 * dimension + 2, coefficients)
    limit = jnp.maximum(jnp.sort(slack)[jnp.minimum(rank, slack.shape[0]) - 1], 2)
    limit = jnp.where(jnp.isfinite(limit), limit, 2)
    wall = weighted_frame(rows.z, weights)
    distance = jnp.sqrt(jnp.sum(wall.to(rows.z) ** 2, axis=1))
    radius = WALL_FACTOR * jnp.max(jnp.where(weights >= 0.2 * jnp.max(weights), distance, 0))
    valid = finite & ((slack <= limit) | (distance <= radius))
    return Chosen(rows, valid, slack, weights, limit, wall, radius)


def thin(chosen: Chosen, size: int) -> Chosen:
    """Return at most `size` of the evaluations: the newest `size / 2` of them, and the best."""
    newest = jnp.cumsum(chosen.valid) <= size // 2
    order = jnp.where(newest, -1, chosen.slack)
    kept = jnp.sort(jax.lax.top_k(jnp.where(chosen.valid, -order, -jnp.inf), size)[1])
    rows = jax.tree.map(lambda x: x[kept], chosen.rows._replace(count=chosen.rows.number))
    weights = chosen.weights[kept]
    return chosen._replace(
        rows=rows._replace(count=chosen.rows.count),
        valid=chosen.valid[kept],
        slack=chosen.slack[kept],
        weights=weights / jnp.sum(weights),
    )


def fit(chosen: Chosen, old: Surrogate, dense: bool) -> Surrogate:
    """Return a surrogate fitted to evaluations; its coordinates are theirs, to be refined.

    On the way down potentials span many orders of magnitude; the larger ones enter by their
    logarithm, with the slope of 1 where that begins. Hyper-parameters start from the old ones.
    """
    rows, valid, slack, weights, limit, wall, radius = chosen
    excess = jnp.where(valid, jnp.maximum(slack - limit, 0), 0)
    lowered = excess - (1 + limit) * jnp.log1p(excess / (1 + limit))
    potential = rows.potential - lowered * usual_range(rows.z.shape[1])
    fits = {}
    for name, previous in old.fits.items():
        whole = name == WHOLE
        fits[name] = fit_values(
            rows.inputs[name],
            potential[:, None] if whole else rows.outputs[name],
            jnp.where(valid, slack, 0),
            valid,
            weighted_frame(rows.inputs[name], weights),
            gaussian=whole,
            start=previous.hyper,
            keep_whitener=True,
        )
    frame = wall if dense else weighted_frame(rows.z, weights, dense=False)
    return Surrogate(fits, frame, wall, radius, jnp.asarray(True))


def padded(surrogate: Surrogate, size: int) -> Surrogate:
    """Return the surrogate with room for `size` points in each fit, without their whiteners."""

    def pad(values: FittedValues) -> FittedValues:
        rows = ((0, size - values.points.shape[0]), (0, 0))
        values = eqx.tree_at(
            lambda v: (v.points, v.coefficients),
            values,
            (jnp.pad(values.points, rows), jnp.pad(values.coefficients, rows)),
        )
        return replace(values, whitener=None)

    return eqx.tree_at(
        lambda s: s.fits, surrogate, {name: pad(fit) for name, fit in surrogate.fits.items()}
    )


def unfitted(evaluations: Evaluations, start: Float[Array, "C D"]) -> Surrogate:
    """Return a surrogate of the right shapes around the start, from which nothing is learned."""
    shape = jax.eval_shape(_zero_fits, evaluations)
    fits = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    for name, fit in fits.items():
        hyper = initial_hyper(fit.points.shape[1], fit.points.dtype)
        fits[name] = eqx.tree_at(lambda f: f.hyper, fit, hyper)
    return without_force(fits, start)


def without_force(fits: dict[str, Any], start: Float[Array, "C D"]) -> Surrogate:
    """Return a surrogate around the start that no move follows yet."""
    identity = jnp.eye(start.shape[1], dtype=start.dtype)
    frame = Frame(jnp.mean(start, axis=0), identity, identity)
    return Surrogate(fits, frame, frame, jnp.asarray(jnp.inf, start.dtype), jnp.asarray(False))


def _zero_fits(evaluations: Evaluations) -> dict[str, FittedValues]:
    valid = jnp.ones(evaluations.potential.shape, bool)
    return {
        name: fit_values(
            inputs,
            evaluations.outputs[name],
            evaluations.potential,
            valid,
            weighted_frame(inputs, evaluations.potential),
            gaussian=name == WHOLE,
        )
        for name, inputs in evaluations.inputs.items()
    }
