"""A bound on the pull of a single particle, in units of the guide's own local scale.

At a semi-implicit draw z = loc + A m(e) the gradient of a particle's loss is
r = grad log q(z) - grad log p(z, y). In units of the noise, m'(e)^T A^T r, it is 0 where the guide
is right and of order 1 where it is off by its own width there. While the guide is far from right
it may be thousands, and one such particle, in one step, can push the map over a fold that it does
not come back from. The handler replaces r by r min(1, c sqrt(D) / |m'(e)^T A^T r|) on its way back
from z to the parameters. Where the guide is right nothing is clipped, so the optimum stays where it
is. (Units of the frame would not do: in the neck of a funnel every deviation is large in them, and
clipping there moves the optimum.) A gradient that is not finite stays so, because hiding it would
hide what is wrong with the model; `SVI.stable_update` leaves such a step out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro.primitives import Messenger

from implicitppl.distributions import SemiImplicit

LARGEST_GRADIENT = 20.0


class bounded_pull(Messenger):
    """Bounds what flows back into draws of semi-implicit sites.

    Args:
        fn: the guide.
        limit: largest norm of the gradient in noise units for each sqrt(D), of the loss as it is
            averaged: c divided by the number of particles.
    """

    def __init__(self, fn: Any = None, *, limit: float) -> None:
        self.limit = limit
        super().__init__(fn)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Wraps the value of a site that was just drawn."""
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if isinstance(msg["fn"], SemiImplicit) and msg["intermediates"]:
            held = jax.lax.stop_gradient(msg["fn"])
            behind = jax.lax.stop_gradient(msg["intermediates"])
            scale = 1.0 if msg["scale"] is None else msg["scale"]
            bound = self.limit * scale * held.event_shape[0] ** 0.5
            msg["value"] = _bounded(msg["value"], held, behind, jnp.asarray(bound))


@jax.custom_vjp
def _bounded(value: Array, held: SemiImplicit, behind: list[Array], bound: Array) -> Array:
    """Returns the value; its cotangent is shortened where it is long in units of the noise."""
    del held, behind, bound
    return value


def _forward(value: Array, *kept: Any) -> tuple[Array, tuple[Any, ...]]:
    return value, kept


def _backward(kept: tuple[Any, ...], pull: Array) -> tuple[Any, ...]:
    held, behind, bound = kept
    local = held.to_noise(behind, pull)
    largest = jnp.maximum(jnp.max(jnp.abs(local), axis=-1, keepdims=True), 1.0)
    length = largest * jnp.linalg.norm(local / largest, axis=-1, keepdims=True)
    factor = jnp.where(length > bound, bound / jnp.where(length > 0, length, 1.0), 1.0)
    return factor * pull, *jax.tree.map(jnp.zeros_like, (held, behind, bound))


_bounded.defvjp(_forward, _backward)


@jax.custom_vjp
def bounded_gradient(params: Any) -> Any:
    """Returns the parameters; their gradient is shortened to `LARGEST_GRADIENT`, all together.

    Close to a fold the gradient of the Jacobian has no bound, and a single step beyond the range of
    the floats would stop an optimiser that squares it for good.
    """
    return params


def _backward_params(_: None, pull: Any) -> tuple[Any]:
    flat = ravel_pytree(pull)[0]
    unit = jnp.maximum(jnp.max(jnp.abs(flat), initial=0.0), 1.0)  # so that squares stay finite
    length = unit * jnp.linalg.norm(flat / unit)
    factor = jnp.minimum(1.0, LARGEST_GRADIENT / jnp.where(length > 0, length, 1.0))
    return (jax.tree.map(lambda x: factor.astype(x.dtype) * x, pull),)


bounded_gradient.defvjp(lambda params: (params, None), _backward_params)
