"""One iteration for chains that learn together: fit, move, evaluate once, accept."""

import jax
from jaxtyping import Array, Int

from implicitppl.infer._score_hmc.chains import Chains, Options, Report
from implicitppl.infer._score_hmc.outcome import acceptance, learned_from, moved_to, report_of
from implicitppl.infer._score_hmc.problem import Model
from implicitppl.infer._score_hmc.propose import choose, keys_of, query_of
from implicitppl.infer._score_hmc.warmup import phase_of, rescue


def step(
    chain_keys: Array, i: Int[Array, ""], chains: Chains, model: Model, options: Options
) -> tuple[Chains, Report]:
    """Return the chains after iteration `i`, with one evaluation of the target for each."""
    keys, learner = keys_of(chain_keys), options.learner
    phase = phase_of(i, chains.learned.evaluations, learner.schedule)
    chains = chains._replace(learned=learner.learn(keys.fit, phase, model, chains.learned))
    chains = rescue(keys.rescue, i, chains, learner.schedule)
    move = choose(keys, i, chains, options)
    query = query_of(keys, phase, move, chains, model, options)
    evaluation = jax.vmap(model.evaluate)(query.z, keys.evaluate, query.noise)
    potential = chains.estimate.potential
    accept = acceptance(phase, query, evaluation, potential, options)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (), accept.dtype))(keys.accept)
    after = moved_to(draws < accept, query, evaluation, chains)
    learned = learned_from(i, accept, query, evaluation, after, options)
    after = after._replace(learned=learned)
    report = report_of(i, accept, query, evaluation, chains, after, model, options)
    return after, report
