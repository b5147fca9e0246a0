"""Functions with several outputs that are independent a priori: event (N, P).

    f(x) = (f_1(x), ..., f_P(x)),   log p(f) = sum_p log p_p(f_p)

where all of the processes have a density; without one otherwise.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution, constraints

from implicitppl._core.points import as_points
from implicitppl.distributions._pytree import OrderedDistribution, split_callable
from implicitppl.processes._function_values import FunctionValues
from implicitppl.processes._gaussian.base import AbstractGaussianProcess
from implicitppl.processes._process import Process

Shape = tuple[int, ...]


class StackedDraws(eqx.Module):
    """Functions whose outputs are functions drawn from independent processes."""

    draws: tuple[Any, ...]

    def __call__(self, x: ArrayLike) -> Float[Array, "S N P"]:
        """Return the values of all functions at `x`, (N, D) or (N,)."""
        values = [draws(x) for draws in self.draws]
        return jnp.concatenate([v[..., None] if v.ndim == 2 else v for v in values], axis=-1)


class MultiOutput(Process):
    """A function of which each output is drawn from a process of its own.

    Args:
        processes: one for each output; one that has P outputs itself takes P places, and a stack
            of them stands for its parts.

    Where all are Gaussian, values have a density, the sum over outputs; otherwise none.

    Raises:
        ValueError: if there are no processes, or something else is among them.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> from implicitppl.processes import stack
        >>> classes = stack([GaussianProcess(RBF()) for _ in range(3)])
        >>> classes(jnp.arange(5.0)).event_shape
        (5, 3)
    """

    processes: tuple[Process, ...]

    def __init__(self, processes: Sequence[Process | Any]):
        given = tuple(processes)
        if not given:
            raise ValueError("`processes` must hold at least one process; got none.")
        for process in given:
            if not isinstance(process, Process):
                raise ValueError(f"`processes` must be processes; got {process!r}.")
        parts = (p.processes if isinstance(p, MultiOutput) else (p,) for p in given)
        self.processes = tuple(itertools.chain.from_iterable(parts))

    @property
    def has_weight_space(self) -> bool:
        """Whether all processes have one."""
        return all(process.has_weight_space for process in self.processes)

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> StackedDraws:
        """Return S functions; every output has a key of its own."""
        keys = jax.random.split(key, len(self.processes))
        parts = zip(self.processes, keys, strict=True)
        return StackedDraws(tuple(process.draw(k, num_samples) for process, k in parts))

    def __call__(self, x: ArrayLike) -> Distribution:
        """Return the distribution of f(x), (N, P), with a density where all outputs have one."""
        points = as_points("x", x)
        gaussian = all(isinstance(part, AbstractGaussianProcess) for part in self.processes)
        values = StackedValues if gaussian else FunctionValues
        return values(self, points)


def stack(processes: Sequence[Process | Any]) -> MultiOutput:
    """Return the process of functions whose outputs are drawn from independent processes."""
    return MultiOutput(processes)


class StackedValues(OrderedDistribution):
    """Values (N, P) of independent Gaussian processes at N points, with their density.

    Attributes:
        process: the `MultiOutput`, with the arrays that it has now.
        x: (N, D), the points.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    support = constraints.independent(constraints.real, 2)
    data_names = ("_arrays", "x")
    aux_names = ("_static",)

    def __init__(
        self, process: MultiOutput, x: Float[Array, "N D"], *, validate_args: bool | None = None
    ) -> None:
        self._arrays, self._static = split_callable(process)
        self.x = x
        shape = (x.shape[0], len(process.processes))
        super().__init__((), shape, validate_args=validate_args)

    @property
    def process(self) -> MultiOutput:
        """The process whose values these are."""
        return eqx.combine(self._arrays, self._static)

    @property
    def has_rsample(self) -> bool:
        """True: draws are differentiable in the parameters of the processes."""
        return True

    @property
    def mean(self) -> Float[Array, "N P"]:
        """The mean at every point."""
        return jnp.stack([part.mean for part in self._parts()], axis=-1)

    @property
    def variance(self) -> Float[Array, "N P"]:
        """The variance at every point."""
        return jnp.stack([part.variance for part in self._parts()], axis=-1)

    def sample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Float[Array, "*S N P"]:
        """Return draws of shape `sample_shape + (N, P)`."""
        shape = tuple(sample_shape)
        keys = jax.random.split(key, len(self.process.processes))
        values = [
            part.sample(k, (math.prod(shape),)) for part, k in zip(self._parts(), keys, strict=True)
        ]
        return jnp.stack(values, axis=-1).reshape(*shape, *self.event_shape)

    def rsample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Float[Array, "*S N P"]:
        """Return differentiable draws, as `sample` does."""
        return self.sample(key, sample_shape)

    def log_prob(
        self, value: ArrayLike, intermediates: list[Any] | None = None
    ) -> Float[Array, "*S"]:
        """Return the log density of values (..., N, P)."""
        value = jnp.asarray(value)
        if value.shape[-2:] != self.event_shape:
            raise ValueError(f"`value` must end in {self.event_shape}; got shape {value.shape}.")
        densities = [part.log_prob(value[..., p]) for p, part in enumerate(self._parts())]
        return jnp.sum(jnp.stack(densities), axis=0)

    def _parts(self) -> list[Any]:
        return [process(self.x) for process in self.process.processes]
