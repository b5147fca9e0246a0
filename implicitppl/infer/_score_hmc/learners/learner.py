"""The contract of what learns a force, for trajectories under a target that is not differentiated.

There are two ways, and both learn in warm-up from what the chains have seen:

            `Values`                                  `States`
keeps       the target's values wherever it was       the states of the chains
            evaluated
fits        a regression of what is opaque, with a    a score estimator: a force only
            potential and a force
steps       and coordinates from walkers under it     by their acceptance (Robbins, Monro)
excursions  to where the regression is unsure         none, they would be no states
moves       all kinds                                 single trajectories, and more random walks

`begin` makes what is known before the first iteration, `learn` fits where the schedule has it, and
`record` and `adapted` take in what an iteration saw; the others say which moves are made. The
target is left invariant whatever is learned, as none of it changes after warm-up.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl.infer._score_hmc.evaluations import Evaluations
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.surrogate import Surrogate
from implicitppl.infer._score_hmc.problem import Evaluation, Model, Problem
from implicitppl.infer._score_hmc.reuse import Earlier
from implicitppl.infer._score_hmc.schedule import Phase, WarmupSchedule
from implicitppl.infer._score_hmc.start import Start


class Learned(NamedTuple):
    """What all chains that learn together know.

    Attributes:
        surrogate: what trajectories follow, and their coordinates.
        adaptation: sizes and probabilities of moves.
        evaluations: of the target, or states of the chains, to learn from.
    """

    surrogate: Surrogate
    adaptation: Adaptation
    evaluations: Evaluations


class Choices(NamedTuple):
    """The user's choices: the least share of random walks, rotated coordinates, a step size."""

    safe: float
    dense: bool = True
    step_size: float | None = None


class Visit(NamedTuple):
    """What C chains saw in an iteration: where the target was evaluated, and where they are now."""

    z: Float[Array, "C D"]
    evaluation: Evaluation
    state: Float[Array, "C D"]
    potential: Float[Array, " C"]


class Learner(eqx.Module):
    """Learns a force in the iterations of a schedule; nothing in it changes.

    Attributes:
        schedule: of the warm-up.
        choices: of the user.
    """

    schedule: eqx.AbstractVar[WarmupSchedule]
    choices: eqx.AbstractVar[Choices]

    @abstractmethod
    def begin(self, start: Start, earlier: Earlier, problem: Problem) -> Learned:
        """Return what is known at the start: no force, and evaluations of an earlier run."""

    @abstractmethod
    def learn(self, key: Array, phase: Phase, model: Model, learned: Learned) -> Learned:
        """Return what is known after a fit, where one is due; the same elsewhere."""

    @abstractmethod
    def exploring(self, i: Int[Array, ""], dtype: Any) -> Float[Array, " K"]:
        """Return the probabilities of the kinds of moves in warm-up, once there is a force."""

    @abstractmethod
    def excursions(self, u: Float[Array, ""]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Return whether a move before the trials is made to learn, from a uniform number.

        Either to points that the force needs, or wider than the target.
        """

    @abstractmethod
    def eager(self, phase: Phase) -> Bool[Array, ""]:
        """Return whether all that is more probable is accepted, at the cost of balance."""

    @abstractmethod
    def record(self, i: Int[Array, ""], evaluations: Evaluations, visit: Visit) -> Evaluations:
        """Return the evaluations with what this way of learning keeps of a visit."""

    @abstractmethod
    def decided(self, adaptation: Adaptation) -> Float[Array, " K"]:
        """Return the probabilities with which moves are made after warm-up."""

    @abstractmethod
    def tuned(
        self, i: Int[Array, ""], kind: Int[Array, ""], accept: Array, adaptation: Adaptation
    ) -> Adaptation:
        """Return the adaptation with a step size learned from the acceptance of a move."""

    @abstractmethod
    def judged(self, change: Array) -> Array:
        """Return a difference of surrogate potentials, NaN where the force has no potential."""

    def adapted(
        self,
        i: Int[Array, ""],
        kind: Int[Array, ""],
        accept: Float[Array, " C"],
        jump: Float[Array, "C D"],
        old: Adaptation,
        end: int,
    ) -> Adaptation:
        """Return the adaptation after a move; moves count before iteration `end` only."""
        new = kinds.counted(i, kind, accept, jump, old, self.schedule.trials, end)
        last = i == self.schedule.num_warmup - 1
        decided = jnp.where(last, self.decided(new), old.probabilities)
        return self.tuned(i, kind, accept, new._replace(probabilities=decided))
