"""Walkers under the surrogate: coordinates and step size, at no evaluation of the true target.

After each fit a few dozen walkers start at good evaluations and move under the surrogate.
Their moments become the coordinates of the trajectories, their acceptance sets the step size.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.frames import Frame, weighted_frame
from implicitppl.infer._score_hmc.evaluations import usual_range
from implicitppl.infer._score_hmc.kinds import NUM_DESIGN
from implicitppl.infer._score_hmc.learners.surrogate import Chosen, Surrogate
from implicitppl.infer._score_hmc.moves import propose, schedule
from implicitppl.infer._score_hmc.problem import WHOLE, Model

NUM_WALKERS, NUM_ROUNDS, NUM_MOVES = 32, 5, 16
NUM_CANDIDATES = 512
TARGET_ACCEPT = 0.85
FIRST_LOG_STEP, GAIN = -0.7, 0.7
TIME = 1.5  # of a trajectory; pi / 2 forgets the start under a standard normal


class Exploration(NamedTuple):
    """What the walkers found: the surrogate in better coordinates, a step size, and where to look.

    `design` (NUM_DESIGN, D) holds points that may matter and of which little is known.
    """

    surrogate: Surrogate
    step_size: Float[Array, ""]
    design: Float[Array, "Q D"]


def explore(
    key: Array, model: Model, surrogate: Surrogate, chosen: Chosen, dense: bool
) -> Exploration:
    """Return the surrogate with coordinates from walkers under it, and their step size."""
    start_key, design_key, round_key = jax.random.split(key, 3)
    log_weight = 2 * jnp.log(chosen.weights)
    walkers = chosen.rows.z[jax.random.categorical(start_key, log_weight, shape=(NUM_WALKERS,))]

    def one_round(
        carry: tuple[Array, Frame], key: Array
    ) -> tuple[tuple[Array, Frame], tuple[Array, Array]]:
        walkers, frame = carry
        moved = eqx.tree_at(lambda s: s.frame, surrogate, frame)
        walkers, visited, step = _round(key, model, moved, walkers)
        weights = jnp.full((visited.shape[0],), 1 / visited.shape[0], visited.dtype)
        new_frame = weighted_frame(visited, weights, dense=dense)
        keep = functools.partial(jnp.where, new_frame.is_finite())
        better = jax.tree.map(keep, new_frame, frame)
        return (walkers, better), (visited, step)

    carry, (visits, steps) = jax.lax.scan(
        one_round, (walkers, surrogate.frame), jax.random.split(round_key, NUM_ROUNDS)
    )
    surrogate = eqx.tree_at(lambda s: s.frame, surrogate, carry[1])
    visited, step = visits[-1], steps[-1]
    return Exploration(surrogate, step, design(design_key, model, surrogate, chosen, visited))


def design(
    key: Array, model: Model, surrogate: Surrogate, chosen: Chosen, visited: Float[Array, "W D"]
) -> Float[Array, "Q D"]:
    """Return points to evaluate next: where the target may have mass and the surrogate is unsure.

    A surrogate that is too high somewhere keeps trajectories away, and so never learns better;
    a chain that gets there by a random walk then sticks. Candidates are points of good evaluations
    and of the walkers, moved about; plausible are those that are inside the usual range when the
    surrogate is lowered by two standard deviations; they are drawn by their variance.
    """
    pick_key, move_key, draw_key, scale_key = jax.random.split(key, 4)
    pool = jnp.concatenate([chosen.rows.z, visited])
    inside = jnp.where(chosen.valid & (chosen.slack <= 0), 0.0, -jnp.inf)
    # Half from the evaluations, half from the walkers.
    balance = jnp.log(visited.shape[0] / jnp.maximum(jnp.sum(inside == 0), 1))
    log_weight = jnp.concatenate([inside + balance, jnp.zeros(visited.shape[0])])
    size = (NUM_CANDIDATES,)
    base = surrogate.frame.to(pool[jax.random.categorical(pick_key, log_weight, shape=size)])
    scale = jax.random.uniform(scale_key, (*size, 1), base.dtype, 0.0, 2.4)
    scale = scale * 2.38 / base.shape[1] ** 0.5
    moved = base + scale * jax.random.normal(move_key, base.shape, base.dtype)
    candidates = surrogate.frame.back(moved)
    values = jax.lax.map(
        lambda y: surrogate.walled(model, y), moved, batch_size=min(64, NUM_CANDIDATES)
    )
    deviation = _deviation(model, surrogate, candidates)
    lowest = jnp.min(jnp.where(chosen.valid, chosen.rows.potential, jnp.inf))
    low = values - 2 * deviation
    plausible = (low < lowest + usual_range(base.shape[1])) & jnp.isfinite(low)
    log_chance = jnp.where(plausible, 2 * jnp.log(deviation + 1e-6), -1e6)
    gumbel = jax.random.gumbel(draw_key, size, base.dtype)
    return candidates[jax.lax.top_k(log_chance + gumbel, NUM_DESIGN)[1]]


def _deviation(model: Model, surrogate: Surrogate, z: Float[Array, "N D"]) -> Float[Array, " N"]:
    """Return how unsure the surrogate is, in units of the potential.

    For black boxes roughly: outputs wrong by their spread over the evaluations are taken to
    shift the potential by its usual range.
    """
    inputs = jax.vmap(lambda z: model.inputs(z, surrogate.fits))(z)
    total = jnp.zeros(z.shape[:1], z.dtype)
    for name, fit in surrogate.fits.items():
        shift = 1.0 if name == WHOLE else usual_range(z.shape[1])
        total = total + shift * fit.deviation(inputs[name])
    return total


def _round(
    key: Array, model: Model, surrogate: Surrogate, walkers: Array
) -> tuple[Array, Array, Array]:
    """Return walkers after a round, where they were in its second half, and the step size."""
    y = surrogate.frame.to(walkers)

    def move(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        y, log_step = carry
        jitter_key, *keys = jax.random.split(key, NUM_WALKERS + 1)
        plan = schedule(jitter_key, jnp.asarray(TIME, y.dtype), jnp.exp(log_step), 1)
        out = jax.vmap(
            lambda k, y: propose(
                k,
                lambda y: surrogate.walled(model, y),
                y,
                plan,
                jnp.asarray(1),
                jnp.asarray(True),
                jnp.ones((), y.dtype),
            )
        )(jnp.stack(keys), y)
        log_step = log_step + GAIN * (jnp.mean(out.inner_accept) - TARGET_ACCEPT)
        # Far out a cubic trend wins over the wall; one walker there would set the coordinates.
        inside = jax.vmap(lambda y: surrogate.knows(surrogate.frame.back(y)))(out.y)
        y = jnp.where(inside[:, None], out.y, y)
        return (y, jnp.clip(log_step, -12, 0.5)), y

    (y, log_step), path = jax.lax.scan(
        move, (y, jnp.full((), FIRST_LOG_STEP, y.dtype)), jax.random.split(key, NUM_MOVES)
    )
    half = path[NUM_MOVES // 2 :].reshape(-1, y.shape[1])
    return surrogate.frame.back(y), surrogate.frame.back(half), jnp.exp(log_step)
