"""The bank: the evaluations of the true target that are kept, to learn the opaque parts from.

Of fixed size, so that it can live in the state of a compiled loop. When it is full, evaluations far
above the lowest potential give way first, the farthest before others, and then the oldest.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicitppl.infer._score_hmc.problem import Evaluation


class Bank(NamedTuple):
    """Evaluations (N rows).

    Attributes:
        z: (N, D) unconstrained points.
        potential: (N,) the true potential there; infinite where it was not finite.
        inputs: (N, d) for each opaque part.
        outputs: (N, P) for each opaque part.
        number: (N,) the number of the evaluation in a row, from 1; 0 in an empty row.
        count: how many evaluations were ever added.

    In `mcmc.last_state.bank` of chains that learned alone (sequential, parallel) every field has an
    axis of chains in front. `save` and `ScoreHMC(bank=)` join their rows.
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
        return jnp.sum(self.number > 0, dtype=jnp.int32)

    def save(self, path: str | Path) -> None:
        """Write the filled rows to an .npz file."""
        rows = filled(self)
        arrays = {"z": rows.z, "potential": rows.potential}
        arrays |= {f"inputs/{k}": v for k, v in rows.inputs.items()}
        arrays |= {f"outputs/{k}": v for k, v in rows.outputs.items()}
        stored: Any = {k: np.asarray(v) for k, v in arrays.items()}
        np.savez(path, **stored)

    @classmethod
    def load(cls, path: str | Path) -> "Bank":
        """Read a bank that `save` wrote."""
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


def empty_bank(
    capacity: int, dimension: int, structure: dict[str, tuple[int, int]], dtype: jnp.dtype
) -> Bank:
    """Return a bank without rows, for the sizes of a problem's opaque parts."""
    zeros = jnp.zeros((capacity, dimension), dtype)
    inputs = {k: jnp.zeros((capacity, d), dtype) for k, (d, _) in structure.items()}
    outputs = {k: jnp.zeros((capacity, p), dtype) for k, (_, p) in structure.items()}
    potential = jnp.full((capacity,), jnp.inf, dtype)
    number = jnp.zeros((capacity,), jnp.int32)
    return Bank(zeros, potential, inputs, outputs, number, jnp.zeros((), jnp.int32))


def joined(bank: Bank) -> Bank:
    """Return the rows of all chains in one bank, those made at the same time side by side."""
    if bank.z.ndim == 2:
        return bank
    fields = bank._replace(count=bank.number)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), fields)
    order = jnp.argsort(rows.number)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    empty = jnp.sum(rows.number == 0)
    number = jnp.where(rows.number > 0, place + 1 - empty, 0).astype(bank.number.dtype)
    return rows._replace(number=number, count=jnp.max(number))


def check_bank(bank: Bank, dimension: int, structure: dict[str, tuple[int, int]]) -> None:
    """Raise where a bank is of another target.

    Raises:
        ValueError: for another dimension, other opaque parts, or other sizes of those.
    """
    bank = joined(bank)
    if bank.z.shape[1] != dimension:
        raise ValueError(
            f"`bank` must hold points of this target's {dimension} unconstrained numbers; they "
            f"have {bank.z.shape[1]}."
        )
    there = {k: (v.shape[1], bank.outputs[k].shape[1]) for k, v in bank.inputs.items()}
    if there != structure:
        raise ValueError(
            "`bank` must hold the opaque parts of this target, by name (inputs, outputs): "
            f"{structure}; got {there}."
        )


def usual_range(dimension: int) -> float:
    """Return how far a potential usually is above its minimum, at most.

    Under the target U - min U is about chi^2_D / 2: mean D/2, variance D/2. Four standard
    deviations above the mean, and 4 more.
    """
    return dimension / 2 + 4 * (dimension / 2) ** 0.5 + 4


def add(bank: Bank, z: Float[Array, "C D"], found: Evaluation) -> Bank:
    """Return the bank with C evaluations more, C at most N."""
    size = z.shape[0]
    lowest = jnp.minimum(jnp.min(bank.potential), jnp.min(found.potential))
    above = (bank.potential - lowest) / usual_range(bank.z.shape[1])
    above = jnp.where(jnp.isnan(above), 0, above)
    age = (bank.count - bank.number).astype(z.dtype) / (bank.count + 1)
    order = jnp.where(above > 3, 2 + above, age)
    order = jnp.where(bank.number == 0, jnp.inf, jnp.minimum(order, jnp.finfo(z.dtype).max))
    rows = jax.lax.top_k(order, size)[1]

    def put(old: Array, new: Array) -> Array:
        return old.at[rows].set(new.astype(old.dtype))

    return Bank(
        put(bank.z, z),
        put(bank.potential, found.potential),
        jax.tree.map(put, bank.inputs, found.inputs),
        jax.tree.map(put, bank.outputs, found.outputs),
        put(bank.number, bank.count + 1 + jnp.arange(size)),
        bank.count + size,
    )


def newest_first(bank: Bank) -> tuple[Bank, Bool[Array, " N"]]:
    """Return the bank with its newest row first, and which rows are filled."""
    order = jnp.argsort(-bank.number)
    rows = jax.tree.map(lambda x: x[order], bank._replace(count=bank.number))
    return rows._replace(count=bank.count), rows.number > 0


def filled(bank: Bank) -> Bank:
    """Return a bank of the filled rows only, oldest first; not under `jit`."""
    # With NumPy: step by step this would compile some twenty programs for every size.
    rows = jax.tree.map(np.asarray, joined(bank))
    size = int(np.sum(rows.number > 0))
    order = np.argsort(rows.number)[len(rows.number) - size :]
    kept = jax.tree.map(lambda x: jnp.asarray(x[order]), rows._replace(count=rows.number))
    return kept._replace(count=jnp.asarray(size, jnp.int32))
