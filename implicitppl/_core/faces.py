"""Public classes say the package where users find them, whatever file they lie in."""

from typing import Any


def show_at(namespace: dict[str, Any]) -> None:
    """Make the package whose `globals()` these are the `__module__` of the classes it lists.

    What is stored or printed by name (pickles, the settings of a `LongMCMC` run, error texts) then
    does not change when a file moves.
    """
    face = namespace["__name__"]
    for name in namespace["__all__"]:
        if isinstance(namespace[name], type):
            namespace[name].__module__ = face
