"""Forces learned from where the chains have been: a score estimate in place of a regression.

States of the chains are kept instead of evaluations. Under the target they are draws of
exp(-U), so that the score of their distribution, as any estimator with `fit(samples)` finds it, is
the force -grad U:

    y = L^{-1} (x - m)   with m, L of the states used,   force(y) = s(y) = estimator.fit(y)(y).

No potential goes with it, so only single trajectories are made: their acceptance needs the change
of the kinetic energy and the true U alone, and is exact for any force that depends on the place.

Strathmann et al. (2015), Gradient-free Hamiltonian Monte Carlo with efficient kernel exponential
families; Shi, Sun, Zhu (2018), A spectral approach to gradient estimation for implicit
distributions (gradient-free HMC).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl._core.frames import Frame, weighted_frame
from implicitppl.infer._score_hmc.evaluations import Evaluations, empty_evaluations, newest_first
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.learner import Choices, Learned, Learner, Visit
from implicitppl.infer._score_hmc.learners.surrogate import WALL_FACTOR, Surrogate, without_force
from implicitppl.infer._score_hmc.problem import WHOLE, Model, Problem
from implicitppl.infer._score_hmc.reuse import Earlier
from implicitppl.infer._score_hmc.schedule import Phase, WarmupSchedule, make_schedule
from implicitppl.infer._score_hmc.start import Start

DEFAULT_CAPACITY = 500
# States of a chain are correlated: so many count as one, and noise of variance
# min(1, SMOOTHING D / M) widens directions in which they hardly differ, by chance.
CORRELATED, SMOOTHING = 8.0, 4.0
WALKING_SHARE, WARM_WALKS, TRIAL_WALKS, WALKS_IF_LOST = 0.3, 0.5, 0.25, 0.8
MOST_SHARE = 8  # at most this part of the states is written in one iteration
TARGET_ACCEPT, DECAY = 0.65, 0.6
# A step this short in coordinates of unit covariance: it is the force that is wrong, not the
# integrator. The longest is that of the walkers under a regression.
FIRST_STEP, DOUBTFUL, SHORTEST, LONGEST = 0.5, 0.07, 0.05, 1.65


class Force(eqx.Module):
    """The potential 0 with the slope -s(y): a force without a potential, in the place of a fit.

    Attributes:
        fitted: the score in coordinates y.
        frame: those coordinates.
    """

    fitted: Any
    frame: Frame

    def __call__(self, z: Float[Array, " D"]) -> Float[Array, " 1"]:
        """Return 0; `jax.grad` of it is minus the score at z, 0 where that is not finite."""
        y = self.frame.to(z)
        score = jax.lax.stop_gradient(self.fitted(y)).astype(y.dtype)
        score = jnp.where(jnp.all(jnp.isfinite(score)), score, 0)
        return -jnp.sum((y - jax.lax.stop_gradient(y)) * score, keepdims=True)


class States(Learner):
    """Learns from the states of the chains, by an estimator of their score.

    Attributes:
        schedule: of the warm-up; the estimator is fitted in its `fits`.
        choices: of the user.
        estimator: of a score, by its `fit(samples)`.
        capacity: M, how many states are kept.
        needed: how many are needed for a fit.
        every: iterations from one record of states to the next.
        each: how many chains, in turn, are in a record.
    """

    schedule: WarmupSchedule
    choices: Choices
    estimator: Any
    capacity: int
    needed: int
    every: int
    each: int

    def begin(self, start: Start, earlier: Earlier, problem: Problem) -> Learned:
        """Return no force and no states: those of the start are draws of something else."""
        del earlier, problem
        z = start.z
        states = empty_evaluations(self.capacity, z.shape[1], {}, z.dtype)
        shapes = jax.eval_shape(lambda kept: self._fit(kept)[0], states)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        adaptation = kinds.initial(z.shape[1], z.dtype)
        return Learned(without_force(zeros.fits, z), adaptation, states)

    def learn(self, key: Array, phase: Phase, model: Model, learned: Learned) -> Learned:
        """Return a new force, and a step size to begin with, where a fit is due.

        Where there are not enough states, or the fit failed, all stays as it was.
        """
        del key, model
        states, old = learned.evaluations, learned.adaptation

        def anew() -> tuple[Surrogate, Adaptation]:
            surrogate, enough = self._fit(states)
            first = ~learned.surrogate.fitted
            scale = jnp.where(first, 2.38 / states.z.shape[1] ** 0.5, old.walk_scale)
            step = FIRST_STEP if self.choices.step_size is None else self.choices.step_size
            begun = old._replace(
                step_size=jnp.full_like(old.step_size, step),
                walk_scale=scale.astype(old.walk_scale.dtype),
            )
            pairs = (surrogate, begun), (learned.surrogate, old)
            return jax.tree.map(lambda new, kept: jnp.where(enough, new, kept), *pairs)

        if not self.schedule.fits:
            return learned
        due = jnp.any(phase.i == jnp.asarray(self.schedule.fits))
        surrogate, adaptation = jax.lax.cond(due, anew, lambda: (learned.surrogate, old))
        return learned._replace(surrogate=surrogate, adaptation=adaptation)

    def exploring(self, i: Int[Array, ""], dtype: Any) -> Float[Array, " K"]:
        """Return the probabilities of single trajectories and random walks.

        A force that was learned in a part of the target keeps chains there. So adaptive random
        walks come first (Haario et al. 2001), and are half of the moves until the trials.
        """
        equal = jnp.ones(kinds.NUM_MOVES, dtype)
        alone = i < WALKING_SHARE * self.schedule.num_warmup
        walks = jnp.where(alone, 1, max(self.choices.safe, WARM_WALKS)).astype(dtype)
        warm = kinds.single(equal, walks)
        trials = kinds.single(equal, jnp.asarray(TRIAL_WALKS, dtype))
        return jnp.where(i < self.schedule.trials, warm, trials)

    def excursions(self, u: Float[Array, ""]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Return False twice: evaluations away from the chains teach nothing."""
        never = jnp.zeros_like(u, bool)
        return never, never

    def eager(self, phase: Phase) -> Bool[Array, ""]:
        """Return True on the way down only: states to learn from need balance."""
        return phase.descending

    def decided(self, adaptation: Adaptation) -> Float[Array, " K"]:
        """Return the best single trajectory and random walks.

        A very short step tells that the force is wrong where the chains are; random walks get the
        share that they have where they jump farther than trajectories.
        """
        probabilities = kinds.decide(adaptation, self.choices.safe)
        lost = (adaptation.step_size < DOUBTFUL) & (self.choices.step_size is None)
        walks = jnp.maximum(probabilities[0], jnp.where(lost, WALKS_IF_LOST, 0))
        return kinds.single(probabilities, walks)

    def record(self, i: Int[Array, ""], evaluations: Evaluations, visit: Visit) -> Evaluations:
        """Return the states with those that are not among them, in place of the oldest.

        A chain that stays adds nothing: one that is stuck would leave one point only. Of many
        chains some take their turn.
        """

        def put() -> Evaluations:
            kept, z = evaluations, visit.state
            first = (i // self.every) * self.each
            turn = (first + jnp.arange(self.each)) % z.shape[0]
            known = jnp.all(kept.z[None] == z[turn][:, None], axis=2) & kept.is_filled
            fresh = ~jnp.any(known, axis=1)
            number = kept.count + jnp.cumsum(fresh, dtype=jnp.int32)
            rows = jnp.where(fresh, (number - 1) % self.capacity, self.capacity)
            return kept._replace(
                z=kept.z.at[rows].set(z[turn], mode="drop"),
                potential=kept.potential.at[rows].set(visit.potential[turn], mode="drop"),
                number=kept.number.at[rows].set(number, mode="drop"),
                count=number[-1],
            )

        due = (i % self.every == 0) & (i < self.schedule.trials)
        return jax.lax.cond(due, put, lambda: evaluations)

    def tuned(
        self, i: Int[Array, ""], kind: Int[Array, ""], accept: Array, adaptation: Adaptation
    ) -> Adaptation:
        """Return the step size after a move (Robbins, Monro): gains begin anew with each fit."""
        if self.choices.step_size is not None or not self.schedule.fits:
            return adaptation
        fits = jnp.asarray(self.schedule.fits)
        since = i - jnp.max(jnp.where(fits <= i, fits, 0))
        gain = 1 / (1 + since.astype(accept.dtype)) ** DECAY
        log_step = jnp.log(adaptation.step_size) + gain * (jnp.mean(accept) - TARGET_ACCEPT)
        step = jnp.clip(jnp.exp(log_step), SHORTEST, LONGEST)
        learning = (kind > 0) & (i < self.schedule.num_warmup)
        return adaptation._replace(step_size=jnp.where(learning, step, adaptation.step_size))

    def judged(self, change: Array) -> Array:
        """Return NaN: the force has no potential to compare."""
        return jnp.full_like(change, jnp.nan)

    def _fit(self, kept: Evaluations) -> tuple[Surrogate, Bool[Array, ""]]:
        """Return a surrogate of the newer half of all states, and whether there were enough."""
        states = newest_first(kept)
        used = jnp.minimum(self.capacity, (kept.count + 1) // 2)
        rows = jnp.arange(self.capacity)
        weights = (rows < used).astype(states.z.dtype) / used
        wall = weighted_frame(states.z, weights, correlated=CORRELATED)
        frame = wall if self.choices.dense else weighted_frame(states.z, weights, dense=False)
        # The size of a fit is fixed: few states are repeated evenly, which any estimator can take.
        y = frame.to(states.z[rows * used // self.capacity])
        noise = jax.random.normal(jax.random.key(0), y.shape, y.dtype)
        y = y + jnp.sqrt(jnp.minimum(SMOOTHING * y.shape[1] / used, 1)) * noise
        fitted = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), self.estimator.fit(y))
        distance = jnp.where(rows < used, jnp.sum(wall.to(states.z) ** 2, 1), 0)
        radius = WALL_FACTOR * jnp.sqrt(jnp.max(distance))
        finite = frame.is_finite() & wall.is_finite()
        force = {WHOLE: Force(fitted, frame)}
        surrogate = Surrogate(force, frame, wall, radius, jnp.asarray(True))
        return surrogate, finite & (used >= self.needed)


def make_states(
    estimator: Any,
    num_warmup: int,
    shape: tuple[int, int],
    num_kept: int | None,
    choices: Choices,
) -> States:
    """Return how C chains of D dimensions learn from their states.

    Raises:
        ValueError: for fewer states than a fit needs.
    """
    num_chains, dimension = shape
    needed = max(10, 2 * dimension)
    if num_kept is not None and num_kept < needed:
        raise ValueError(
            f"`num_kept` must be at least max(10, 2 D) = {needed} to fit a score; got {num_kept}."
        )
    schedule = make_schedule(num_warmup, num_chains, dimension, 0)
    most = num_kept or DEFAULT_CAPACITY
    each = min(num_chains, max(1, most // MOST_SHARE))
    # The newer half of all states up to the last fit is used; what is more than fits is thinned.
    half = max(each * schedule.trials // 2, needed)
    every = max(1, half // most)

    def possible(i: int) -> bool:
        enough = each * (1 + (i - 1) // every) >= 2 * needed - 1
        # No fit after the trials: the step size and the choice of moves belong to the last force.
        return enough and i <= schedule.trials

    fits = tuple(filter(possible, schedule.fits))
    schedule = schedule._replace(fits=fits, small_fits=())
    return States(schedule, choices, estimator, min(most, half), needed, every, each)


def check_force(estimator: Any, evaluations: Evaluations | None) -> None:
    """Raise for what is no score estimator, and for evaluations, of which it makes no use."""
    if not callable(getattr(estimator, "fit", None)) or isinstance(estimator, type):
        raise ValueError(
            "`force` must be None or a score estimator such as `ip.score.Gaussian()`; got "
            f"{estimator!r}."
        )
    if evaluations is not None:
        raise ValueError(
            "`evaluations` hold values, from which `force` does not learn; give one or the other."
        )
