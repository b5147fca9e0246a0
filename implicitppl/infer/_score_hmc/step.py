"""One iteration for chains that share a bank and a surrogate: fit, move, evaluate once, accept."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl.infer._score_hmc.bank import Bank, add
from implicitppl.infer._score_hmc.chains import Chains, Options, Statistics
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.surrogate import Model
from implicitppl.infer._score_hmc.moves import Proposal, accept_probability, propose, schedule
from implicitppl.infer._score_hmc.noise import REFRESH_SHARE, draw, measured, moved
from implicitppl.infer._score_hmc.problem import Evaluation
from implicitppl.infer._score_hmc.warmup import descending, learn, rescue, rescuing

# Of the moves that learn: wider than the target, so that its tails are known; and to points of the
# design, where the surrogate is unsure.
HOT_SHARE, DESIGN_SHARE = 0.25, 0.35


def step(
    keys: Array, i: Int[Array, ""], chains: Chains, model: Model, options: Options
) -> tuple[Chains, Statistics]:
    """Return the chains after iteration `i`, with one evaluation of the target for each."""
    shared = jax.random.fold_in(keys[0], 1)
    fit_key, kind_key, jitter_key, hot_key = jax.random.split(shared, 4)
    few = jax.lax.cond(
        i < options.plan.trials,
        lambda: descending(chains.bank, options.plan.small),
        lambda: jnp.asarray(False),
    )
    chains = learn(fit_key, i, few, chains, model, options)
    chains = rescue(jax.random.fold_in(shared, 2), i, chains, options)
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
    early = (i < plan.num_warmup // 2) | few
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
    down = early if options.history is None else few
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
        jnp.where(surrogate.fitted & usable & ~asked & ~stay, error, jnp.nan),
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
    """Return whether a random target is estimated anew in place: to keep it, to measure it.

    Where chains are rescued it always is: the bank's estimate came from other noise.
    """
    if not options.random:
        return jnp.asarray(False), jnp.asarray(False)
    plan = options.plan
    u = jax.random.uniform(jax.random.fold_in(key, 3))
    measuring = (i >= plan.measuring) & (i < plan.num_warmup)
    refresh = (u < REFRESH_SHARE) | rescuing(i, options)
    return refresh & (i < plan.trials), measuring


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
