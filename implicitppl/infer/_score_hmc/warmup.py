"""What warm-up does beside moving: fits, on the way down and in the bulk, and help for chains."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from implicitppl.infer._score_hmc.bank import Bank, usual_range
from implicitppl.infer._score_hmc.chains import Chains, Options
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.explore import explore
from implicitppl.infer._score_hmc.learners.surrogate import (
    Model,
    Surrogate,
    choose,
    fit,
    padded,
    slack_of,
    thin,
)


def descending(bank: Bank, enough: int) -> Bool[Array, ""]:
    """Return whether the bulk is not reached: few evaluations near the lowest, or it still falls.

    It falls if the newest `enough` evaluations went lower than all before by more than 3.
    """
    known = bank.number > 0
    near = jnp.sum(slack_of(bank, known) <= 0)
    recent = bank.number > bank.count - enough
    newest = jnp.min(jnp.where(known & recent, bank.potential, jnp.inf))
    before = jnp.min(jnp.where(known & ~recent, bank.potential, jnp.inf))
    return (near < enough) | (newest < before - 3)


def learn(
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

    def fitted(size: int, chains: Chains) -> tuple[Surrogate, Adaptation]:
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
    branches = [keep, lambda c: fitted(small, c), lambda c: fitted(capacity, c)]
    if small == capacity:
        which, branches = jnp.minimum(which, 1), branches[:2]
    surrogate, adaptation = jax.lax.switch(which, branches, chains)
    return chains._replace(surrogate=surrogate, adaptation=adaptation)


def rescuing(i: Array, options: Options) -> Bool[Array, ""]:
    """Return whether chains are rescued before iteration i: at one and two quarters of warm-up."""
    quarters = jnp.asarray([options.plan.num_warmup // 4, options.plan.num_warmup // 2])
    return jnp.any(i == quarters) & (i > 0)


def rescue(key: Array, i: Array, chains: Chains, options: Options) -> Chains:
    """Return the chains with those that were left behind moved to good points of the bank.

    A chain whose potential is more than twice the usual range above the lowest found holds no mass
    worth the name (e^-40 in 10 dimensions), but it may be a local mode that it would not leave.
    """

    def moved(chains: Chains) -> Chains:
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

    return jax.lax.cond(rescuing(i, options), moved, lambda chains: chains, chains)
