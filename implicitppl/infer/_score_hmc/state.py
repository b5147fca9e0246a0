"""The state that NumPyro sees, made of parts, with and without an axis for chains."""

from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicitppl.infer._score_hmc.chains import Estimate, Report
from implicitppl.infer._score_hmc.learners.learner import Learned
from implicitppl.infer._score_hmc.noise import new_meter
from implicitppl.infer._score_hmc.start import Start


class Counts(NamedTuple):
    """What is counted over the iterations of each chain.

    Attributes:
        num_evaluations: of the true target, so far.
        num_failures: (3,) of them by exception, NaN, time-out (with `on_failure="reject"`).
        mean_accept_prob: over the warm-up or the sampling so far.
    """

    num_evaluations: Int[Array, "..."]
    num_failures: Int[Array, "... 3"]
    mean_accept_prob: Float[Array, "..."]

    def after(self, i: Int[Array, ""], num_warmup: int, report: Report) -> "Counts":
        """Return the counts after iteration i; the mean begins anew with the sampling."""
        accept = report.accept_prob
        number = jnp.where(i < num_warmup, i + 1, i + 1 - num_warmup).astype(accept.dtype)
        mean = jnp.where(i == num_warmup, 0, self.mean_accept_prob)
        return Counts(
            self.num_evaluations + 1,
            self.num_failures + report.failures,
            mean + (accept - mean) / number,
        )


class _Parts(NamedTuple):
    """The parts of a state."""

    i: Array
    z: Any
    estimate: Estimate
    report: Report
    counts: Counts
    learned: Learned
    rng_key: Array


class ScoreHMCState(_Parts):
    """State of `ScoreHMC`; all but `i` and `learned` has a chain axis in vectorized chains.

    A run collects parts (`extra_fields=("report",)`), their fields (`"report.move"`) and what is
    listed here beside them; fields of `learned` are collected from chains that learn alone.

    Attributes:
        i: iteration, warm-up included.
        z: unconstrained values by site; with black boxes, also their outputs at this point.
        estimate: what each chain keeps of the target at `z`.
        report: what the last iteration reports.
        counts: over all iterations.
        learned: by all chains together; fixed after warm-up.
        rng_key: one key for each chain.
        potential_energy: the true potential at `z`, as it was when `z` was accepted.
        accept_prob: of the last proposal.
        mean_accept_prob: over the warm-up or the sampling so far.
        diverging: whether the last trajectory diverged.
        num_steps: leapfrog steps of the last proposal; they cost no evaluation.
        integration_error: change of the surrogate's energy along the last trajectory; NaN, as the
            next two, where a score estimator gives the force.
        surrogate_error: change of (true minus surrogate potential) from the point to the proposal.
        surrogate_gap: true minus surrogate potential at `z`; NaN before the first fit.
        evaluation_distance: from `z` to the nearest of `evaluations`, in coordinates in which the
            target has about unit covariance; NaN in warm-up.
        move: kind of the last move, an index of `ScoreHMC.moves`.
        num_evaluations: of the true target by this chain, so far.
        num_failures: evaluations that failed by exception, NaN, time-out (with
            `on_failure="reject"`).
        noise: of random boxes at `z`, by name.
        noise_variance: of the true potential over repeated evaluations at one point, for random
            boxes; NaN until the end of warm-up, and for targets that are not random.
        noise_meter: what `noise_variance` is made of.
        num_kept: how many evaluations are kept to learn from.
        step_size: of the leapfrog integrator.
        adaptation: what warm-up learned beside the surrogate.
        surrogate: fitted functions and coordinates.
        evaluations: of the target, or states of the chains where a score estimator gives the force.
    """

    __slots__ = ()

    potential_energy = property(attrgetter("estimate.potential"))
    noise = property(attrgetter("estimate.noise"))
    noise_meter = property(attrgetter("estimate.meter"))
    noise_variance = property(attrgetter("estimate.meter.variance"))
    accept_prob = property(attrgetter("report.accept_prob"))
    diverging = property(attrgetter("report.diverging"))
    num_steps = property(attrgetter("report.num_steps"))
    integration_error = property(attrgetter("report.integration_error"))
    surrogate_error = property(attrgetter("report.surrogate_error"))
    surrogate_gap = property(attrgetter("report.surrogate_gap"))
    evaluation_distance = property(attrgetter("report.evaluation_distance"))
    move = property(attrgetter("report.move"))
    step_size = property(attrgetter("report.step_size"))
    num_kept = property(attrgetter("report.num_kept"))
    num_evaluations = property(attrgetter("counts.num_evaluations"))
    num_failures = property(attrgetter("counts.num_failures"))
    mean_accept_prob = property(attrgetter("counts.mean_accept_prob"))
    surrogate = property(attrgetter("learned.surrogate"))
    adaptation = property(attrgetter("learned.adaptation"))
    evaluations = property(attrgetter("learned.evaluations"))


def first_state(
    start: Start, num_tried: int, z: Any, learned: Learned, rng_key: Array
) -> ScoreHMCState:
    """Return the state before the first iteration, with nothing to report.

    Args:
        start: of the chains.
        num_tried: evaluations beside those of the start; they count for the first chain.
        z: values by site at the start, as NumPyro sees them.
        learned: before the first iteration.
        rng_key: one key for each chain.
    """
    evaluation = start.evaluation
    meter = new_meter(start.z.shape[0], start.z.dtype)
    estimate = Estimate(evaluation.potential, start.noise, meter)
    zero = jnp.zeros_like(evaluation.potential)
    num_evaluations = start.num_evaluations.at[0].add(num_tried)
    counts = Counts(num_evaluations, evaluation.failures, zero)
    count, unknown = zero.astype(jnp.int32), zero * jnp.nan
    report = Report(
        accept_prob=zero,
        diverging=zero > 0,
        num_steps=count,
        integration_error=zero,
        surrogate_error=zero,
        surrogate_gap=unknown,
        evaluation_distance=unknown,
        move=count,
        failures=evaluation.failures,
        step_size=zero + learned.adaptation.step_size,
        num_kept=count + learned.evaluations.size,
    )
    return ScoreHMCState(jnp.array(0), z, estimate, report, counts, learned, rng_key)


def without_chain_axis(state: ScoreHMCState) -> ScoreHMCState:
    """Return the state of the only chain, without an axis for chains."""
    return _of_chains(lambda x: x[0], state)


def with_chain_axis(state: ScoreHMCState) -> ScoreHMCState:
    """Return the state of one chain with an axis for chains."""
    return _of_chains(lambda x: x[None], state)


def _of_chains(fn: Any, state: ScoreHMCState) -> ScoreHMCState:
    """Return the state with a function applied to all that belongs to a chain."""
    own = {k: v for k, v in state._asdict().items() if k not in ("i", "learned")}
    return state._replace(**jax.tree.map(fn, own))


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
