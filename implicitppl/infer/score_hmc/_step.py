"""One iteration for chains that share a bank and a surrogate: fit, move, evaluate once, accept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import implicitppl.infer.score_hmc._adapt as kinds
from implicitppl.infer.score_hmc._adapt import Adaptation
from implicitppl.infer.score_hmc._bank import Bank, add, usual_range
from implicitppl.infer.score_hmc._explore import explore
from implicitppl.infer.score_hmc._history import History
from implicitppl.infer.score_hmc._moves import (
    Proposal,
    accept_probability,
    propose,
    schedule,
)
from implicitppl.infer.score_hmc._noise import (
    REFRESH_SHARE,
    Meter,
    Noise,
    draw,
    measured,
    moved,
)
from implicitppl.infer.score_hmc._plan import Plan
from implicitppl.infer.score_hmc._problem import Evaluation
from implicitppl.infer.score_hmc._surrogate import (
    Model,
    Surrogate,
    choose,
    fit,
    padded,
    slack_of,
    thin,
)

# Of the moves that learn: wider than the target, so that its tails are known; and to points of the
# design, where the surrogate is unsure.
HOT_SHARE, DESIGN_SHARE = 0.25, 0.35


class Options(NamedTuple):
    """What does not change: the schedule and the user's choices.

    `history` is how a force is learned from states; None where values are regressed on.
    """

    plan: Plan
    dense: bool
    safe: float
    correlation: float = 0.0
    random: bool = False
    step_size: float | None = None
    length: float | None = None
    history: History | None = None


class Chains(NamedTuple):
    """States of C chains; `surrogate`, `adaptation` and `bank` are shared."""

    z: Float[Array, "C D"]
    potential: Float[Array, " C"]
    outputs: dict[str, Float[Array, "C P"]]
    noise: Noise
    meter: Meter
    surrogate: Surrogate
    adaptation: Adaptation
    bank: Bank


class Statistics(NamedTuple):
    """What an iteration reports for each chain.

    Attributes:
        accept_prob: probability with which the proposal was accepted.
        diverging: whether the trajectory or the target was not finite at its end.
        num_steps: leapfrog steps.
        integration_error: change of the surrogate's energy along the last trajectory; NaN, as the
            next two, for a force from the history, which has no potential.
        surrogate_error: change of U - U~ from the current point to the proposal; NaN before the
            first fit and where the proposal was refused.
        surrogate_gap: U - U~ at the point after the move; NaN before the first fit.
        bank_distance: from the point after the move to the nearest evaluation, in the coordinates
            of the trajectories; NaN in warm-up.
        move: kind of the move.
        failures: (3,) failures of the host by exception, NaN, time-out.
    """

    accept_prob: Float[Array, " C"]
    diverging: Bool[Array, " C"]
    num_steps: Int[Array, " C"]
    integration_error: Float[Array, " C"]
    surrogate_error: Float[Array, " C"]
    surrogate_gap: Float[Array, " C"]
    bank_distance: Float[Array, " C"]
    move: Int[Array, " C"]
    failures: Int[Array, "C 3"]


def step(
    keys: Array, i: Int[Array, ""], chains: Chains, model: Model, options: Options
) -> tuple[Chains, Statistics]:
    """Return the chains after iteration `i`, with one evaluation of the target for each."""
    shared = jax.random.fold_in(keys[0], 1)
    fit_key, kind_key, jitter_key, hot_key = jax.random.split(shared, 4)
    few = _descending(chains.bank, options.plan.small)
    chains = _learn(fit_key, i, few, chains, model, options)
    chains = _rescue(jax.random.fold_in(shared, 2), i, chains, options)
    own = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 2), 3))(keys)
    surrogate, adaptation = chains.surrogate, chains.adaptation
    kind = jax.random.categorical(kind_key, jnp.log(_probabilities(i, chains, options)))
    y = surrogate.where.to(chains.z)
    learning = (i < options.plan.trials) & (kind > 0)
    if options.history is not None:  # evaluations away from the chains teach it nothing
        learning = jnp.zeros_like(learning)
    u = jax.random.uniform(hot_key)
    asked, hot = learning & (u < DESIGN_SHARE), learning & (u > 1 - HOT_SHARE)
    usual = jnp.asarray(kinds.temperatures(y.shape[1]))[kind]
    temperature = jnp.where(hot, 1 + 2 / (y.shape[1] / 2) ** 0.5, usual).astype(y.dtype)
    proposal = _propose(own[:, 0], jitter_key, kind, temperature, y, chains, model, options)
    turn = (chains.bank.count + jnp.arange(y.shape[0])) % kinds.NUM_DESIGN
    new = jnp.where(asked, adaptation.design[turn], surrogate.where.back(proposal.y))
    # A trajectory leads from the known region into it, or is refused: symmetric, so that balance
    # holds, and the host is spared wild inputs. Random walks are what leaves the region.
    from_known, to_known = (jax.vmap(surrogate.knows)(z) for z in (chains.z, new))
    usable = jnp.all(jnp.isfinite(new), axis=1) & ~proposal.diverging
    plan = options.plan
    early = (i < plan.num_warmup // 2) | (few & (i < plan.trials))
    usable = usable & ((kind == 0) | ((from_known | early) & to_known))
    refresh, measuring = _estimating_anew(shared, i, options)
    stay = refresh | measuring
    usable = usable | stay
    new = jnp.where(usable[:, None] & ~stay, new, chains.z)
    fresh = draw(jax.vmap(lambda k: jax.random.fold_in(k, 1))(own[:, 1]), model.problem.noise)
    noise = moved(chains.noise, fresh, options.correlation, stay)
    found = jax.vmap(lambda z, k, u: model.problem.evaluate(z, k, u, model.args, model.kwargs))(
        new, own[:, 1], noise
    )
    accept = jax.vmap(accept_probability)(proposal, chains.potential, found.potential)
    accept = jnp.where(usable & jnp.isfinite(found.potential), accept, 0)
    # On the way down whatever is more probable is taken: it needs no balance, but a history does.
    down = early if options.history is None else few & (i < plan.trials)
    eager = jnp.exp(jnp.minimum(chains.potential - found.potential, 0))
    eager = jnp.where(usable & jnp.isfinite(found.potential), eager, 0)
    accept = jnp.where(hot | asked, 0, accept)
    accept = jnp.where(down, jnp.maximum(accept, eager), accept)
    accept = jnp.where(stay, refresh & jnp.isfinite(found.potential), accept)
    taken = jax.vmap(lambda k: jax.random.uniform(k, (), y.dtype))(own[:, 2]) < accept

    learned = _adapt(i, kind, accept, proposal.y - y, adaptation, options)
    adaptation = jax.tree.map(lambda a, b: jnp.where(refresh, a, b), adaptation, learned)
    meter = jax.tree.map(
        lambda a, b: jnp.where(measuring, a, b),
        measured(chains.meter, found.potential),
        chains.meter,
    )
    bank = _remembered(i, taken, new, found, chains, options)

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(taken.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    after = chains._replace(
        z=pick(new, chains.z),
        potential=pick(found.potential, chains.potential),
        outputs={k: pick(found.outputs[k], old) for k, old in chains.outputs.items()},
        noise={k: pick(noise[k], old) for k, old in chains.noise.items()},
        meter=meter,
        adaptation=adaptation,
        bank=bank,
    )
    error = found.potential - chains.potential - proposal.surrogate_change
    gap, distance = _judge(i, after, model, options)
    statistics = Statistics(
        accept,
        proposal.diverging,
        proposal.num_steps,
        proposal.integration_error,
        jnp.where(surrogate.fitted & usable & ~asked, error, jnp.nan),
        gap,
        distance,
        jnp.broadcast_to(kind, accept.shape).astype(jnp.int32),
        found.failures,
    )
    return after, statistics if options.history is None else _without_potential(statistics)


def _remembered(
    i: Array, taken: Array, new: Array, found: Evaluation, chains: Chains, options: Options
) -> Bank:
    """Return the bank with what warm-up learns from: the evaluations, or the states."""
    if options.history is not None:
        z = jnp.where(taken[:, None], new, chains.z)
        potential = jnp.where(taken, found.potential, chains.potential)
        return options.history.record(i, chains.bank, z, potential)
    return jax.lax.cond(
        i < options.plan.num_warmup, lambda: add(chains.bank, new, found), lambda: chains.bank
    )


def _without_potential(statistics: Statistics) -> Statistics:
    """Return the statistics of a force that has no potential to compare."""
    unknown = jnp.full_like(statistics.surrogate_gap, jnp.nan)
    return statistics._replace(
        integration_error=unknown, surrogate_error=unknown, surrogate_gap=unknown
    )


def _estimating_anew(key: Array, i: Array, options: Options) -> tuple[Array, Array]:
    """Return whether a random target is estimated anew in place: to keep it, to measure it."""
    if not options.random:
        return jnp.asarray(False), jnp.asarray(False)
    plan = options.plan
    u = jax.random.uniform(jax.random.fold_in(key, 3))
    measuring = (i >= plan.measuring) & (i < plan.num_warmup)
    return (u < REFRESH_SHARE) & (i < plan.trials), measuring


def _judge(i: Array, chains: Chains, model: Model, options: Options) -> tuple[Array, Array]:
    """Return U - U~ at the points of the chains, and how far the nearest evaluation is."""
    surrogate = chains.surrogate
    fitted = jax.vmap(lambda z: surrogate.potential(model, z))(chains.z)
    gap = jnp.where(surrogate.fitted, chains.potential - fitted, jnp.nan)

    def nearest() -> Array:
        known = jnp.where(chains.bank.number > 0, 0, jnp.inf)
        rows = surrogate.where.to(chains.bank.z)

        def one(y: Array) -> Array:
            return jnp.sqrt(jnp.min(jnp.sum((rows - y) ** 2, axis=1) + known))

        return jax.vmap(one)(surrogate.where.to(chains.z)).astype(gap.dtype)

    unknown = jnp.full_like(gap, jnp.nan)
    return gap, jax.lax.cond(i >= options.plan.num_warmup, nearest, lambda: unknown)


def _descending(bank: Bank, enough: int) -> Bool[Array, ""]:
    """Return whether the bulk is not reached: few evaluations near the lowest, or it still falls.

    It falls if the newest `enough` evaluations went lower than all before by more than 3.
    """
    known = bank.number > 0
    near = jnp.sum(slack_of(bank, known) <= 0)
    recent = bank.number > bank.count - enough
    newest = jnp.min(jnp.where(known & recent, bank.potential, jnp.inf))
    before = jnp.min(jnp.where(known & ~recent, bank.potential, jnp.inf))
    return (near < enough) | (newest < before - 3)


def _learn(
    key: Array, i: Array, few: Array, chains: Chains, model: Model, options: Options
) -> Chains:
    """Return the chains with a new surrogate where the plan has one.

    On the way down, when few evaluations are near, small fits follow each other closely.
    """
    plan = options.plan
    if not plan.fits:
        return chains
    if options.history is not None:
        learned = options.history.learn(i, chains.bank, chains.surrogate, chains.adaptation)
        return chains._replace(surrogate=learned[0], adaptation=learned[1])
    capacity = chains.bank.z.shape[0]
    small = min(capacity, plan.small)

    def learn(size: int, chains: Chains) -> tuple[Surrogate, Adaptation]:
        old = chains.adaptation
        chosen = choose(chains.bank)
        chosen = thin(chosen, size) if size < capacity else chosen
        surrogate = fit(chosen, chains.surrogate, options.dense)
        found = explore(key, model, surrogate, chosen, options.dense)
        usual = 2.38 / chains.z.shape[1] ** 0.5
        scale = jnp.where(chains.surrogate.fitted, old.walk_scale, usual)
        step = found.step_size
        if options.step_size is not None:
            step = jnp.full_like(step, options.step_size)
        return padded(found.surrogate, capacity), old._replace(
            step_size=step,
            walk_scale=scale.astype(old.walk_scale.dtype),
            design=found.design,
        )

    def keep(chains: Chains) -> tuple[Surrogate, Adaptation]:
        return chains.surrogate, chains.adaptation

    due = jnp.any(i == jnp.asarray(plan.fits))
    due_small = jnp.any(i == jnp.asarray(plan.small_fits, jnp.int32)) & few
    which = jnp.where(due & ~few, 2, jnp.where(due | due_small, 1, 0))
    branches = [keep, lambda c: learn(small, c), lambda c: learn(capacity, c)]
    if small == capacity:
        which, branches = jnp.minimum(which, 1), branches[:2]
    surrogate, adaptation = jax.lax.switch(which, branches, chains)
    return chains._replace(surrogate=surrogate, adaptation=adaptation)


def _rescue(key: Array, i: Array, chains: Chains, options: Options) -> Chains:
    """Return the chains with those that were left behind moved to good points of the bank.

    At one and two quarters of the warm-up: a chain whose potential is more than twice the usual
    range above the lowest found holds no mass worth the name (e^-40 in 10 dimensions), but it may
    be a local mode that it would not leave.
    """
    quarters = jnp.asarray([options.plan.num_warmup // 4, options.plan.num_warmup // 2])

    def rescue(chains: Chains) -> Chains:
        bank = chains.bank
        slack = slack_of(bank, bank.number > 0)
        above = (chains.potential - jnp.min(bank.potential)) / usual_range(chains.z.shape[1])
        left = above > 2
        size = chains.potential.shape
        chosen = jax.random.categorical(key, jnp.where(slack <= 0, 0.0, -jnp.inf), shape=size)

        def pick(bank: Array, now: Array) -> Array:
            return jnp.where(left.reshape(-1, *[1] * (now.ndim - 1)), bank[chosen], now)

        return chains._replace(
            z=pick(bank.z, chains.z),
            potential=pick(bank.potential, chains.potential),
            outputs={k: pick(bank.outputs[k], old) for k, old in chains.outputs.items()},
        )

    due = jnp.any(i == quarters) & (i > 0)
    return jax.lax.cond(due, rescue, lambda chains: chains, chains)


def _probabilities(i: Array, chains: Chains, options: Options) -> Float[Array, " K"]:
    """Return with which probability each kind of move is made in this iteration."""
    dtype = chains.z.dtype
    walk = jnp.zeros(kinds.NUM_MOVES, dtype).at[0].set(1.0)
    warm = kinds.exploring(max(options.safe, 0.1), dtype)
    even = kinds.exploring(1 / kinds.NUM_MOVES, dtype)
    if options.history is not None:
        warm, even = options.history.exploring(i, options.safe, dtype)
    phase = jnp.where(i < options.plan.trials, warm, even)
    phase = jnp.where(i < options.plan.num_warmup, phase, chains.adaptation.probabilities)
    return jnp.where(chains.surrogate.fitted, phase, walk)


def _propose(
    keys: Array,
    jitter_key: Array,
    kind: Array,
    temperature: Array,
    y: Array,
    chains: Chains,
    model: Model,
    options: Options,
) -> Proposal:
    """Return the proposals of all chains: one kind of move, the same numbers of steps."""
    surrogate, adaptation = chains.surrogate, chains.adaptation
    times, numbers, corrected = (jnp.asarray(column)[kind] for column in kinds.table())
    if options.length is not None:
        times = jnp.full_like(times, options.length)
    plan = schedule(jitter_key, times.astype(y.dtype), adaptation.step_size, kinds.MAX_TRAJECTORIES)

    def one(key: Array, y: Array) -> Proposal:
        walk_key, move_key = jax.random.split(key)
        moved = propose(
            move_key,
            lambda y: surrogate.walled(model, y),
            y,
            plan,
            numbers,
            corrected,
            temperature,
        )
        # Short walks too: they are accepted where the target is narrow.
        size_key, walk_key = jax.random.split(walk_key)
        size = adaptation.walk_scale * 2 ** -jax.random.uniform(size_key, (), y.dtype, 0.0, 3.0)
        walk = y + size * jax.random.normal(walk_key, y.shape, y.dtype)
        change = surrogate.walled(model, walk) - surrogate.walled(model, y)
        zero = jnp.zeros((), y.dtype)
        walked = Proposal(
            walk, zero, change, zero, zero, jnp.zeros((), jnp.int32), jnp.asarray(False)
        )
        return jax.tree.map(lambda a, b: jnp.where(kind == 0, a, b), walked, moved)

    return jax.vmap(one)(keys, y)


def _decided(adaptation: Adaptation, options: Options) -> Float[Array, " K"]:
    """Return the probabilities with which moves are made after warm-up."""
    found = kinds.decide(adaptation, options.safe)
    return found if options.history is None else options.history.decided(found, adaptation)


def _adapt(
    i: Array, kind: Array, accept: Array, jump: Array, old: Adaptation, options: Options
) -> Adaptation:
    """Return the adaptation after a move; unchanged after warm-up."""
    plan = options.plan
    mean = jnp.mean(accept)
    rate = 1 / (1 + i.astype(accept.dtype)) ** 0.5
    scale = old.walk_scale * jnp.exp(rate * (mean - kinds.WALK_TARGET))
    learning = i < (plan.measuring if options.random else plan.num_warmup)
    scale = jnp.where((kind == 0) & learning, scale, old.walk_scale)
    trial = (i >= plan.trials) & learning
    # A jump that is not finite was refused; 0 times it would be no number.
    jumps = jnp.mean(jnp.where(accept[:, None] > 0, accept[:, None] * jump**2, 0), axis=0)
    jumps = old.jumps.at[kind].add(jnp.where(trial, jumps, 0))
    new = old._replace(
        walk_scale=scale,
        jumps=jumps,
        trials=old.trials.at[kind].add(trial.astype(old.trials.dtype)),
    )
    last = i == plan.num_warmup - 1
    decided = jnp.where(last, _decided(new, options), old.probabilities)
    new = new._replace(probabilities=decided)
    return new if options.history is None else options.history.adapted(i, kind, accept, new)
