"""Any sampler of function values as a process, and the check that it samples functions.

    f(x) = s(key, x)

Nothing is known about the sampler but that it can be called. Whether its values belong to one
function, whatever points are asked together, can only be tried.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.points import as_points
from implicitppl.processes._parametric import Function, ParametricProcess
from implicitppl.processes._process import Process


class ImplicitProcess(ParametricProcess):
    """The process that a sampler of function values defines.

    Args:
        sampler: `sampler(key, x)` returns the values of one function at points x (N, D), (N,) or
            (N, P): an `eqx.Module` (whose arrays are learned), a `jax.tree_util.Partial`, or a
            plain function.

    The same key must mean the same function. A sampler whose value at a point depends on which
    other points are asked (noise drawn with the shape of x, an average over x, a Cholesky factor
    of a Gram matrix) gives values of no function, and nothing notices; `check_coherent` does.

    Raises:
        ValueError: if `sampler` is not callable; when evaluated, if it does not return floats of
            shape (N,) or (N, P).

    Example:
        >>> import jax
        >>> from implicitppl.processes import ImplicitProcess, check_coherent
        >>> def line(key, x):
        ...     slope, intercept = jax.random.normal(key, (2,))
        ...     return slope * x[:, 0] + intercept
        >>> process = ImplicitProcess(line)
        >>> check_coherent(process, jax.numpy.arange(3.0), key=jax.random.key(0))
        >>> process.draw(jax.random.key(1), 5)(jax.numpy.arange(3.0)).shape
        (5, 3)
    """

    sampler: Callable[..., Array] | Any  # Any: the check below says more than a type checker

    def __check_init__(self) -> None:
        if not callable(self.sampler):
            raise ValueError(
                f"`sampler` must be a function of a key and points; got {self.sampler!r}."
            )

    def function(self, key: PRNGKeyArray) -> Function:
        """Return the function that the key means."""
        return partial(self.sampler, key)


def check_coherent(
    process: Process,
    x: ArrayLike,
    *,
    key: PRNGKeyArray,
    num_samples: int = 8,
    tolerance: float | None = None,
) -> None:
    """Raise unless draws keep their values at `x` when more points are asked along with them.

    Draws are evaluated at `x`, then at more points (between, around and beyond those of `x`) with
    `x` last and reversed; every function must give the values it gave before.

    Args:
        process: any process.
        x: (N, D) or (N,) points.
        key: random key, of the draws and of the additional points.
        num_samples: how many functions are tried.
        tolerance: largest difference allowed, relative to the largest value. Default the root of
            the machine epsilon: sums of many terms in another order pass, noise does not.

    Raises:
        ValueError: if a value differs (the message says by how much), or is not finite.

    Call it outside of `jit`: it compares numbers. Passing is no proof, since other points could
    be asked; failing is one.

    Cost: three evaluations of `num_samples` functions, at up to 2N + 1 points.

    Example:
        >>> import jax
        >>> from implicitppl.processes import ImplicitProcess, check_coherent
        >>> frayed = ImplicitProcess(lambda key, x: jax.random.normal(key, (len(x),)))
        >>> check_coherent(frayed, jax.numpy.arange(3.0), key=jax.random.key(0))
        Traceback (most recent call last):
        ...
        ValueError: values at shared points differ by up to ...
    """
    points = as_points("x", x)
    draw_key, point_key = jax.random.split(key)
    draws = process.draw(draw_key, num_samples)
    alone = np.asarray(draws(points))
    together = np.asarray(draws(jnp.concatenate([_others(point_key, points), points[::-1]])))
    shared = together[:, -points.shape[0] :][:, ::-1]
    difference = float(np.max(np.abs(shared - alone)))
    size = float(np.max(np.abs(alone)))
    if tolerance is None:
        tolerance = float(np.sqrt(np.finfo(alone.dtype).eps))
    if not difference <= tolerance * size:
        raise ValueError(
            f"values at shared points differ by up to {difference:.3g} (values are up to "
            f"{size:.3g}) when other points are asked along with them: "
            f"`{type(process).__name__}` does not draw functions. All randomness must come from "
            "the key alone, with shapes that do not depend on the points."
        )


def _others(key: PRNGKeyArray, points: Float[Array, "N D"]) -> Float[Array, "M D"]:
    """Return points among and around those given, one more than they are."""
    centre = jnp.mean(points, axis=0)
    spread = jnp.std(points, axis=0) + jnp.where(jnp.std(points, axis=0) > 0, 0, 1)
    noise = jax.random.normal(key, (points.shape[0] + 1, points.shape[1]), points.dtype)
    return centre + 1.5 * spread * noise
