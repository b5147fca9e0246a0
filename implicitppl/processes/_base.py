"""A distribution over functions, of which NumPyro sees the values at finitely many points."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution


class Process(eqx.Module):
    """A distribution over functions: `process(x)` is the NumPyro distribution of f(x)."""

    @abstractmethod
    def __call__(self, x: ArrayLike, *args: Any, **kwargs: Any) -> Distribution:
        """Return the distribution of the function's values at `x`."""

    def sample(self, key: PRNGKeyArray, x: ArrayLike, num_samples: int = 1) -> Float[Array, "S N"]:
        """Return values of `num_samples` functions at `x`, (S, N)."""
        return self(x).sample(key, (num_samples,))
