"""The evaluations of the true target that are kept, to learn the opaque parts from.

Their number is fixed, so that they can live in the state of a compiled loop. When all rows are
filled, evaluations far above the lowest potential give way first, the farthest before others, and
then the oldest.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicitppl.infer._score_hmc.problem import Evaluation


class Evaluations(NamedTuple):
    """Evaluations of the true target (N rows).

    Attributes:
        z: (N, D) unconstrained points.
        potential: (N,) the true potential there; infinite where it was not finite.
        inputs: (N, d) for each opaque part.
        outputs: (N, P) for each opaque part.
        number: (N,) the number of the evaluation in a row, from 1; 0 in an empty row.
        count: how many evaluations were ever added.

    In `mcmc.last_state.evaluations` of chains that learned alone (sequential, parallel) every field
    has an axis of chains in front. `save` and `ScoreHMC(evaluations=)` join their rows.
    """

    z: Float[Array, "N D"]
    potential: Float[Array, " N"]
    inputs: dict[str, Float[Array, "N d"]]
    outputs: dict[str, Float[Array, "N P"]]
    number: Int[Array, " N"]
    count: Int[Array, ""]  # type: ignore[assignment]  # a tuple has a method of this name

    @property
    def size(self) -> Int[Array, ""]:
        """How many rows are filled."""
        return jnp.sum(self.is_filled, dtype=jnp.int32)

    @property
    def is_filled(self) -> Bool[Array, " N"]:
        """Which rows are."""
        return jnp.asarray(self.number) > 0

    @property
    def slack(self) -> Float[Array, " N"]:
        """How far each evaluation is from the region that matters, infinite where unknown.

        0 up to the usual range above the lowest potential, then in units of that range.
        """
        known = self.is_filled & jnp.isfinite(self.potential)
        lowest = jnp.min(jnp.where(known, self.potential, jnp.inf))
        above = jnp.where(known, self.potential - lowest, jnp.inf)
        return jnp.maximum(above / usual_range(self.z.shape[1]) - 1, 0)

    def save(self, path: str | Path) -> None:
        """Write the filled rows to an .npz file."""
        rows = filled(self)
        arrays = {"z": rows.z, "potential": rows.potential}
        arrays |= {f"inputs/{k}": v for k, v in rows.inputs.items()}
        arrays |= {f"outputs/{k}": v for k, v in rows.outputs.items()}
        stored: Any = {k: np.asarray(v) for k, v in arrays.items()}
        np.savez(path, **stored)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluations":
        """Return the evaluations that `save` wrote."""
        with np.load(path) as stored:
            parts = {
                group: {
                    k.removeprefix(group + "/"): jnp.asarray(stored[k])
                    for k in stored.files
                    if k.startswith(group + "/")
                }
                for group in ("inputs", "outputs")
            }
            z, potential = jnp.asarray(stored["z"]), jnp.asarray(stored["potential"])
        number = jnp.arange(1, z.shape[0] + 1, dtype=jnp.int32)
        return cls(z, potential, parts["inputs"], parts["outputs"], number, number[-1])


def empty_evaluations(
    capacity: int, dimension: int, structure: dict[str, tuple[int, int]], dtype: jnp.dtype
) -> Evaluations:
    """Return room for `capacity` evaluations, for the sizes of a problem's opaque parts."""
    zeros = jnp.zeros((capacity, dimension), dtype)
    inputs = {k: jnp.zeros((capacity, d), dtype) for k, (d, _) in structure.items()}
    outputs = {k: jnp.zeros((capacity, p), dtype) for k, (_, p) in structure.items()}
    potential = jnp.full((capacity,), jnp.inf, dtype)
    number = jnp.zeros((capacity,), jnp.int32)
    return Evaluations(zeros, potential, inputs, outputs, number, jnp.zeros((), jnp.int32))


def joined(evaluations: Evaluations) -> Evaluations:
    """Return the rows of all chains as one, those made at the same time side by side."""
    if evaluations.z.ndim == 2:
        return evaluations
    fields = evaluations._replace(count=evaluations.number)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), fields)
    order = jnp.argsort(rows.number)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    empty = jnp.sum(rows.number == 0)
    number = jnp.where(rows.number > 0, place + 1 - empty, 0).astype(evaluations.number.dtype)
    return rows._replace(number=number, count=jnp.max(number))


def check_evaluations(
    evaluations: Evaluations, dimension: int, structure: dict[str, tuple[int, int]]
) -> None:
    """Raise where evaluations are of another target.

    Raises:
        ValueError: for another dimension, other opaque parts, or other sizes of those.
    """
    rows = joined(evaluations)
    if rows.z.shape[1] != dimension:
        raise ValueError(
            f"`evaluations` must hold points of this target's {dimension} unconstrained numbers; "
            f"they have {rows.z.shape[1]}."
        )
    there = {k: (v.shape[1], rows.outputs[k].shape[1]) for k, v in rows.inputs.items()}
    if there != structure:
        raise ValueError(
            "`evaluations` must hold the opaque parts of this target, by name (inputs, outputs): "
            f"{structure}; got {there}."
        )


def usual_range(dimension: int) -> float:
    """Return how far a potential usually is above its minimum, at most.

    Under the target U - min U is about chi^2_D / 2: mean D/2, variance D/2. Four standard
    deviations above the mean, and 4 more.
    """
    return dimension / 2 + 4 * (dimension / 2) ** 0.5 + 4


def add(evaluations: Evaluations, z: Float[Array, "C D"], new: Evaluation) -> Evaluations:
    """Return the evaluations with C more, C at most N."""
    size = z.shape[0]
    lowest = jnp.minimum(jnp.min(evaluations.potential), jnp.min(new.potential))
    above = (evaluations.potential - lowest) / usual_range(evaluations.z.shape[1])
    above = jnp.where(jnp.isnan(above), 0, above)
    age = (evaluations.count - evaluations.number).astype(z.dtype) / (evaluations.count + 1)
    order = jnp.where(above > 3, 2 + above, age)
    order = jnp.where(evaluations.number == 0, jnp.inf, jnp.minimum(order, jnp.finfo(z.dtype).max))
    rows = jax.lax.top_k(order, size)[1]

    def put(old: Array, values: Array) -> Array:
        return old.at[rows].set(values.astype(old.dtype))

    return Evaluations(
        put(evaluations.z, z),
        put(evaluations.potential, new.potential),
        jax.tree.map(put, evaluations.inputs, new.inputs),
        jax.tree.map(put, evaluations.outputs, new.outputs),
        put(evaluations.number, evaluations.count + 1 + jnp.arange(size)),
        evaluations.count + size,
    )


def newest_first(evaluations: Evaluations) -> Evaluations:
    """Return the evaluations, the newest first."""
    order = jnp.argsort(-evaluations.number)
    rows = jax.tree.map(lambda x: x[order], evaluations._replace(count=evaluations.number))
    return rows._replace(count=evaluations.count)


def filled(evaluations: Evaluations) -> Evaluations:
    """Return the filled rows only, oldest first; not under `jit`."""
    # With NumPy: step by step this would compile some twenty programs for every size.
    rows = jax.tree.map(np.asarray, joined(evaluations))
    size = int(np.sum(rows.number > 0))
    order = np.argsort(rows.number)[len(rows.number) - size :]
    kept = jax.tree.map(lambda x: jnp.asarray(x[order]), rows._replace(count=rows.number))
    return kept._replace(count=jnp.asarray(size, jnp.int32))
