"""Moves leave the target invariant whatever their surrogate, and a wrong correction is caught."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from implicitppl.infer._score_hmc.moves import (
    Schedule,
    accept_probability,
    leapfrog,
    propose,
    schedule,
)

CHAINS, STEPS = 4000, 60


def target(x: Array) -> Array:
    """A correlated Gaussian with a quartic term."""
    return 0.5 * (x[0] ** 2 + x[1] ** 2 - 1.2 * x[0] * x[1]) / 0.64 + 0.1 * x[0] ** 4


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Means of x0^2, x0 x1, x1^2 and their standard deviations, by quadrature."""
    grid = np.linspace(-7, 7, 701)
    x0, x1 = np.meshgrid(grid, grid, indexing="ij")
    density = np.exp(-np.asarray(jax.vmap(jax.vmap(target))(jnp.stack([x0, x1], axis=-1))))
    density /= density.sum()
    moments = np.stack([x0**2, x0 * x1, x1**2])
    mean = np.sum(density * moments, axis=(1, 2))
    return mean, np.sqrt(np.sum(density * moments**2, axis=(1, 2)) - mean**2)


@jax.custom_jvp
def rotating(x: Array) -> Array:
    """No potential at all: a force field that rotates."""
    return jnp.zeros((), x.dtype)


@rotating.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return jnp.zeros((), x.dtype), jnp.vdot(jnp.stack([x[1], -x[0]]) + 0.5 * x, dx)


def half(x: Array) -> Array:
    return 0.5 * target(x) + 0.3 * jnp.sin(3 * x[0])


def shifted(x: Array) -> Array:
    return 0.5 * jnp.sum((x - 0.7) ** 2)


def run(
    potential: Callable, num: int, corrected: bool, wrong: str = "", temperature: float = 1.0
) -> np.ndarray:
    """Second moments (3, CHAINS) after many steps, from starts that are not from the target."""
    step = jnp.asarray(0.35)

    def one(key: Array) -> Array:
        first, key = jax.random.split(key)
        x = jax.random.normal(first, (2,))

        def body(x: Array, key: Array) -> tuple[Array, None]:
            jitter, move, accept = jax.random.split(key, 3)
            plan = schedule(jitter, jnp.asarray(1.0), step, 4)
            out = propose(
                move,
                potential,
                x,
                plan,
                jnp.asarray(num),
                jnp.asarray(corrected),
                jnp.asarray(temperature),
            )
            if wrong == "no correction":
                out = out._replace(log_ratio=jnp.zeros(()))
            if wrong == "no temperature":
                out = out._replace(log_ratio=out.surrogate_change)
            prob = accept_probability(out, target(x), target(out.y))
            return jnp.where(jax.random.uniform(accept) < prob, out.y, x), None

        return jax.lax.scan(body, x, jax.random.split(key, STEPS))[0]

    x = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), CHAINS)))
    return np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2])


def z_scores(moments: np.ndarray, truth: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    mean, sd = truth
    return (moments.mean(axis=1) - mean) / (sd / np.sqrt(CHAINS))


CASES = [
    (target, 1, False),
    (half, 1, False),
    (shifted, 1, False),
    (rotating, 1, False),
    (half, 4, True),
    (shifted, 3, True),
]


@pytest.mark.statistical
@pytest.mark.parametrize(("potential", "num", "corrected"), CASES)
def test_wrong_surrogates_leave_the_target_invariant(
    potential: Callable, num: int, corrected: bool, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    assert np.max(np.abs(z_scores(run(potential, num, corrected), truth))) < 4


@pytest.mark.statistical
@pytest.mark.parametrize(("potential", "num", "corrected"), CASES[1:])
def test_without_the_correction_the_same_check_fails(
    potential: Callable, num: int, corrected: bool, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    scores = z_scores(run(potential, num, corrected, "no correction"), truth)
    assert np.max(np.abs(scores)) > 4


@pytest.mark.statistical
def test_wide_transitions_are_corrected_at_their_temperature(
    truth: tuple[np.ndarray, np.ndarray],
) -> None:
    right = z_scores(run(half, 3, True, temperature=2.5), truth)
    assert np.max(np.abs(right)) < 4
    wrong = z_scores(run(half, 3, True, "no temperature", temperature=2.5), truth)
    assert np.max(np.abs(wrong)) > 4


def test_a_trajectory_runs_back() -> None:
    with jax.enable_x64(True):
        y, p = jnp.array([0.3, -1.0]), jnp.array([1.0, 0.5])
        step, num = jnp.asarray(0.1), jnp.asarray(40)
        end, momentum, start_value, end_value = leapfrog(half, y, p, step, num)
        back, returned, _, _ = leapfrog(half, end, -momentum, step, num)
        np.testing.assert_allclose(back, y, atol=1e-10)
        np.testing.assert_allclose(returned, -p, atol=1e-10)
        np.testing.assert_allclose(start_value, half(y))
        np.testing.assert_allclose(end_value, half(end))


def test_a_trajectory_keeps_volume() -> None:
    with jax.enable_x64(True):
        step, num = jnp.asarray(0.2), jnp.asarray(9)

        def flow(state: Array) -> Array:
            y, p, _, _ = leapfrog(rotating, state[:2], state[2:], step, num)
            return jnp.concatenate([y, p])

        jacobian = jax.jacfwd(flow)(jnp.array([0.3, -1.0, 0.4, 0.2]))
        np.testing.assert_allclose(jnp.linalg.det(jacobian), 1.0, atol=1e-10)


def test_what_is_not_finite_is_rejected() -> None:
    cliff = lambda x: jnp.where(x[0] > 0, jnp.nan, 0.5 * jnp.sum(x * x))  # noqa: E731
    out = propose(
        jax.random.key(0),
        cliff,
        jnp.array([-0.1, 0.0]),
        Schedule(jnp.ones((1,)), jnp.full((1,), 20)),
        jnp.asarray(1),
        jnp.asarray(False),
        jnp.asarray(1.0),
    )
    assert bool(out.diverging)
    assert float(accept_probability(out, jnp.asarray(1.0), jnp.asarray(jnp.nan))) == 0
    assert float(accept_probability(out, jnp.asarray(1.0), jnp.asarray(jnp.inf))) == 0
