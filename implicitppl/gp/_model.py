"""The contract of every model with evidence: what `fit` asks of a process."""

from typing import Any, Protocol, runtime_checkable

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl.processes import AbstractGaussianProcess


@runtime_checkable
class EvidenceModel(Protocol):
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
        """Return log p(y), in nats, or a lower bound or an estimate of it."""
        ...

    def condition(
        self,
        x: Any,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> AbstractGaussianProcess:
        """Return the process given the observations, which is a Gaussian process in any case."""
        ...
