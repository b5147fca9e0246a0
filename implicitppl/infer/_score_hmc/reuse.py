"""Evaluations of an earlier run, made to be of the target of this one.

Outputs of black boxes depend on their inputs alone, the potential on the data as well. So where the
outputs are known the potential of every row is computed anew, without calling a host, and rows
serve a model of other data. Where it cannot be computed it must be equal, and one row is tried.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl.infer._score_hmc.evaluations import (
    Evaluations,
    add,
    check_evaluations,
    filled,
)
from implicitppl.infer._score_hmc.noise import draw
from implicitppl.infer._score_hmc.problem import Evaluation, ModelProblem, Problem, WholeProblem

TOLERANCE = 1e-3


class Earlier(NamedTuple):
    """Evaluations of this target from an earlier run, N rows, the oldest first.

    Attributes:
        z: the points.
        evaluation: of each; None without rows.
        num_tried: evaluations of the target that were made to see that it is the same.
    """

    z: Float[Array, "N D"]
    evaluation: Evaluation | None
    num_tried: int


def earlier(
    evaluations: Evaluations | None,
    problem: Problem,
    start: Float[Array, "C D"],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Earlier:
    """Return the rows of an earlier run, if there are any, as evaluations of this target.

    Raises:
        ValueError: if they are of other opaque parts, other inputs to the black boxes, or of
            another potential.
    """
    if evaluations is None:
        return Earlier(start[:0], None, 0)
    check_evaluations(evaluations, start.shape[1], problem.structure(start[0]))
    with jax.ensure_compile_time_eval():  # chains in parallel are started under a transformation
        rows = filled(evaluations)
        failures = jnp.zeros((rows.z.shape[0], 3), jnp.int32)
        if isinstance(problem, WholeProblem):
            _try_best(rows, problem)
            same = Evaluation(rows.potential, rows.inputs, rows.outputs, failures)
            return Earlier(rows.z, same, 1)
        anew = _computed(rows, problem, args, kwargs)._replace(failures=failures)
        return Earlier(rows.z, anew, 0)


def add_all(evaluations: Evaluations, more: Earlier) -> Evaluations:
    """Return the evaluations with any number more, the oldest first."""
    capacity = evaluations.z.shape[0]
    for start in range(0, more.z.shape[0], capacity):
        part = slice(start, start + capacity)
        rows = jax.tree.map(lambda x, part=part: x[part], more.evaluation)
        evaluations = add(evaluations, more.z[part], rows)
    return evaluations


def _computed(
    rows: Evaluations, problem: ModelProblem, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Evaluation:
    """Return the evaluations that this model makes of the outputs of every row."""

    def again(z: Array, outputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return problem.again(z, outputs, args, kwargs)

    potential, inputs = jax.jit(jax.vmap(again))(rows.z, rows.outputs)
    for name, there in rows.inputs.items():
        close = TOLERANCE * (jnp.abs(there) + jnp.std(there, axis=0))
        if bool(jnp.any(jnp.abs(inputs[name] - there) > close + jnp.finfo(there.dtype).tiny)):
            raise ValueError(
                f"`evaluations` must be of this target; at their points black box {name!r} is "
                "given other inputs than it was. Only data that no box is given may be others."
            )
    if problem.boxes:
        return Evaluation(potential, inputs, rows.outputs, rows.number)
    outputs = dict.fromkeys(rows.outputs, potential[:, None])
    return Evaluation(potential, inputs, outputs, rows.number)


def _try_best(rows: Evaluations, problem: WholeProblem) -> None:
    """Raise if the potential at the row where it is lowest is another one."""
    best = int(jnp.argmin(rows.potential))
    key, old = jax.random.key(0), float(rows.potential[best])
    noise = jax.tree.map(lambda x: x[0], draw(key[None], problem.noise))
    new = float(problem.evaluate(rows.z[best], key, noise, (), {}).potential)
    if new != old and not abs(new - old) <= TOLERANCE * (1 + abs(old)):
        raise ValueError(
            f"`evaluations` must be of this target; at its best point the potential was "
            f"{old:.6g} and is {new:.6g}. Those of another potential cannot be used."
        )
