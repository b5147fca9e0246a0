"""One loop of optimiser steps: the best point is kept, and bad steps are taken back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicitppl._train.descent import Descent, HeldOut, descend

START = {"a": jnp.array([3.0, -2.0]), "b": jnp.array(1.0)}
run: Any = jax.jit(descend, static_argnums=(0, 2, 3))


def _square(point: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum(point["a"] ** 2) + point["b"] ** 2


def test_plain_steps_are_those_of_the_optimiser() -> None:
    found = run(_square, START, optax.sgd(0.1), 5)
    np.testing.assert_allclose(found.last["a"], START["a"] * 0.8**5, rtol=1e-6)
    np.testing.assert_allclose(found.losses, 14.0 * 0.64 ** np.arange(5), rtol=1e-6)
    np.testing.assert_array_equal(found.best["a"], found.last["a"])
    assert float(found.best_loss) == pytest.approx(14.0 * 0.64**5)
    assert int(found.num_skipped) == 0


def test_the_best_point_is_kept_where_steps_overshoot() -> None:
    found = run(_square, START, optax.sgd(1.1), 5)
    np.testing.assert_array_equal(found.best["a"], START["a"])
    assert float(found.best_loss) == 14.0
    assert float(found.losses[-1]) > 14.0


def test_a_step_that_is_not_finite_goes_half_way_back() -> None:
    # A wall at 1/2: the first step, to 0, lands behind it, the next is half way to the start.
    def walled(point: jax.Array) -> jax.Array:
        return jnp.where(point < 0.5, jnp.nan, point**2)

    found = run(walled, jnp.array(1.0), optax.sgd(0.5), 2)
    assert int(found.num_skipped) == 1
    assert float(found.last) == 0.5
    assert float(found.best_loss) == 0.25


def test_random_losses_get_their_keys_and_held_out_looks_decide() -> None:
    keys = jax.random.split(jax.random.key(0), 6)

    def noisy(point: jax.Array, key: jax.Array) -> jax.Array:
        return point * jax.random.normal(key)

    def judged(to_beat: float) -> Descent:
        held_out = HeldOut(lambda point: (point + 1) ** 2, 2, jnp.asarray(to_beat))
        return jax.jit(
            lambda keys: descend(
                noisy, jnp.array(0.0), optax.sgd(0.5), 6, keys=keys, held_out=held_out
            )
        )(keys)

    path = -0.5 * np.cumsum(np.asarray(jax.vmap(jax.random.normal)(keys)))[1::2]
    expected = (path + 1) ** 2
    found = judged(np.inf)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    np.testing.assert_allclose(found.best, path[expected.argmin()], rtol=1e-5)
    nothing = judged(0.0)
    assert (float(nothing.best), float(nothing.best_loss)) == (0.0, 0.0)
    np.testing.assert_allclose(nothing.last, path[-1], rtol=1e-5)


def test_line_searches_get_what_they_need() -> None:
    found = run(_square, START, optax.lbfgs(), 4)
    assert float(found.best_loss) < 1e-8
