"""Forces learned from values of the target: a regression of what is opaque, refined by walkers.

On the way down, when few evaluations are near the bulk, small fits follow each other closely. In
each fit walkers under the regression set coordinates, a step size, and the points of a design.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl.infer._score_hmc.evaluations import Evaluations, add, empty_evaluations
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.explore import explore
from implicitppl.infer._score_hmc.learners.learner import Choices, Learned, Learner, Visit
from implicitppl.infer._score_hmc.learners.surrogate import (
    Surrogate,
    choose,
    fit,
    padded,
    thin,
    unfitted,
)
from implicitppl.infer._score_hmc.problem import Model, Problem
from implicitppl.infer._score_hmc.reuse import Earlier, add_all
from implicitppl.infer._score_hmc.schedule import Phase, WarmupSchedule, make_schedule
from implicitppl.infer._score_hmc.start import Start

# Of the moves that learn: wider than the target, so that its tails are known; and to points of the
# design, where the surrogate is unsure.
HOT_SHARE, DESIGN_SHARE = 0.25, 0.35
LEAST_WALKS = 0.1  # of the moves before the trials


class Values(Learner):
    """Learns from the values of the target, wherever it was evaluated.

    Attributes:
        schedule: of the warm-up.
        choices: of the user.
        capacity: N, how many evaluations are kept.
    """

    schedule: WarmupSchedule
    choices: Choices
    capacity: int

    def begin(self, start: Start, earlier: Earlier, problem: Problem) -> Learned:
        """Return no force, and the evaluations of an earlier run and of the start."""
        z = start.z
        room = empty_evaluations(self.capacity, z.shape[1], problem.structure(z[0]), z.dtype)
        evaluations = add(add_all(room, earlier), z, start.evaluation)
        adaptation = kinds.initial(z.shape[1], z.dtype)
        return Learned(unfitted(evaluations, z), adaptation, evaluations)

    def learn(self, key: Array, phase: Phase, model: Model, learned: Learned) -> Learned:
        """Return a regression of the evaluations where a fit is due: of all, or of a few."""
        schedule = self.schedule
        if not schedule.fits:
            return learned
        small = min(self.capacity, schedule.small)
        due = jnp.any(phase.i == jnp.asarray(schedule.fits))
        due_small = jnp.any(phase.i == jnp.asarray(schedule.small_fits, jnp.int32))
        due_small = due_small & phase.descending
        which = jnp.where(due & ~phase.descending, 2, jnp.where(due | due_small, 1, 0))
        branches: list[Callable[[Learned], tuple[Surrogate, Adaptation]]] = [
            lambda learned: (learned.surrogate, learned.adaptation),
            lambda learned: self._fitted(key, small, model, learned),
            lambda learned: self._fitted(key, self.capacity, model, learned),
        ]
        if small == self.capacity:
            which, branches = jnp.minimum(which, 1), branches[:2]
        surrogate, adaptation = jax.lax.switch(which, branches, learned)
        return learned._replace(surrogate=surrogate, adaptation=adaptation)

    def exploring(self, i: Int[Array, ""], dtype: Any) -> Float[Array, " K"]:
        """Return the same probability for all trajectories, in the trials also for walks."""
        warm = kinds.exploring(max(self.choices.safe, LEAST_WALKS), dtype)
        even = kinds.exploring(1 / kinds.NUM_MOVES, dtype)
        return jnp.where(i < self.schedule.trials, warm, even)

    def excursions(self, u: Float[Array, ""]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Return whether to evaluate a point of the design, or to move wider than the target."""
        return u < DESIGN_SHARE, u > 1 - HOT_SHARE

    def eager(self, phase: Phase) -> Bool[Array, ""]:
        """Return True early: what the chains make of it is no draw, and nothing learns from it."""
        return phase.early

    def record(self, i: Int[Array, ""], evaluations: Evaluations, visit: Visit) -> Evaluations:
        """Return the evaluations with those of warm-up, accepted or not."""
        return jax.lax.cond(
            i < self.schedule.num_warmup,
            lambda: add(evaluations, visit.z, visit.evaluation),
            lambda: evaluations,
        )

    def decided(self, adaptation: Adaptation) -> Float[Array, " K"]:
        """Return most of the moves to the kind that jumps farthest, see `kinds.decide`."""
        return kinds.decide(adaptation, self.choices.safe)

    def tuned(
        self, i: Int[Array, ""], kind: Int[Array, ""], accept: Array, adaptation: Adaptation
    ) -> Adaptation:
        """Return the adaptation as it is: walkers have found the step size."""
        del i, kind, accept
        return adaptation

    def judged(self, change: Array) -> Array:
        """Return the difference: there is a potential."""
        return change

    def _fitted(
        self, key: Array, size: int, model: Model, learned: Learned
    ) -> tuple[Surrogate, Adaptation]:
        """Return the surrogate of `size` evaluations at most, and what walkers found under it."""
        old, dense = learned.adaptation, self.choices.dense
        chosen = choose(learned.evaluations)
        chosen = thin(chosen, size) if size < self.capacity else chosen
        surrogate = fit(chosen, learned.surrogate, dense)
        exploration = explore(key, model, surrogate, chosen, dense)
        usual = 2.38 / learned.evaluations.z.shape[1] ** 0.5
        scale = jnp.where(learned.surrogate.fitted, old.walk_scale, usual)
        step = exploration.step_size
        if self.choices.step_size is not None:
            step = jnp.full_like(step, self.choices.step_size)
        return padded(exploration.surrogate, self.capacity), old._replace(
            step_size=step,
            walk_scale=scale.astype(old.walk_scale.dtype),
            design=exploration.design,
        )


def make_values(
    num_warmup: int,
    shape: tuple[int, int],
    num_earlier: int,
    num_kept: int | None,
    choices: Choices,
) -> Values:
    """Return how C chains of D dimensions learn from values, beside those of an earlier run."""
    num_chains, dimension = shape
    added = num_chains * (num_warmup + 1)
    wanted = min(num_kept or default_capacity(dimension), num_earlier + added)
    capacity = max(wanted, num_chains, 2)
    schedule = make_schedule(num_warmup, num_chains, dimension, min(capacity, num_earlier))
    return Values(schedule, choices, capacity)


def default_capacity(dimension: int) -> int:
    """Return how many evaluations are kept: enough for all quadratic terms, 1000 to 2000."""
    return min(2000, max(1000, 3 * (dimension + 1) * (dimension + 2) // 4))
