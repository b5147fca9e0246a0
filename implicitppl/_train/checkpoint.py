"""Saving and restoring the state of a run with orbax, which writes atomically and keeps dtypes."""

from pathlib import Path
from typing import Any, TypeVar

import jax

State = TypeVar("State")


def save(folder: Path, step: int, state: object) -> None:
    """Writes the state under `folder/<step>`; a save that is cut off leaves no such folder."""
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute() / str(step), state, force=True)


def load_newest(folder: Path, like: State) -> State | None:
    """Return the newest state in the folder, or None if there is none.

    Args:
        folder: that `save` wrote to.
        like: a state of the same structure, shapes and dtypes; its leaves may be abstract.
    """
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        return None
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    with _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute() / str(max(steps)), template)


def _checkpointer() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "`checkpoint` needs orbax: pip install 'implicitppl[checkpoint]'"
        ) from error
    return ocp.StandardCheckpointer()
