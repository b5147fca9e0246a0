"""The values at finitely many points of a process that has no density, as a NumPyro distribution.

One draw is one function, evaluated at all points: `sample` is `process.draw(key)(x)`. The score of
these values is estimated by the loss from many draws, so `log_prob` raises.
"""

import math
from typing import Any, ClassVar, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import constraints

from implicitppl.distributions import ImplicitDensityError
from implicitppl.distributions._implicit import default_support
from implicitppl.distributions._pytree import OrderedDistribution, split_callable

Shape = tuple[int, ...]


class FunctionValues(OrderedDistribution):
    """Values of a function at N points, (N,) or (N, P), without a density; `process(x)` makes it.

    Attributes:
        process: whose values these are, with the arrays that it has now.
        x: (N, D), the points.

    Raises:
        ValueError: if a draw does not give floats of shape (N,) or (N, P). Found by abstract
            evaluation, before anything is compiled.
        ImplicitDensityError: by `log_prob`, always.

    The object may be an argument or a result of `jit`. Under `vmap`, map the sampling rather than
    the object: NumPyro does not promote the batch shape of a distribution that `vmap` returns.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    has_density = False
    data_names = ("_arrays", "x")
    aux_names = ("_static",)

    def __init__(
        self, process: Any, x: Float[Array, "N D"], *, validate_args: bool | None = None
    ) -> None:
        self._arrays, self._static = split_callable(process)
        self.x = x
        super().__init__((), _event_shape(process, x), validate_args=validate_args)

    @property
    def process(self) -> Any:
        """The process whose values these are."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self) -> constraints.Constraint:
        """The reals, (N,) or (N, P) of them."""
        return default_support(self.event_shape)

    @property
    def has_rsample(self) -> bool:
        """True: draws are differentiable in the parameters of the process."""
        return True

    def sample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Float[Array, "*S"]:
        """Return draws of shape `sample_shape + event_shape`, each of one function."""
        shape = tuple(sample_shape)
        draws = self.process.draw(key, math.prod(shape))(self.x)
        return draws.reshape(*shape, *self.event_shape)

    def rsample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Float[Array, "*S"]:
        """Return differentiable draws, as `sample` does."""
        return self.sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> NoReturn:
        """Raise `ImplicitDensityError`: there is no density to return."""
        raise ImplicitDensityError(
            f"the function values of a `{type(self.process).__name__}` have no density, so "
            "`log_prob` cannot be computed. Train with `implicitppl.infer.FunctionalELBO`, which "
            "estimates the score from draws. NUTS, HMC, importance weights and observed sites "
            "need a density and cannot use this process."
        )


def _event_shape(process: Any, x: Array) -> Shape:
    """Return the shape of one draw at x, found without computing it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    out = jax.eval_shape(lambda key: process.draw(key, 1)(x), key)
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) not in (2, 3) or shape[1] != x.shape[0]:
        found = type(out).__name__ if shape is None else shape[1:]
        raise ValueError(
            f"a function of `{type(process).__name__}` must return ({x.shape[0]},) or "
            f"({x.shape[0]}, P) values at {x.shape[0]} points; got {found}."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"a function of `{type(process).__name__}` must return floats; got {out.dtype}."
        )
    return tuple(shape[1:])
