"""A NumPyro model as a prior over functions.

    def model(x):
        slope = numpyro.sample("slope", dist.Normal())
        return slope * x[:, 0]

One key seeds all its sites, so one key is one function, provided that no site depends on the
points.
"""

from collections.abc import Callable
from typing import Any

import numpyro
from jaxtyping import Array, PRNGKeyArray

from implicitppl.processes._parametric import Function, ParametricProcess


class ModelProcess(ParametricProcess):
    """The functions that a NumPyro model returns; `from_model` makes it.

    Attributes:
        model: `model(x)` returns (N,) or (N, P) values at points (N, D).
    """

    model: Callable[..., Array]

    def function(self, key: PRNGKeyArray) -> Function:
        """Return the function of the model whose sites are seeded with `key`."""

        def values(x: Array) -> Array:
            # Blocked: in another model, the sites of this one are not that model's.
            with numpyro.handlers.block():
                sites = numpyro.handlers.trace(numpyro.handlers.seed(self.model, key))
                out = sites(x)
            _check_sites(sites.trace)
            return out

        return values


def from_model(model: Callable[..., Any] | Any) -> ModelProcess:
    """Return the process of a NumPyro model `model(x) -> f(x)`.

    Args:
        model: takes points (N, D) and returns the values of f at them, (N,) or (N, P). Its sites
            are the randomness of the function and must not depend on the points: noise for each
            point, or a plate over them, gives values of no function (`check_coherent` finds it).

    Returns:
        A process without a density: sites are integrated out only by drawing them. Discrete
        sites are allowed.

    Raises:
        ValueError: if `model` is not callable; when evaluated, if a site is observed (a prior has
            seen no data) or is a `numpyro.param` (give its value, or make the process a module).

    Example:
        >>> import jax, numpyro
        >>> import numpyro.distributions as dist
        >>> from implicitppl.processes import from_model
        >>> def decay(x):
        ...     rate = numpyro.sample("rate", dist.Exponential(1.0))
        ...     return jax.numpy.exp(-rate * x[:, 0])
        >>> from_model(decay).draw(jax.random.key(0), 5)(jax.numpy.arange(3.0)).shape
        (5, 3)
    """
    if not callable(model):
        raise ValueError(f"`model` must be a function of points; got {model!r}.")
    return ModelProcess(model)


def _check_sites(trace: dict[str, Any]) -> None:
    for name, site in trace.items():
        if site["type"] == "sample" and site.get("is_observed"):
            raise ValueError(
                f"site `{name}` of the model is observed: a prior over functions has seen no data. "
                "Put the likelihood into the model that uses the process."
            )
        if site["type"] == "param":
            raise ValueError(
                f"site `{name}` of the model is a parameter, which would not be learned: give its "
                "value, or make the model an Equinox module and register it with `eqx_module`."
            )
