"""The chains that share a bank and a surrogate, their options, and what an iteration reports."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from implicitppl.infer._score_hmc.bank import Bank
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.history import History
from implicitppl.infer._score_hmc.learners.surrogate import Surrogate
from implicitppl.infer._score_hmc.noise import Meter, Noise
from implicitppl.infer._score_hmc.plan import Plan


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
