"""What comes of an evaluation: whether it is accepted, what it teaches, what is reported."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicitppl.infer._score_hmc.chains import Chains, Options, Report
from implicitppl.infer._score_hmc.learners.learner import Learned, Visit
from implicitppl.infer._score_hmc.moves import accept_probability
from implicitppl.infer._score_hmc.noise import measured
from implicitppl.infer._score_hmc.problem import Evaluation, Model
from implicitppl.infer._score_hmc.propose import Query
from implicitppl.infer._score_hmc.schedule import Phase


def acceptance(
    phase: Phase,
    query: Query,
    evaluation: Evaluation,
    potential: Float[Array, " C"],
    options: Options,
) -> Float[Array, " C"]:
    """Return with which probability chains of the given potentials go to the points evaluated."""
    move, finite = query.move, jnp.isfinite(evaluation.potential)
    accept = jax.vmap(accept_probability)(query.proposal, potential, evaluation.potential)
    accept = jnp.where(query.usable & finite, accept, 0)
    # On the way down whatever is more probable is taken.
    eager = jnp.exp(jnp.minimum(potential - evaluation.potential, 0))
    eager = jnp.where(query.usable & finite, eager, 0)
    accept = jnp.where(move.hot | move.to_design, 0, accept)
    accept = jnp.where(options.learner.eager(phase), jnp.maximum(accept, eager), accept)
    return jnp.where(move.stays, move.refresh & finite, accept)


def moved_to(
    taken: Bool[Array, " C"], query: Query, evaluation: Evaluation, chains: Chains
) -> Chains:
    """Return the chains where they were, or at the points evaluated where those are taken."""
    old = chains.estimate

    def pick(new: Array, old: Array) -> Array:
        return jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    meter = measured(old.meter, evaluation.potential)
    estimate = old._replace(
        potential=pick(evaluation.potential, old.potential),
        noise={k: pick(query.noise[k], u) for k, u in old.noise.items()},
        meter=jax.tree.map(lambda a, b: jnp.where(query.move.measuring, a, b), meter, old.meter),
    )
    outputs = {k: pick(evaluation.outputs[k], x) for k, x in chains.outputs.items()}
    return chains._replace(z=pick(query.z, chains.z), outputs=outputs, estimate=estimate)


def learned_from(
    i: Int[Array, ""],
    accept: Float[Array, " C"],
    query: Query,
    evaluation: Evaluation,
    chains: Chains,
    options: Options,
) -> Learned:
    """Return what the chains know after they have moved; nothing new after warm-up."""
    learner, learned, move = options.learner, chains.learned, query.move
    schedule = learner.schedule
    end = schedule.measuring if options.random else schedule.num_warmup
    adapted = learner.adapted(i, move.kind, accept, query.jump, learned.adaptation, end)
    kept = jax.tree.map(
        lambda old, new: jnp.where(move.refresh, old, new), learned.adaptation, adapted
    )
    visit = Visit(query.z, evaluation, chains.z, chains.estimate.potential)
    evaluations = learner.record(i, learned.evaluations, visit)
    return learned._replace(adaptation=kept, evaluations=evaluations)


def report_of(
    i: Int[Array, ""],
    accept: Float[Array, " C"],
    query: Query,
    evaluation: Evaluation,
    before: Chains,
    after: Chains,
    model: Model,
    options: Options,
) -> Report:
    """Return what an iteration reports."""
    learner, learned = options.learner, after.learned
    move, proposal = query.move, query.proposal
    fitted = learned.surrogate.fitted
    error = evaluation.potential - before.estimate.potential - proposal.surrogate_change
    compared = fitted & query.usable & ~move.to_design & ~move.stays
    approximate = jax.vmap(lambda z: learned.surrogate.potential(model, z))(after.z)
    gap = jnp.where(fitted, after.estimate.potential - approximate, jnp.nan)
    zero = jnp.zeros_like(accept)
    return Report(
        accept_prob=accept,
        diverging=proposal.diverging,
        num_steps=proposal.num_steps,
        integration_error=learner.judged(proposal.integration_error),
        surrogate_error=learner.judged(jnp.where(compared, error, jnp.nan)),
        surrogate_gap=learner.judged(gap),
        evaluation_distance=_distance(i, after, learner.schedule.num_warmup),
        move=jnp.broadcast_to(move.kind, accept.shape).astype(jnp.int32),
        failures=evaluation.failures,
        step_size=zero + learned.adaptation.step_size,
        num_kept=zero.astype(jnp.int32) + learned.evaluations.size,
    )


def _distance(i: Int[Array, ""], chains: Chains, num_warmup: int) -> Float[Array, " C"]:
    """Return how far the nearest evaluation is from each chain; NaN in warm-up."""
    frame, evaluations = chains.learned.surrogate.frame, chains.learned.evaluations

    def nearest() -> Array:
        empty = jnp.where(evaluations.is_filled, 0, jnp.inf)
        rows = frame.to(evaluations.z)

        def one(y: Array) -> Array:
            return jnp.sqrt(jnp.min(jnp.sum((rows - y) ** 2, axis=1) + empty))

        return jax.vmap(one)(frame.to(chains.z)).astype(chains.z.dtype)

    unknown = jnp.full(chains.z.shape[:1], jnp.nan, chains.z.dtype)
    return jax.lax.cond(i >= num_warmup, nearest, lambda: unknown)
