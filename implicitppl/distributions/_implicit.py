"""A sampler as a NumPyro distribution: x = T(g(key, context)), with no density.

`g` is any reparameterised function: noise drawn from the key, pushed through parameters. `T` is
NumPyro's bijection onto `support` (the identity on the reals). Draws are differentiable with
respect to the parameters of `g`; log q(x) is not available, so `log_prob` raises. The gradient of
log q is estimated by the loss (`implicitppl.infer.ImplicitELBO`) from a set of draws.

Shapes: one call of the sampler makes one event, of shape `event_shape`; `context` holds arrays with
the leading dimensions `batch_shape`, one row for each element of the batch.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro.distributions import biject_to, constraints

from implicitppl.distributions._pytree import OrderedDistribution, split_callable

Shape = tuple[int, ...]


class ImplicitDensityError(NotImplementedError):
    """A log density was asked of a distribution that has none."""


def default_support(event_shape: Shape) -> constraints.Constraint:
    """Return the reals, with as many event dimensions as `event_shape` has."""
    if not event_shape:
        return constraints.real
    return constraints.independent(constraints.real, len(event_shape))


class Implicit(OrderedDistribution):
    """A distribution that is sampled by `sampler` and has no density.

    x = T(sampler(key, *context)), one key and one row of the context for each element.

    Args:
        sampler: `sampler(key, *context) -> array`, reparameterised: an `eqx.Module`, a
            `jax.tree_util.Partial(fn, parameters)`, or a plain function. A plain function may close
            over parameters; only the PyTree forms may then cross a `jit` boundary as arguments.
        event_shape: shape of one draw.
        context: a tuple of arrays with leading dimensions `batch_shape`, passed to the sampler
            element by element (the features of an amortised guide).
        batch_shape: shape of the batch of independent elements that the context describes.
        support: constraint of one event. The sampler's output is unconstrained and is pushed onto
            the support by `numpyro.distributions.biject_to`; scores are then estimated before the
            push and the Jacobian is exact. Default: real numbers.
        validate_args: as in NumPyro.

    Raises:
        ValueError: if one call of the sampler does not give floats of the event shape (before
            the bijection), or a context array lacks the batch dimensions. Found by abstract
            evaluation, before anything is compiled.
        ImplicitDensityError: by `log_prob`, always.

    Cost: a draw costs one call of the sampler; `sample_shape + batch_shape` are vectorised.

    The object may be an argument or a result of `jit`. Under `vmap`, map the sampling rather than
    the object: NumPyro does not promote the batch shape of a distribution that `vmap` returns.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.distributions import Implicit
        >>> def ring(key, radius):
        ...     angle = jax.random.uniform(key, maxval=2 * jnp.pi)
        ...     return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        >>> q = Implicit(ring, (2,), context=(jnp.array([1.0, 5.0]),), batch_shape=(2,))
        >>> draws = q.sample(jax.random.key(0), (3,))
        >>> draws.shape
        (3, 2, 2)
        >>> jnp.allclose(jnp.linalg.norm(draws, axis=-1), jnp.array([1.0, 5.0]), rtol=1e-5).item()
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    has_density = False
    data_names = ("_arrays", "_context")
    aux_names = ("_static", "_support")

    def __init__(
        self,
        sampler: Callable[..., Array],
        event_shape: Shape = (),
        *,
        context: tuple[PyTree[Array], ...] = (),
        batch_shape: Shape = (),
        support: constraints.Constraint | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not callable(sampler):
            raise ValueError(f"`sampler` must be a function of a key; got {sampler!r}.")
        self._arrays, self._static = split_callable(sampler)
        self._support = default_support(event_shape) if support is None else support
        self._context = tuple(jax.tree.map(jnp.asarray, row) for row in context)
        _check_context(self._context, batch_shape)
        transform = biject_to(self._support)
        expected = tuple(transform.inverse_shape(event_shape))
        _check_sampler(sampler, self._context, len(batch_shape), expected)
        super().__init__(tuple(batch_shape), tuple(event_shape), validate_args=validate_args)

    @property
    def sampler(self) -> Callable[..., Array]:
        """The sampler, with the arrays that it has now."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self) -> constraints.Constraint:
        """Constraint of one event."""
        return self._support

    @property
    def has_rsample(self) -> bool:
        """True: gradients pass through a draw."""
        return True

    def rsample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Array:
        """Return differentiable draws, as `sample` does."""
        return self.sample(key, sample_shape)

    def sample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Array:
        """Return draws of shape `sample_shape + batch_shape + event_shape`."""
        shape = (*sample_shape, *self.batch_shape)
        if not shape:
            return self._transform(self.sampler(key, *self._context))
        size = 1
        for length in shape:
            size *= length
        rows = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (*sample_shape, *jnp.shape(x))).reshape(
                size, *jnp.shape(x)[len(self.batch_shape) :]
            ),
            self._context,
        )
        draws = jax.vmap(self.sampler)(jax.random.split(key, size), *rows)
        return self._transform(draws.reshape(*shape, *draws.shape[1:]))

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> NoReturn:
        """Raise `ImplicitDensityError`: there is no density to return."""
        raise ImplicitDensityError(
            "An `Implicit` distribution has no density, so `log_prob` cannot be computed. "
            "In a guide, train with `implicitppl.infer.ImplicitELBO`, which estimates the score "
            "from the particles. NUTS, HMC, importance weights and observed sites need a density "
            "and cannot use an `Implicit` distribution."
        )

    def _transform(self, x: Array) -> Array:
        return biject_to(self._support)(x)


def _check_context(context: tuple[PyTree[Array], ...], batch_shape: Shape) -> None:
    for leaf in jax.tree.leaves(context):
        if tuple(jnp.shape(leaf)[: len(batch_shape)]) != tuple(batch_shape):
            raise ValueError(
                f"`context` arrays must lead with batch_shape {tuple(batch_shape)}; "
                f"got shape {tuple(jnp.shape(leaf))}."
            )


def _check_sampler(
    sampler: Callable[..., Array],
    context: tuple[PyTree[Array], ...],
    batch_ndim: int,
    expected: Shape,
) -> None:
    """Evaluates one call abstractly and compares it with the shape that is promised."""
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[batch_ndim:], jnp.result_type(x)), context
    )
    out = jax.eval_shape(sampler, jax.eval_shape(lambda: jax.random.key(0)), *rows)
    if not hasattr(out, "shape") or tuple(out.shape) != expected:
        shape = getattr(out, "shape", type(out).__name__)
        raise ValueError(f"`sampler` must return an array of shape {expected}; got {shape}.")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"`sampler` must return floats; got {out.dtype}.")
