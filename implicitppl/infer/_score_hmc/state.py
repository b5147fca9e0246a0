"""The state that NumPyro sees, with and without an axis for chains."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from implicitppl.infer._score_hmc.bank import Bank
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.surrogate import Surrogate
from implicitppl.infer._score_hmc.noise import Meter, Noise


class ScoreHMCState(NamedTuple):
    """State of `ScoreHMC`; fields from `z` to `step_size` have a chain axis in vectorized chains.

    Attributes:
        i: iteration, warm-up included.
        z: unconstrained values by site; with black boxes, also their outputs at this point.
        potential_energy: the true potential at `z`, as it was when `z` was accepted.
        accept_prob: of the last proposal.
        mean_accept_prob: over the warm-up or the sampling so far.
        diverging: whether the last trajectory diverged.
        num_steps: leapfrog steps of the last proposal; they cost no evaluation.
        integration_error: change of the surrogate's energy along the last trajectory; NaN, as the
            next two, with a score estimator as the surrogate.
        surrogate_error: change of (true minus surrogate potential) from the point to the proposal.
        surrogate_gap: true minus surrogate potential at `z`; NaN before the first fit.
        bank_distance: from `z` to the nearest evaluation of the bank, in coordinates in which the
            target has about unit covariance; NaN in warm-up. With a score estimator the bank holds
            states.
        move: kind of the last move, an index of `ScoreHMC.move_names`.
        num_evaluations: of the true target by this chain, so far.
        num_failures: evaluations that failed by exception, NaN, time-out (with
            `on_failure="reject"`).
        noise: of random boxes at `z`, by name.
        noise_variance: of the true potential over repeated evaluations at one point, for random
            boxes; NaN until the end of warm-up, and for targets that are not random.
        noise_meter: what `noise_variance` is made of.
        bank_size: how many of the bank's rows are filled.
        step_size: of the leapfrog integrator.
        adaptation: what warm-up learned beside the surrogate.
        surrogate: fitted functions and coordinates; fixed after warm-up.
        bank: evaluations, or states for a score estimator; fixed after warm-up.
        rng_key: one key for each chain.
    """

    i: Array
    z: Any
    potential_energy: Array
    accept_prob: Array
    mean_accept_prob: Array
    diverging: Array
    num_steps: Array
    integration_error: Array
    surrogate_error: Array
    surrogate_gap: Array
    bank_distance: Array
    move: Array
    num_evaluations: Array
    num_failures: Array
    noise: Noise
    noise_variance: Array
    noise_meter: Meter
    bank_size: Array
    step_size: Array
    adaptation: Adaptation
    surrogate: Surrogate
    bank: Bank
    rng_key: Array


_PER_CHAIN = (
    "z",
    "potential_energy",
    "accept_prob",
    "mean_accept_prob",
    "diverging",
    "num_steps",
    "integration_error",
    "surrogate_error",
    "surrogate_gap",
    "bank_distance",
    "move",
    "num_evaluations",
    "num_failures",
    "noise",
    "noise_variance",
    "noise_meter",
    "bank_size",
    "step_size",
    "rng_key",
)


def without_chain_axis(state: ScoreHMCState) -> ScoreHMCState:
    fields = {k: jax.tree.map(lambda x: x[0], getattr(state, k)) for k in _PER_CHAIN}
    return state._replace(**fields)


def with_chain_axis(state: ScoreHMCState) -> ScoreHMCState:
    fields = {k: jax.tree.map(lambda x: x[None], getattr(state, k)) for k in _PER_CHAIN}
    return state._replace(**fields)


@jax.custom_batching.custom_vmap
def same_for_all(i: Array) -> Array:
    """Return `i`, which is the same in all mapped chains, without an axis for them.

    Under `vmap` a condition with such an axis computes both of its branches; the surrogate would be
    fitted in every iteration.
    """
    return i


@same_for_all.def_vmap
def _(axis_size: int, in_batched: list[bool], i: Array) -> tuple[Array, bool]:
    del axis_size
    return (i[0] if in_batched[0] else i), False
