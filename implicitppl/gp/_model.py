"""The contract of every model with evidence: what `fit` asks of a process."""

from typing import Any, Protocol, runtime_checkable

from jax.typing import ArrayLike
from jaxtyping import Array, Float


@runtime_checkable
class HasEvidence(Protocol):
    """A model of functions that says how probable observations are under it."""

    def check_data(self, x: Any, y: ArrayLike, observed: ArrayLike | None) -> tuple[Any, Any, Any]:
        """Return inputs, outputs and mask as arrays, or raise `ValueError`."""
        ...

    def log_evidence(
        self,
        x: Any,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """Return log p(y), or a lower bound of it."""
        ...
