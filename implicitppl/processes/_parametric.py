"""Processes whose functions are made from finitely much randomness, drawn once.

    f(x) = g(x; e),   e ~ p(e)

`function(key)` draws e and returns f; everything else follows from it. The values at any points
are coherent by construction: one e for all of them, however many calls are made.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from implicitppl._core.points import as_points
from implicitppl.processes._function_values import FunctionValues
from implicitppl.processes._process import Process

Function = Callable[[Array], Array]


class FunctionDraws(eqx.Module):
    """S functions of a parametric process; `draws(x)` are their values at x, (S, N) or (S, N, P).

    A PyTree of the process and one key for each function: it may cross `jit`, and its values may
    be differentiated in the parameters of the process and in x.

    Cost of a call: drawing the randomness again, and evaluating S functions.
    """

    process: Any
    keys: Array

    def __call__(self, x: ArrayLike) -> Array:
        """Return the values of all functions at `x`, (N, D) or (N,)."""
        points = as_points("x", x)
        return jax.vmap(lambda key: jnp.asarray(self.process.function(key)(points)))(self.keys)


class ParametricProcess(Process):
    """A process of which one draw of finitely much randomness is a function.

    A subclass defines `function(key)`. Its values have no density (`FunctionValues`): in a guide
    or as a prior it needs `implicitppl.infer.FunctionalELBO`.
    """

    @property
    def has_weight_space(self) -> bool:
        """True: the key is the function."""
        return True

    @abstractmethod
    def function(self, key: PRNGKeyArray) -> Function:
        """Return one function of (N, D) points with values (N,) or (N, P).

        All randomness comes from `key`, here; the function itself is deterministic.
        """

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> FunctionDraws:
        """Return S functions; the same key gives the same functions.

        Args:
            key: random key.
            num_samples: S.

        Returns:
            A callable from points (N, D) or (N,) to values (S, N) or (S, N, P).
        """
        return FunctionDraws(self, jax.random.split(key, num_samples))

    def __call__(self, x: ArrayLike) -> FunctionValues:
        """Return the distribution of f(x), which has no density.

        Raises:
            ValueError: if `x` are not points, or the functions do not fit them.
        """
        return FunctionValues(self, as_points("x", x))
