"""Where the target is evaluated next: the kind of move, its end, and whether that may be a draw.

A trajectory leads from the known region into it, or is refused: symmetric, so that balance holds,
and the host is spared wild inputs. Random walks are what leaves the region.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl.infer._score_hmc.chains import Chains, Options
from implicitppl.infer._score_hmc.learners.learner import Learned
from implicitppl.infer._score_hmc.moves import Proposal, propose, schedule, walk
from implicitppl.infer._score_hmc.noise import REFRESH_SHARE, Noise, draw, moved
from implicitppl.infer._score_hmc.problem import Model
from implicitppl.infer._score_hmc.schedule import Phase
from implicitppl.infer._score_hmc.warmup import rescuing


class Keys(NamedTuple):
    """Keys of an iteration: those of all chains together, and those of each."""

    fit: Array
    kind: Array
    jitter: Array
    excursion: Array
    rescue: Array
    refresh: Array
    move: Array
    evaluate: Array
    accept: Array


class Move(NamedTuple):
    """What all chains do in an iteration.

    Attributes:
        kind: an index of `kinds.MOVES`.
        temperature: under which trajectories move.
        to_design: whether points of the design are evaluated instead of the ends.
        hot: whether the move is wider than the target, to learn its tails.
        refresh: whether a random target is estimated anew in place, and that is kept.
        measuring: whether it is, for the variance of such estimates.
    """

    kind: Int[Array, ""]
    temperature: Float[Array, ""]
    to_design: Bool[Array, ""]
    hot: Bool[Array, ""]
    refresh: Bool[Array, ""]
    measuring: Bool[Array, ""]

    @property
    def stays(self) -> Bool[Array, ""]:
        """Whether the target is evaluated where the chains are."""
        return self.refresh | self.measuring


class Query(NamedTuple):
    """Where the target is evaluated for each chain.

    Attributes:
        move: that was made.
        proposal: its ends.
        jump: to them, in the coordinates of the trajectories.
        z: points to evaluate.
        noise: of random boxes.
        usable: whether the answer may be accepted.
    """

    move: Move
    proposal: Proposal
    jump: Float[Array, "C D"]
    z: Float[Array, "C D"]
    noise: Noise
    usable: Bool[Array, " C"]


def keys_of(keys: Array) -> Keys:
    """Return the keys of an iteration from one key for each chain."""
    shared = jax.random.fold_in(keys[0], 1)
    own = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 2), 3))(keys)
    fit, kind, jitter, excursion = jax.random.split(shared, 4)
    rescue, refresh = (jax.random.fold_in(shared, number) for number in (2, 3))
    move, evaluate, accept = jnp.swapaxes(own, 0, 1)
    return Keys(fit, kind, jitter, excursion, rescue, refresh, move, evaluate, accept)


def choose(keys: Keys, i: Int[Array, ""], chains: Chains, options: Options) -> Move:
    """Return the move of an iteration, one for all chains."""
    learner, dimension = options.learner, chains.z.shape[1]
    probabilities = _probabilities(i, chains, options)
    kind = jax.random.categorical(keys.kind, jnp.log(probabilities))
    learning = (i < learner.schedule.trials) & (kind != kinds.WALK)
    to_design, hot = learner.excursions(jax.random.uniform(keys.excursion))
    to_design, hot = learning & to_design, learning & hot
    usual = jnp.asarray(kinds.temperatures(dimension))[kind]
    temperature = jnp.where(hot, 1 + 2 / (dimension / 2) ** 0.5, usual).astype(chains.z.dtype)
    return Move(kind, temperature, to_design, hot, *_estimating_anew(keys.refresh, i, options))


def query_of(
    keys: Keys, phase: Phase, move: Move, chains: Chains, model: Model, options: Options
) -> Query:
    """Return where the target is evaluated: one point for each chain."""
    learned = chains.learned
    surrogate, design = learned.surrogate, learned.adaptation.design
    y = surrogate.frame.to(chains.z)
    proposal = _ends(keys, move, y, learned, model, options.length)
    turn = (learned.evaluations.count + jnp.arange(y.shape[0])) % kinds.NUM_DESIGN
    z = jnp.where(move.to_design, design[turn], surrogate.frame.back(proposal.y))
    from_known, to_known = (jax.vmap(surrogate.knows)(point) for point in (chains.z, z))
    usable = jnp.all(jnp.isfinite(z), axis=1) & ~proposal.diverging
    usable = usable & ((move.kind == kinds.WALK) | ((from_known | phase.early) & to_known))
    usable = usable | move.stays
    z = jnp.where(usable[:, None] & ~move.stays, z, chains.z)
    fresh = draw(jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys.evaluate), model.problem.noise)
    noise = moved(chains.estimate.noise, fresh, options.correlation, move.stays)
    return Query(move, proposal, proposal.y - y, z, noise, usable)


def _probabilities(i: Int[Array, ""], chains: Chains, options: Options) -> Float[Array, " K"]:
    """Return with which probability each kind of move is made in this iteration."""
    dtype, learned = chains.z.dtype, chains.learned
    walk = jnp.zeros(kinds.NUM_MOVES, dtype).at[kinds.WALK].set(1.0)
    learner = options.learner
    warm = learner.exploring(i, dtype)
    now = jnp.where(i < learner.schedule.num_warmup, warm, learned.adaptation.probabilities)
    return jnp.where(learned.surrogate.fitted, now, walk)


def _estimating_anew(
    key: Array, i: Int[Array, ""], options: Options
) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Return whether a random target is estimated anew in place: to keep it, to measure it.

    Where chains are rescued it always is: the estimate that they got came from other noise.
    """
    if not options.random:
        return jnp.asarray(False), jnp.asarray(False)
    schedule = options.learner.schedule
    u = jax.random.uniform(key)
    measuring = (i >= schedule.measuring) & (i < schedule.num_warmup)
    refresh = (u < REFRESH_SHARE) | rescuing(i, schedule)
    return refresh & (i < schedule.trials), measuring


def _ends(
    keys: Keys,
    move: Move,
    y: Float[Array, "C D"],
    learned: Learned,
    model: Model,
    length: float | None,
) -> Proposal:
    """Return the ends of the moves: of one kind, with the same numbers of steps."""
    times, numbers, corrected = (jnp.asarray(column)[move.kind] for column in kinds.table())
    if length is not None:
        times = jnp.full_like(times, length)
    step_size = learned.adaptation.step_size
    plan = schedule(keys.jitter, times.astype(y.dtype), step_size, kinds.MAX_TRAJECTORIES)

    def potential(y: Array) -> Array:
        return learned.surrogate.walled(model, y)

    def one(key: Array, y: Array) -> Proposal:
        walk_key, move_key = jax.random.split(key)
        trajectory = propose(move_key, potential, y, plan, numbers, corrected, move.temperature)
        walked = walk(walk_key, potential, y, learned.adaptation.walk_scale)
        is_walk = move.kind == kinds.WALK
        return jax.tree.map(lambda a, b: jnp.where(is_walk, a, b), walked, trajectory)

    return jax.vmap(one)(keys.move, y)
