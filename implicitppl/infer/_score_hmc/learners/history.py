"""Forces learned from where the chains have been: a score estimate in place of a regression.

The bank holds states of the chains instead of evaluations. Under the target they are draws of
exp(-U), so that the score of their distribution, as any estimator with `fit(samples)` finds it, is
the force -grad U:

    y = L^{-1} (x - m)   with m, L of the states used,   force(y) = s(y) = estimator.fit(y)(y).

No potential goes with it, so only single trajectories are made: their acceptance needs the change
of the kinetic energy and the true U alone, and is exact for any force that depends on the place.

Strathmann et al. (2015), Gradient-free Hamiltonian Monte Carlo with efficient kernel exponential
families; Shi, Sun, Zhu (2018), A spectral approach to gradient estimation for implicit
distributions (gradient-free HMC).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl._core.frames import Frame, weighted_frame
from implicitppl.infer._score_hmc.bank import Bank, empty_bank, newest_first
from implicitppl.infer._score_hmc.kinds import Adaptation
from implicitppl.infer._score_hmc.learners.surrogate import WALL_FACTOR, Surrogate
from implicitppl.infer._score_hmc.plan import Plan
from implicitppl.infer._score_hmc.problem import WHOLE

DEFAULT_CAPACITY = 500
# States of a chain are correlated: so many count as one, and noise of variance
# min(1, SMOOTHING D / M) widens directions in which they hardly differ, by chance.
CORRELATED, SMOOTHING = 8, 4.0
WALKING_SHARE, WARM_WALKS, TRIAL_WALKS, WALKS_IF_LOST = 0.3, 0.5, 0.25, 0.8
MOST_SHARE = 8  # at most this part of the bank is written in one iteration
TARGET_ACCEPT, DECAY = 0.65, 0.6
# A step this short in coordinates of unit covariance: it is the force that is wrong, not the
# integrator. The longest is that of the walkers under a regression.
FIRST_STEP, DOUBTFUL, SHORTEST, LONGEST = 0.5, 0.07, 0.05, 1.65


class Force(eqx.Module):
    """The potential 0 with the slope -s(y): a force without a potential, in the place of a fit.

    Attributes:
        fitted: the score in coordinates y.
        where: those coordinates.
    """

    fitted: Any
    where: Frame

    def __call__(self, z: Float[Array, " D"]) -> Float[Array, " 1"]:
        """Return 0; `jax.grad` of it is minus the score at z, 0 where that is not finite."""
        y = self.where.to(z)
        score = jax.lax.stop_gradient(self.fitted(y)).astype(y.dtype)
        score = jnp.where(jnp.all(jnp.isfinite(score)), score, 0)
        return -jnp.sum((y - jax.lax.stop_gradient(y)) * score, keepdims=True)


class History(NamedTuple):
    """How a force is learned from states; nothing in it changes.

    Attributes:
        estimator: of a score, by its `fit(samples)`.
        plan: of the warm-up; the estimator is fitted in its `fits`.
        capacity: M, how many states are kept.
        needed: how many are needed for a fit.
        every: iterations from one record of states to the next.
        each: how many chains, in turn, are in a record.
        dense: whether coordinates are rotated, or only scaled.
        step_size: given by the user, or None.
    """

    estimator: Any
    plan: Plan
    capacity: int
    needed: int
    every: int
    each: int
    dense: bool
    step_size: float | None

    def empty(self, start: Float[Array, "C D"]) -> Bank:
        """Return a bank without states."""
        return empty_bank(self.capacity, start.shape[1], {}, start.dtype)

    def unfitted(self, start: Float[Array, "C D"]) -> Surrogate:
        """Return a surrogate of the right shapes around the start, without a force."""
        shape = jax.eval_shape(lambda b: _fit(self, b)[0], self.empty(start))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
        identity = jnp.eye(start.shape[1], dtype=start.dtype)
        where = Frame(jnp.mean(start, axis=0), identity, identity)
        infinite = jnp.asarray(jnp.inf, start.dtype)
        return Surrogate(zeros.fits, where, where, infinite, jnp.asarray(False))

    def learn(
        self, i: Int[Array, ""], bank: Bank, surrogate: Surrogate, adaptation: Adaptation
    ) -> tuple[Surrogate, Adaptation]:
        """Return the surrogate with a new force, and a step size to begin with, where it is due.

        Where there are not enough states, or the fit failed, all stays as it was.
        """

        def anew() -> tuple[Surrogate, Adaptation]:
            found, enough = _fit(self, bank)
            first = ~surrogate.fitted
            scale = jnp.where(first, 2.38 / bank.z.shape[1] ** 0.5, adaptation.walk_scale)
            step = FIRST_STEP if self.step_size is None else self.step_size
            begun = adaptation._replace(
                step_size=jnp.full_like(adaptation.step_size, step),
                walk_scale=scale.astype(adaptation.walk_scale.dtype),
            )
            pairs = (found, begun), (surrogate, adaptation)
            return jax.tree.map(lambda new, old: jnp.where(enough, new, old), *pairs)

        if not self.plan.fits:
            return surrogate, adaptation
        due = jnp.any(i == jnp.asarray(self.plan.fits))
        return jax.lax.cond(due, anew, lambda: (surrogate, adaptation))

    def exploring(
        self, i: Int[Array, ""], safe: float, dtype: jnp.dtype
    ) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
        """Return probabilities of the kinds of moves before the trials, and in them.

        A force that was learned in a part of the target keeps chains there. So adaptive random
        walks come first (Haario et al. 2001), and are half of the moves until the trials.
        """
        equal = jnp.ones(kinds.NUM_MOVES, dtype)
        early = i < WALKING_SHARE * self.plan.num_warmup
        walks = jnp.where(early, 1, max(safe, WARM_WALKS)).astype(dtype)
        return kinds.single(equal, walks), kinds.single(equal, jnp.asarray(TRIAL_WALKS, dtype))

    def decided(
        self, probabilities: Float[Array, " K"], adaptation: Adaptation
    ) -> Float[Array, " K"]:
        """Return the probabilities with which moves are made after warm-up.

        A very short step tells that the force is wrong where the chains are; random walks get the
        share that they have where they jump farther than trajectories.
        """
        lost = (adaptation.step_size < DOUBTFUL) & (self.step_size is None)
        walks = jnp.maximum(probabilities[0], jnp.where(lost, WALKS_IF_LOST, 0))
        return kinds.single(probabilities, walks)

    def record(
        self, i: Int[Array, ""], bank: Bank, z: Float[Array, "C D"], potential: Float[Array, " C"]
    ) -> Bank:
        """Return the bank with those of the states that it does not hold, in place of the oldest.

        A chain that stays adds nothing: one that is stuck would fill the bank with one point. Of
        many chains some take their turn.
        """

        def put() -> Bank:
            first = (i // self.every) * self.each
            turn = (first + jnp.arange(self.each)) % z.shape[0]
            known = jnp.all(bank.z[None] == z[turn][:, None], axis=2) & (bank.number > 0)
            fresh = ~jnp.any(known, axis=1)
            number = bank.count + jnp.cumsum(fresh, dtype=jnp.int32)
            rows = jnp.where(fresh, (number - 1) % self.capacity, self.capacity)
            return bank._replace(
                z=bank.z.at[rows].set(z[turn], mode="drop"),
                potential=bank.potential.at[rows].set(potential[turn], mode="drop"),
                number=bank.number.at[rows].set(number, mode="drop"),
                count=number[-1],
            )

        due = (i % self.every == 0) & (i < self.plan.trials)
        return jax.lax.cond(due, put, lambda: bank)

    def adapted(
        self, i: Int[Array, ""], kind: Int[Array, ""], accept: Array, adaptation: Adaptation
    ) -> Adaptation:
        """Return the step size after a move (Robbins, Monro): gains begin anew with each fit."""
        if self.step_size is not None or not self.plan.fits:
            return adaptation
        fits = jnp.asarray(self.plan.fits)
        since = i - jnp.max(jnp.where(fits <= i, fits, 0))
        gain = 1 / (1 + since.astype(accept.dtype)) ** DECAY
        log_step = jnp.log(adaptation.step_size) + gain * (jnp.mean(accept) - TARGET_ACCEPT)
        step = jnp.clip(jnp.exp(log_step), SHORTEST, LONGEST)
        learning = (kind > 0) & (i < self.plan.num_warmup)
        return adaptation._replace(step_size=jnp.where(learning, step, adaptation.step_size))


def make_history(
    estimator: Any,
    plan: Plan,
    shape: tuple[int, int],
    capacity: int | None,
    dense: bool,
    step_size: float | None,
) -> History:
    """Return how chains learn from their states, for the schedule of a warm-up.

    Raises:
        ValueError: for a capacity that is below what a fit needs.
    """
    num_chains, dimension = shape
    needed = max(10, 2 * dimension)
    if capacity is not None and capacity < needed:
        raise ValueError(
            f"`bank_size` must be at least max(10, 2 D) = {needed} to fit a score; got {capacity}."
        )
    most = capacity or DEFAULT_CAPACITY
    each = min(num_chains, max(1, most // MOST_SHARE))
    # The newer half of all states up to the last fit is used; what is more than fits is thinned.
    half = max(each * plan.trials // 2, needed)
    every = max(1, half // most)

    def possible(i: int) -> bool:
        enough = each * (1 + (i - 1) // every) >= 2 * needed - 1
        # No fit after the trials: the step size and the choice of moves belong to the last force.
        return enough and i <= plan.trials

    plan = plan._replace(fits=tuple(filter(possible, plan.fits)), small_fits=())
    return History(estimator, plan, min(most, half), needed, every, each, dense, step_size)


def check_estimator(estimator: Any, bank: Bank | None) -> None:
    """Raise for what is no score estimator, and for evaluations, of which it makes no use."""
    if not callable(getattr(estimator, "fit", None)) or isinstance(estimator, type):
        raise ValueError(
            "`surrogate` must be None or a score estimator such as `ip.score.Gaussian()`; got "
            f"{estimator!r}."
        )
    if bank is not None:
        raise ValueError(
            "`bank` holds evaluations, from which `surrogate` does not learn; give one or the "
            "other."
        )


def _fit(history: History, bank: Bank) -> tuple[Surrogate, Bool[Array, ""]]:
    """Return a surrogate of the newer half of all states, and whether there were enough."""
    states, _ = newest_first(bank)
    used = jnp.minimum(history.capacity, (bank.count + 1) // 2)
    rows = jnp.arange(history.capacity)
    weights = (rows < used).astype(states.z.dtype) / used
    wall = weighted_frame(states.z, weights, correlated=CORRELATED)
    where = wall if history.dense else weighted_frame(states.z, weights, dense=False)
    # The size of a fit is fixed: few states are repeated evenly, which any estimator can take.
    y = where.to(states.z[rows * used // history.capacity])
    noise = jax.random.normal(jax.random.key(0), y.shape, y.dtype)
    y = y + jnp.sqrt(jnp.minimum(SMOOTHING * y.shape[1] / used, 1)) * noise
    fitted = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), history.estimator.fit(y))
    distance = jnp.sqrt(jnp.max(jnp.where(rows < used, jnp.sum(wall.to(states.z) ** 2, 1), 0)))
    finite = where.is_finite() & wall.is_finite()
    force = Force(fitted, where)
    surrogate = Surrogate({WHOLE: force}, where, wall, WALL_FACTOR * distance, jnp.asarray(True))
    return surrogate, finite & (used >= history.needed)
