"""What an estimator of scores is: anything with a `fit`."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array


@runtime_checkable
class Estimator(Protocol):
    """Anything with `fit(samples)` that gives a score function."""

    def fit(self, samples: Array, /) -> Callable[[Array], Array]:
        """Returns a function from points (..., D) to scores (..., D)."""
        ...
