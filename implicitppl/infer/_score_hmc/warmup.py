"""What warm-up does beside moving and learning: the way down, and help for chains left behind."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from implicitppl.infer._score_hmc.chains import Chains
from implicitppl.infer._score_hmc.evaluations import Evaluations, usual_range
from implicitppl.infer._score_hmc.schedule import Phase, WarmupSchedule


def phase_of(i: Int[Array, ""], evaluations: Evaluations, schedule: WarmupSchedule) -> Phase:
    """Return where in the warm-up a run is, before iteration i."""
    down = jax.lax.cond(
        i < schedule.trials,
        lambda: descending(evaluations, schedule.small),
        lambda: jnp.asarray(False),
    )
    return Phase(i, down, (i < schedule.num_warmup // 2) | down)


def descending(evaluations: Evaluations, enough: int) -> Bool[Array, ""]:
    """Return whether the bulk is not reached: few evaluations near the lowest, or it still falls.

    It falls if the newest `enough` evaluations went lower than all before by more than 3.
    """
    near = jnp.sum(evaluations.slack <= 0)
    recent = evaluations.number > evaluations.count - enough

    def lowest(rows: Bool[Array, " N"]) -> Array:
        return jnp.min(jnp.where(evaluations.is_filled & rows, evaluations.potential, jnp.inf))

    return (near < enough) | (lowest(recent) < lowest(~recent) - 3)


def rescuing(i: Int[Array, ""], schedule: WarmupSchedule) -> Bool[Array, ""]:
    """Return whether chains are rescued before iteration i: at one and two quarters of warm-up."""
    quarters = jnp.asarray([schedule.num_warmup // 4, schedule.num_warmup // 2])
    return jnp.any(i == quarters) & (i > 0)


def rescue(key: Array, i: Int[Array, ""], chains: Chains, schedule: WarmupSchedule) -> Chains:
    """Return the chains with those that were left behind moved to good points that are kept.

    A chain whose potential is more than twice the usual range above the lowest found holds no mass
    worth the name (e^-40 in 10 dimensions), but it may be a local mode that it would not leave.
    """

    def moved(chains: Chains) -> Chains:
        kept, estimate = chains.learned.evaluations, chains.estimate
        above = (estimate.potential - jnp.min(kept.potential)) / usual_range(chains.z.shape[1])
        left = above > 2
        log_weight = jnp.where(kept.slack <= 0, 0.0, -jnp.inf)
        chosen = jax.random.categorical(key, log_weight, shape=left.shape)

        def pick(there: Array, here: Array) -> Array:
            return jnp.where(left.reshape(-1, *[1] * (here.ndim - 1)), there[chosen], here)

        return chains._replace(
            z=pick(kept.z, chains.z),
            outputs={k: pick(kept.outputs[k], old) for k, old in chains.outputs.items()},
            estimate=estimate._replace(potential=pick(kept.potential, estimate.potential)),
        )

    return jax.lax.cond(rescuing(i, schedule), moved, lambda chains: chains, chains)
