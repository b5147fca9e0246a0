"""Moves that leave the target invariant whatever the surrogate: trajectories and their correction.

In coordinates y with unit mass, under the walled surrogate potential V:

  trajectory   leapfrog steps (y, p) -> (y', -p') with the force -grad V. Volume preserving and
               reversible for any force that does not depend on where the trajectory began, so
               accepting with min(1, exp(U - U' + |p|^2/2 - |p'|^2/2)) leaves exp(-U) invariant.
  transition   k trajectories, each accepted or not under V itself, so that together they are
               reversible with respect to exp(-V); one correction, min(1, exp(V' - V + U - U')),
               makes the whole reversible with respect to exp(-U) (Christen, Fox 2005).

Either costs one evaluation of the true U, at its end.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Potential = Callable[[Array], Array]
# Change of energy, up or down, beyond which the integrator has diverged: the way back then has too.
DIVERGENCE = 1000.0
MAX_LEAPFROGS = 64


class Proposal(NamedTuple):
    """The end of a move, before the true potential there is known.

    Attributes:
        y: (D,) end point.
        log_ratio: what is added to U - U' in the log acceptance ratio.
        surrogate_change: V' - V.
        integration_error: change of V + |p|^2/2 along the last trajectory.
        inner_accept: mean acceptance of the trajectories under V.
        num_steps: leapfrog steps.
        diverging: whether the trajectory of a single one diverged; it is to be refused. In a
            transition it was refused already.
    """

    y: Float[Array, " D"]
    log_ratio: Float[Array, ""]
    surrogate_change: Float[Array, ""]
    integration_error: Float[Array, ""]
    inner_accept: Float[Array, ""]
    num_steps: Int[Array, ""]
    diverging: Bool[Array, ""]


class Schedule(NamedTuple):
    """Step sizes and numbers of steps of K trajectories."""

    steps: Float[Array, " K"]
    counts: Int[Array, " K"]


def leapfrog(
    potential: Potential, y: Array, p: Array, step: Array, num_steps: Array
) -> tuple[Array, Array, Array, Array]:
    """Return y, p after `num_steps` (traced) leapfrog steps, and the potential at both ends."""
    both = jax.value_and_grad(potential)
    start, slope = both(y)

    def body(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        y, p, slope, _ = carry
        p = p - 0.5 * step * slope
        y = y + step * p
        value, slope = both(y)
        return y, p - 0.5 * step * slope, slope, value

    y, p, _, end = jax.lax.fori_loop(0, num_steps, body, (y, p, slope, start))
    return y, p, start, end


def propose(
    key: Array,
    potential: Potential,
    y: Float[Array, " D"],
    plan: Schedule,
    num_trajectories: Int[Array, ""],
    corrected: Bool[Array, ""],
    temperature: Float[Array, ""],
) -> Proposal:
    """Return the end of a trajectory (not `corrected`) or of a transition of several.

    Args:
        key: random key.
        potential: V, differentiable.
        y: start.
        plan: step sizes and numbers of steps of the trajectories, as many as there can be.
        num_trajectories: how many of them are run.
        corrected: whether trajectories are accepted under V. If not, there must be one.
        temperature: T, to move under exp(-V/T) instead; exact where `corrected`.
    """
    zero = jnp.zeros((), y.dtype)

    def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        y, value, _, accepts, steps, diverging, kinetic = carry
        momentum_key, accept_key = jax.random.split(jax.random.fold_in(key, i))
        p = jnp.sqrt(temperature) * jax.random.normal(momentum_key, y.shape, y.dtype)
        new, q, start, end = leapfrog(potential, y, p, plan.steps[i], plan.counts[i])
        kinetic = 0.5 * (jnp.sum(p * p) - jnp.sum(q * q))
        error = end - start - kinetic
        bad = ~(jnp.abs(error) < DIVERGENCE) | ~jnp.all(jnp.isfinite(new))
        accept = jnp.where(bad, 0, jnp.minimum(1, jnp.exp(-jnp.where(bad, 0, error) / temperature)))
        taken = ~corrected | (jax.random.uniform(accept_key, (), y.dtype) < accept)
        taken = taken & ~(corrected & bad)
        y = jnp.where(taken, new, y)
        value = jnp.where(taken, end, value)
        return (
            y,
            value,
            error,
            accepts + accept,
            steps + plan.counts[i],
            diverging | bad,
            kinetic,
        )

    first = potential(y)
    carry = (y, first, zero, zero, jnp.zeros((), jnp.int32), jnp.asarray(False), zero)
    out = jax.lax.fori_loop(0, num_trajectories, body, carry)
    new, last, error, accepts, steps, diverging, kinetic = out
    change = last - first
    log_ratio = jnp.where(corrected, change / temperature, kinetic)
    mean_accept = accepts / jnp.maximum(num_trajectories, 1).astype(y.dtype)
    diverging = diverging & ~corrected | ~jnp.all(jnp.isfinite(new))
    return Proposal(new, log_ratio, change, error, mean_accept, steps, diverging)


def walk(
    key: Array, potential: Potential, y: Float[Array, " D"], scale: Float[Array, ""]
) -> Proposal:
    """Return the end of a random walk, with a deviation between an eighth of `scale` and all of it.

    Short walks too: they are accepted where the target is narrow.
    """
    size_key, walk_key = jax.random.split(key)
    size = scale * 2 ** -jax.random.uniform(size_key, (), y.dtype, 0.0, 3.0)
    end = y + size * jax.random.normal(walk_key, y.shape, y.dtype)
    change = potential(end) - potential(y)
    zero = jnp.zeros((), y.dtype)
    return Proposal(end, zero, change, zero, zero, jnp.zeros((), jnp.int32), jnp.asarray(False))


def accept_probability(
    proposal: Proposal, current: Float[Array, ""], proposed: Float[Array, ""]
) -> Float[Array, ""]:
    """Return min(1, exp(U - U' + log_ratio)); 0 where that is not a number."""
    log_ratio = current - proposed + proposal.log_ratio
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    return jnp.exp(jnp.minimum(log_ratio, 0))


def schedule(key: Array, time: Float[Array, ""], step: Float[Array, ""], num: int) -> Schedule:
    """Return jittered step sizes and lengths of `num` trajectories of about the given time.

    Step sizes are between a quarter of `step` and all of it: in a narrow tail the usual step is too
    long for every trajectory, and a chain would stay there for long.
    """
    time_key, step_key = jax.random.split(key)
    jitter = jax.random.uniform(time_key, (num,), time.dtype, 0.6, 1.4)
    steps = step * 2 ** -jax.random.uniform(step_key, (num,), time.dtype, 0.0, 2.0)
    counts = jnp.clip(jnp.round(jitter * time / steps), 1, MAX_LEAPFROGS)
    return Schedule(steps, counts.astype(jnp.int32))
