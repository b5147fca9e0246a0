"""A bank of an earlier run, made to hold evaluations of the target of this one.

Outputs of black boxes depend on their inputs alone, the potential on the data as well. So where the
outputs are known the potential of every row is computed anew, without calling a host, and a bank
serves a model of other data. Where it cannot be computed it must be equal, and one row is tried.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl.infer._score_hmc.bank import Bank, add, filled
from implicitppl.infer._score_hmc.noise import draw
from implicitppl.infer._score_hmc.problem import Evaluation, ModelProblem, Problem, WholeProblem

TOLERANCE = 1e-3


def reused(
    bank: Bank, problem: Problem, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Float[Array, "N D"], Evaluation, int]:
    """Return the rows of a bank as evaluations of this target, and how many it took to see that.

    Raises:
        ValueError: if the bank is of other inputs to the black boxes, or of another potential.
    """
    with jax.ensure_compile_time_eval():  # chains in parallel are started under a transformation
        rows = filled(bank)
        failures = jnp.zeros((rows.z.shape[0], 3), jnp.int32)
        if isinstance(problem, WholeProblem):
            _try_best(rows, problem)
            found = Evaluation(rows.potential, rows.inputs, rows.outputs, failures)
            return rows.z, found, 1
        return rows.z, _computed(rows, problem, args, kwargs)._replace(failures=failures), 0


def add_all(bank: Bank, z: Float[Array, "N D"], found: Evaluation) -> Bank:
    """Return the bank with any number of evaluations more, the oldest first."""
    capacity = bank.z.shape[0]
    for start in range(0, z.shape[0], capacity):
        part = slice(start, start + capacity)
        bank = add(bank, z[part], jax.tree.map(lambda x, part=part: x[part], found))
    return bank


def _computed(
    rows: Bank, problem: ModelProblem, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Evaluation:
    """Return the evaluations that this model makes of the outputs of every row."""

    def again(z: Array, outputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return problem.again(z, outputs, args, kwargs)

    potential, inputs = jax.jit(jax.vmap(again))(rows.z, rows.outputs)
    for name, there in rows.inputs.items():
        close = TOLERANCE * (jnp.abs(there) + jnp.std(there, axis=0))
        if bool(jnp.any(jnp.abs(inputs[name] - there) > close + jnp.finfo(there.dtype).tiny)):
            raise ValueError(
                f"`bank` must hold evaluations of this target; at its points black box {name!r} is "
                "given other inputs than it was. Only data that no box is given may be others."
            )
    if problem.boxes:
        return Evaluation(potential, inputs, rows.outputs, rows.number)
    outputs = dict.fromkeys(rows.outputs, potential[:, None])
    return Evaluation(potential, inputs, outputs, rows.number)


def _try_best(rows: Bank, problem: WholeProblem) -> None:
    """Raise if the potential at the row where it is lowest is another one."""
    best = int(jnp.argmin(rows.potential))
    key, old = jax.random.key(0), float(rows.potential[best])
    noise = jax.tree.map(lambda x: x[0], draw(key[None], problem.noise))
    new = float(problem.evaluate(rows.z[best], key, noise, (), {}).potential)
    if new != old and not abs(new - old) <= TOLERANCE * (1 + abs(old)):
        raise ValueError(
            f"`bank` must hold evaluations of this target; at its best point the potential was "
            f"{old:.6g} and is {new:.6g}. Banks of another potential cannot be used."
        )
