"""The files of a long MCMC run, such that a kill at any time leaves a run that can go on.

    run.json              what the run is: its settings, written at the start
    draws-0000000100.npz  what the draws from number 100 on kept, one file for each block
    state.npz             the newest state, the iteration, and how many draws go with it

Every file is written beside its place and then moved there. Draws go first: a file of draws that
the state does not count yet is written again, so the cost of a save does not grow with the run.
NumPy's format is used because it is one file, and because it is read without running code from it.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from implicitppl.infer._long.blocks import raw
from implicitppl.infer._long.settings import UNKNOWN, differences, other_version

SETTINGS, STATE, FORMAT = "run.json", "state.npz", 1


class Store:
    """A folder that holds one run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        for name, word in self._settings.items():
            if str(word).endswith(UNKNOWN):
                raise ValueError(
                    f"`checkpoint` must tell this run from another; {name} is a {word}, since it "
                    "cannot be pickled. Pass arrays, numbers or picklable objects."
                )

    def found(self) -> bool:
        """Whether the folder holds a state of this run; raises if it holds another run."""
        path = self.folder / SETTINGS
        if not path.exists():
            return False
        there = json.loads(path.read_text())
        if other_version(there, self._settings):
            package = str(there["kernel"]).partition(".")[0]
            raise ValueError(
                f"`checkpoint` must be a folder without a run or with one of this version; the run "
                f"in {self.folder} was stored by another version of {package}, whose states this "
                "one cannot read. Finish it with the version that began it, or give another folder "
                "to start anew."
            )
        wrong = differences(there, self._settings)
        if wrong:
            raise ValueError(
                f"`checkpoint` must be a folder without a run or with this one; {self.folder} "
                f"holds another: {'; '.join(wrong)}. Give another folder, or the settings "
                "of that run to go on with it, or delete the folder to start anew."
            )
        return (self.folder / STATE).exists()

    def begin(self) -> None:
        """Write the settings of a new run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STATE).unlink(missing_ok=True)
        text = json.dumps(self._settings, indent=1)
        _write(self.folder / SETTINGS, lambda file: file.write(text.encode()))

    def save(self, iteration: int, num_draws: int, state: Any, first: int, kept: Any) -> None:
        """Write the draws of a block, if there are any, and then the state."""
        if kept is not None:
            _write(self._draws_file(first), lambda file: np.savez(file, *jax.tree.leaves(kept)))
        leaves = [np.asarray(raw(x)) for x in jax.tree.leaves(state)]
        counts = {"iteration": iteration, "num_draws": num_draws}
        _write(self.folder / STATE, lambda file: np.savez(file, *leaves, **counts))  # type: ignore[arg-type]

    def load_state(self, like: Any, key: jax.Array) -> tuple[int, int, Any]:
        """The iteration, the number of draws, and the state.

        Args:
            like: shapes and types of the state.
            key: any key of the run; keys in the state are of its kind.
        """
        with np.load(self.folder / STATE) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
            counts = int(file["iteration"]), int(file["num_draws"])
        flat, treedef = jax.tree_util.tree_flatten_with_path(like)
        shapes = [x.shape for x in arrays]
        expected = [_stored_shape(y, key) for _, y in flat]
        if shapes != expected:
            wrong = [
                f"{jax.tree_util.keystr(path)} has shape {x} there, {y} here"
                for (path, _), x, y in zip(flat, shapes, expected, strict=False)
                if x != y
            ] or ["it has other fields"]
            raise ValueError(
                f"`checkpoint` must hold a state of this kernel and model; that in {self.folder} "
                f"is another: {wrong[0]}. Give another folder, or delete it to start anew."
            )
        restored = [_restored(x, y, key) for x, (_, y) in zip(arrays, flat, strict=True)]
        return *counts, jax.tree.unflatten(treedef, restored)

    def load_draws(self, num_draws: int, like: Any, write: Callable[[int, Any], None]) -> None:
        """Hand the blocks of the first `num_draws` draws to `write`, with their first number."""
        leaves, treedef = jax.tree.flatten(like)
        first = 0
        while first < num_draws:
            with np.load(self._draws_file(first)) as file:
                arrays = [_typed(file[f"arr_{i}"], x.dtype) for i, x in enumerate(leaves)]
            write(first, jax.tree.unflatten(treedef, arrays))
            first += arrays[0].shape[1]

    def _draws_file(self, first: int) -> Path:
        return self.folder / f"draws-{first:010d}.npz"


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _typed(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array; types that NumPy's format does not know, such as bfloat16, come back as bytes."""
    return array.view(dtype) if array.dtype.kind == "V" else array


def _stored_shape(like: Any, key: jax.Array) -> tuple[int, ...]:
    """The shape in the file: keys are stored as their numbers."""
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    own = jax.random.key_data(key).shape[key.ndim :] if is_key else ()
    return (*like.shape, *own)


def _restored(array: np.ndarray, like: Any, key: jax.Array) -> jax.Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(key))
    return jnp.asarray(_typed(array, like.dtype))
