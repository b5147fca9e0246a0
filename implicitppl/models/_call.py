"""A call of a NumPyro program: model or guide, what it is called with, values of its parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform

from implicitppl.models._sites import Site, discrete_latents

Trace = dict[str, Site]
T = TypeVar("T")


class Call(NamedTuple):
    """A NumPyro program with its arguments and the values of its parameters."""

    program: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}  # noqa: RUF012 - never changed
    params: Mapping[str, Any] = {}  # noqa: RUF012 - never changed

    def trace(self, key: PRNGKeyArray, values: Mapping[str, Any] | None = None) -> Trace:
        """Return a trace; sites named in `values` have these, others are drawn with `key`."""
        data = {**self.params, **(values or {})}
        return self.trace_of(handlers.seed(handlers.substitute(self.program, data=data), key))

    def replayed(
        self, key: PRNGKeyArray, earlier: Trace, values: Mapping[str, Any] | None = None
    ) -> Trace:
        """Return a trace whose latent sites have the values that they have in another one."""
        replayed = handlers.replay(handlers.seed(self.program, key), earlier)
        return self.trace_of(handlers.substitute(replayed, data={**self.params, **(values or {})}))

    def trace_of(self, program: Callable[..., Any]) -> Trace:
        """Return the trace of this program inside of handlers, called with these arguments."""
        return handlers.trace(program).get_trace(*self.args, **self.kwargs)


def look_at(call: Call, read: Callable[[Trace], T]) -> T:
    """Return what `read` finds in a trace that is made abstractly: nothing is computed.

    Latent sites hold starting values instead of draws, because flat priors cannot be drawn from.
    """
    found: list[T] = []

    def trace() -> None:
        with handlers.block():
            fixed = handlers.substitute(call.program, data=dict(call.params))
            seeded = handlers.seed(fixed, jax.random.key(0))
            started = handlers.substitute(seeded, substitute_fn=init_to_uniform())
            found.append(read(call.trace_of(started)))

    jax.eval_shape(trace)
    return found[-1]


def refuse_discrete(call: Call, remedy: str) -> None:
    """Raise `ValueError` for a model with discrete latent sites, which have no gradient."""
    found = look_at(call, discrete_latents)
    if found:
        raise ValueError(
            f"`model` must have continuous latent sites only; got discrete {found}. {remedy}"
        )
