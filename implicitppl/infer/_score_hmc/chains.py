"""The chains that learn together, what is set for all of them, and what an iteration reports."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from implicitppl.infer._score_hmc.learners.learner import Learned, Learner
from implicitppl.infer._score_hmc.noise import Meter, Noise


class Options(NamedTuple):
    """What does not change.

    Attributes:
        learner: how a force is learned, and when.
        correlation: of the noise of a proposal with that of the current point.
        random: whether two evaluations at the same point differ.
        length: of all trajectories; None for that of their kind.
    """

    learner: Learner
    correlation: float = 0.0
    random: bool = False
    length: float | None = None


class Estimate(NamedTuple):
    """What each of C chains keeps of the target at its point.

    Attributes:
        potential: U, as it was when the point was accepted.
        noise: behind it, of random boxes.
        meter: of the variance of such estimates.
    """

    potential: Float[Array, " C"]
    noise: Noise
    meter: Meter


class Chains(NamedTuple):
    """C chains, and what they have learned together."""

    z: Float[Array, "C D"]
    outputs: dict[str, Float[Array, "C P"]]
    estimate: Estimate
    learned: Learned


class Report(NamedTuple):
    """What an iteration reports, for each chain.

    Attributes:
        accept_prob: probability with which the proposal was accepted.
        diverging: whether the trajectory or the target was not finite at its end.
        num_steps: leapfrog steps; they cost no evaluation.
        integration_error: change of the surrogate's energy along the last trajectory; NaN, as the
            next two, for a force that has no potential.
        surrogate_error: change of U - U~ from the current point to the proposal; NaN before the
            first fit and where the proposal was refused.
        surrogate_gap: U - U~ at the point after the move; NaN before the first fit.
        evaluation_distance: from the point after the move to the nearest evaluation, in the
            coordinates of the trajectories; NaN in warm-up.
        move: kind of the move.
        failures: (3,) of this evaluation, by exception, NaN, time-out.
        step_size: of the leapfrog integrator.
        num_kept: evaluations kept to learn from.
    """

    accept_prob: Float[Array, " C"]
    diverging: Bool[Array, " C"]
    num_steps: Int[Array, " C"]
    integration_error: Float[Array, " C"]
    surrogate_error: Float[Array, " C"]
    surrogate_gap: Float[Array, " C"]
    evaluation_distance: Float[Array, " C"]
    move: Int[Array, " C"]
    failures: Int[Array, "C 3"]
    step_size: Float[Array, " C"]
    num_kept: Int[Array, " C"]
