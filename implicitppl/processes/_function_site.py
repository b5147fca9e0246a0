"""One function of a model or guide, asked at several sets of points.

Two `numpyro.sample` sites of one process are two independent functions. `function(name, process)`
is one: for a Gaussian process each call is a site given the values of the calls before,

    p(f(x_1), f(x_2)) = p(f(x_1)) p(f(x_2) | f(x_1)),

and for a process with a weight space each call uses the same key.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.points import as_points
from implicitppl.processes._gaussian.base import AbstractGaussianProcess
from implicitppl.processes._process import Process


class SharedFunction:
    """A function in one run of a model or guide; `function` makes it.

    Each call makes a site: `name`, then `name_1`, `name_2`, ...
    """

    def __init__(self, name: str, process: Process) -> None:
        self._name = name
        self._process = process
        self._num_sites = 0
        gaussian = isinstance(process, AbstractGaussianProcess)
        self._key = None if gaussian else numpyro.prng_key()
        self._known: tuple[Array, Array] | None = None

    def __call__(self, x: ArrayLike) -> Float[Array, "N *P"]:
        """Return the values of the function at `x`, (N, D) or (N,)."""
        points = as_points("x", x)
        if not isinstance(self._process, AbstractGaussianProcess):
            return self._site(self._process, points)
        if self._known is None:
            self._known = points, self._site(self._process, points)
            return self._known[1]
        x, values = self._known
        place = _place_of_each(x, points)
        new = points if place is None else points[place >= x.shape[0]]
        if new.shape[0]:
            new_values = self._site(self._process.given(x, values), new)
            self._known = jnp.concatenate([x, new]), jnp.concatenate([values, new_values])
            if place is None:
                return new_values
        return self._known[1][place]

    def _site(self, process: Process, points: Array) -> Array:
        name = f"{self._name}_{self._num_sites}" if self._num_sites else self._name
        self._num_sites += 1
        values = numpyro.sample(
            name, process(points), rng_key=self._key, infer={"function": self._name}
        )
        if isinstance(process, AbstractGaussianProcess) and values.ndim != 1:
            raise ValueError(
                f"function `{self._name}` lies in a plate, where it would be several functions: "
                "make it outside."
            )
        return values


def function(name: str, process: Process | Any) -> SharedFunction:
    """Return one function of a process, to be called at points inside a NumPyro model or guide.

    Args:
        name: of the first site; later calls make `name_1`, `name_2`, ... Each carries
            `infer={"function": name}`, by which a loss knows sites of one function.
        process: a Gaussian process, or one whose key determines the function
            (`process.has_weight_space`).

    Returns:
        `f`, with `f(x)` of shape (N,) or (N, P). Model and guide must make the same calls.

    Sites of a Gaussian process have exact densities given those before: `Trace_ELBO` and NUTS are
    right. Points that were asked before make no new site where their values are known while
    tracing; where they are traced, ask each point once, since a repeated value has no density.
    The other processes have no density, and need `implicitppl.infer.FunctionalELBO`.

    Raises:
        ValueError: if `process` is no process, or neither Gaussian nor with a weight space (a
            sum or stack with a Gaussian process in it: make a function of each part).

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> from implicitppl.processes import function
        >>> def model():
        ...     f = function("f", GaussianProcess(RBF()))
        ...     return f(jnp.arange(3.0)), f(jnp.array([0.5]))
        >>> list(numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace())
        ['f', 'f_1']
    """
    if not isinstance(process, Process):
        raise ValueError(f"`process` must be a process of `implicitppl.processes`; got {process!r}")
    if not isinstance(process, AbstractGaussianProcess) and not process.has_weight_space:
        raise ValueError(
            f"`process` ({type(process).__name__}) holds a Gaussian process without a weight "
            "space, so a key does not determine its functions: make a function of each part."
        )
    return SharedFunction(name, process)


def _place_of_each(old: Array, new: Array) -> np.ndarray | None:
    """Return where each new point is among the old ones and the new ones that are not among them.

    None if that cannot be known, the points being traced.
    """
    if isinstance(old, jax.core.Tracer) or isinstance(new, jax.core.Tracer):
        return None
    equal = np.all(np.asarray(new)[:, None] == np.asarray(old)[None], axis=-1)
    is_new = ~equal.any(axis=1)
    return np.where(is_new, old.shape[0] + np.cumsum(is_new) - 1, equal.argmax(axis=1))
