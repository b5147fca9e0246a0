"""One loop that learns parameters: optimiser steps in one scan, and the best point that was met.

A step whose loss or result is not finite is taken back: the next point is half way to the best one,
and the optimiser forgets that step. The best point is the one of the smallest loss; where the loss
is of random batches, of the smallest loss on what was held out, which is looked at now and then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class Descent(NamedTuple):
    """Where a descent led; points are PyTrees like its start.

    Attributes:
        best: the point of the smallest loss, or held-out loss.
        best_loss: that loss; what was to be beaten, where no point has a smaller one.
        last: the point after the last step.
        losses: (num_steps,) before every step, or (num_steps / every,) held-out ones.
        num_skipped: steps that were taken back.
    """

    best: Any
    best_loss: Float[Array, ""]
    last: Any
    losses: Float[Array, " n"]
    num_skipped: Int[Array, ""]


class HeldOut(NamedTuple):
    """What points are judged by, in place of the loss that is descended.

    Attributes:
        loss: function of a point.
        every: steps between two looks; divides their number.
        to_beat: the loss of doing nothing; a point that does not beat it is not kept.
    """

    loss: Callable[[Any], Float[Array, ""]]
    every: int
    to_beat: Float[Array, ""]


class _State(NamedTuple):
    point: Any
    optimiser: Any
    best: Any
    best_loss: Float[Array, ""]
    num_skipped: Int[Array, ""]


def descend(
    loss: Callable[..., Float[Array, ""]],
    start: Any,
    optimiser: optax.GradientTransformation,
    num_steps: int,
    *,
    keys: Array | None = None,
    held_out: HeldOut | None = None,
) -> Descent:
    """Return where `num_steps` steps of an optimiser lead; called inside `jit`.

    Args:
        loss: function of a point, and of a key where there are `keys`.
        start: PyTree of inexact arrays.
        optimiser: any of optax, line searches too.
        num_steps: how many.
        keys: (num_steps,) one for each step, for a loss of random batches.
        held_out: how points are judged; None for the loss itself.

    Cost that of `num_steps` gradients, and of the looks at the held-out loss.
    """
    optimiser = optax.with_extra_args_support(optimiser)

    def step(state: _State, key: Array | None) -> tuple[_State, Float[Array, ""]]:
        def objective(point: Any) -> Float[Array, ""]:
            return loss(point) if key is None else loss(point, key)

        value, slope = eqx.filter_value_and_grad(objective)(state.point)
        # optax promotes its integer step count, which the caller may have forbidden.
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimiser.update(
                slope, state.optimiser, state.point, value=value, grad=slope, value_fn=objective
            )
        moved = optax.apply_updates(state.point, updates)
        good = jnp.isfinite(value) & _none_nan(moved)
        back = jax.tree.map(lambda a, b: 0.5 * (a + b), state.point, state.best)
        following = state._replace(
            point=_choose(good, moved, back),
            optimiser=_choose(good, memory, state.optimiser),
            num_skipped=state.num_skipped + (~good).astype(jnp.int32),
        )
        if held_out is None:
            following = _keep_best(following, state.point, jnp.where(good, value, jnp.nan))
        return following, value

    def look(state: _State, some: Array | None) -> tuple[_State, Float[Array, ""]]:
        assert held_out is not None
        state, _ = jax.lax.scan(step, state, some, held_out.every)
        value = held_out.loss(state.point)
        return _keep_best(state, state.point, value), value

    memory, none = optimiser.init(start), jnp.zeros((), jnp.int32)
    if held_out is None:
        first = jax.eval_shape(loss, start, *([] if keys is None else [keys[0]]))
        state = _State(start, memory, start, jnp.asarray(jnp.inf, first.dtype), none)
        state, losses = jax.lax.scan(step, state, keys, num_steps)
        if keys is None:
            state = _keep_best(state, state.point, loss(state.point))
    else:
        num_looks = num_steps // held_out.every
        shaped = None if keys is None else keys.reshape(num_looks, held_out.every, *keys.shape[1:])
        state = _State(start, memory, start, held_out.to_beat, none)
        state, losses = jax.lax.scan(look, state, shaped, num_looks)
    return Descent(state.best, state.best_loss, state.point, losses, state.num_skipped)


def _keep_best(state: _State, point: Any, value: Float[Array, ""]) -> _State:
    """Return the state with a point in it as the best one, if its loss is smaller."""
    better = value < state.best_loss  # False for NaN
    return state._replace(
        best=_choose(better, point, state.best),
        best_loss=jnp.where(better, value, state.best_loss),
    )


def _choose(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _none_nan(tree: Any) -> Bool[Array, ""]:
    # Infinities may stay: the logarithm of a parameter that is 0 is one.
    return ~jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(tree)]))
