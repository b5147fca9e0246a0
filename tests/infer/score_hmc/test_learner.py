"""What every learner of a force keeps: the shapes of what is known, and probabilities of moves."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import implicitppl as ip
from implicitppl.infer._score_hmc import kinds
from implicitppl.infer._score_hmc.learners.learner import Choices, Learned, Learner, Visit
from implicitppl.infer._score_hmc.learners.states import States, make_states
from implicitppl.infer._score_hmc.learners.values import Values, make_values
from implicitppl.infer._score_hmc.problem import Model, WholeProblem
from implicitppl.infer._score_hmc.reuse import earlier
from implicitppl.infer._score_hmc.schedule import Phase
from implicitppl.infer._score_hmc.start import Start

SHAPE, WARMUP = (2, 3), 60
PROBLEM = WholeProblem(lambda z: 0.5 * jnp.sum(z**2), lambda z: z)
MODEL = Model(PROBLEM, (), {})
LEARNERS: dict[str, Learner] = {
    "values": make_values(WARMUP, SHAPE, 0, None, Choices(safe=0.1)),
    "states": make_states(ip.score.Gaussian(), WARMUP, SHAPE, None, Choices(safe=0.1)),
}
DTYPE = jnp.dtype(jnp.float32)


def begun(learner: Learner, z: Array) -> Learned:
    keys = jax.random.split(jax.random.key(0), SHAPE[0])
    evaluation = jax.vmap(lambda z, key: MODEL.evaluate(z, key, {}))(z, keys)
    start = Start(z, {}, evaluation, jnp.ones(SHAPE[:1], jnp.int32))
    return learner.begin(start, earlier(None, PROBLEM, z, (), {}), PROBLEM)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_known_keeps_its_shape(name: str) -> None:
    # It is carried by a compiled loop; nothing is computed here.
    learner = LEARNERS[name]

    def once(z: Array, i: Array, learned: Learned) -> Learned:
        no = jnp.asarray(False)
        learned = learner.learn(jax.random.key(1), Phase(i, no, no), MODEL, learned)
        evaluation = jax.vmap(lambda z: MODEL.evaluate(z, jax.random.key(2), {}))(z)
        visit = Visit(z, evaluation, z, evaluation.potential)
        evaluations = learner.record(i, learned.evaluations, visit)
        accept = evaluation.potential
        adaptation = learner.adapted(i, jnp.asarray(1), accept, z, learned.adaptation, WARMUP)
        return learned._replace(adaptation=adaptation, evaluations=evaluations)

    z, i = jax.ShapeDtypeStruct(SHAPE, DTYPE), jax.ShapeDtypeStruct((), jnp.int32)
    first: Any = jax.eval_shape(lambda z: begun(learner, z), z)
    after: Any = jax.eval_shape(once, z, i, first)
    structures: list[Any] = [jax.tree.structure(after), jax.tree.structure(first)]
    assert structures[0] == structures[1]
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(first), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("name", LEARNERS)
def test_moves_have_probabilities_and_all_phases_have_walks(name: str) -> None:
    learner = LEARNERS[name]
    adaptation = kinds.initial(SHAPE[1], DTYPE)
    rows = [jax.jit(lambda i: learner.exploring(i, DTYPE))(i) for i in (0, 30, WARMUP - 1)]
    for p in (*rows, jax.jit(learner.decided)(adaptation)):
        np.testing.assert_allclose(np.sum(p), 1, rtol=1e-6)
        assert np.all(p >= 0)
        assert p[kinds.WALK] >= 0.1


@pytest.mark.parametrize("learner", [Values, States])
def test_learners_override_what_is_abstract_and_nothing_else(learner: type[Learner]) -> None:
    concrete = {
        name
        for name, value in vars(Learner).items()
        if inspect.isfunction(value) and not name.startswith("_")
    } - Learner.__abstractmethods__
    assert concrete == {"adapted"}
    assert not concrete & set(vars(learner))
    assert not inspect.isabstract(learner)
