"""Evaluations of other runs, and starts as users write them: used right, or refused in words."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jaxtyping import Array
from scipy import stats

from implicitppl.infer import Evaluations, ScoreHMC
from implicitppl.infer._score_hmc.evaluations import empty_evaluations, filled, joined
from implicitppl.infer._score_hmc.problem import Evaluation
from implicitppl.infer._score_hmc.reuse import Earlier, add_all
from implicitppl.models import black_box

KEYS = jax.random.split(jax.random.key(1), 2)
POINTS = {"mu": np.array([2.5, 2.9, 3.1, 3.4], np.float32)}
X = np.ones(3, np.float32)
STARTS = np.ones((2, 2), np.float32)
CALLS: list[float] = []


def product(mu: np.ndarray, x: np.ndarray) -> np.ndarray:
    CALLS.append(float(mu))
    return mu * x


def model(x: Array, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    mean = black_box("f", product, mu, x, out=(3,))
    numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def potential_of(mu: np.ndarray, y: list[float]) -> np.ndarray:
    log_p = stats.norm.logpdf(mu, 0.0, 10.0)
    return -(log_p + sum(stats.norm.logpdf(value, mu, 1.0) for value in y))


def evaluated(kernel: ScoreHMC, points: Any, *args: Any) -> Evaluations:
    return jax.jit(kernel.evaluate)(jax.random.key(0), points, *args)


def first_evaluations(kernel: ScoreHMC, *args: Any) -> Evaluations:
    return kernel.init(KEYS, 5, None, args, {}).evaluations


def first_of_potential(kernel: ScoreHMC, start: np.ndarray = STARTS, keys: Array = KEYS) -> Any:
    return jax.jit(lambda keys: kernel.init(keys, 5, start, (), {}))(keys)


def test_evaluations_of_other_data_have_the_potentials_of_these_data() -> None:
    """Outputs of the host stay, the likelihood around them is that of the new data."""
    old, new = [3.0, 3.1, 2.9], [-4.0, 3.0, 10.0]
    known = evaluated(ScoreHMC(model), POINTS, X, jnp.array(old))
    np.testing.assert_allclose(filled(known).potential, potential_of(POINTS["mu"], old), rtol=1e-5)
    CALLS.clear()
    found = filled(first_evaluations(ScoreHMC(model, evaluations=known), X, jnp.array(new)))
    assert len(CALLS) == 2  # the two starting points
    np.testing.assert_allclose(found.potential[:4], potential_of(POINTS["mu"], new), rtol=1e-5)
    with pytest.raises(ValueError, match="black box 'f' is given other inputs than it was"):
        first_evaluations(ScoreHMC(model, evaluations=known), 2 * X, jnp.array(old))


def test_those_of_an_opaque_model_are_computed_anew() -> None:
    def plain(y: Array) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)

    known = evaluated(ScoreHMC(plain), POINTS, jnp.array([3.0, 3.1, 2.9]))
    found = filled(
        first_evaluations(ScoreHMC(plain, evaluations=known), jnp.array([-4.0, 3.0, 10.0]))
    )
    exact = potential_of(POINTS["mu"], [-4.0, 3.0, 10.0])
    np.testing.assert_allclose(found.potential[:4], exact, rtol=1e-5)
    np.testing.assert_allclose(found.outputs["potential"][:4, 0], exact, rtol=1e-5)


def square(scale: float, x: Array) -> Array:
    return scale * jnp.sum(x**2)


def test_those_of_a_potential_are_tried_once() -> None:
    points = np.linspace(0.3, 2.0, 12, dtype=np.float32).reshape(6, 2)
    half, whole = (functools.partial(square, scale) for scale in (0.5, 1.0))
    known = evaluated(ScoreHMC(potential_fn=half), points)
    state = first_of_potential(ScoreHMC(potential_fn=half, evaluations=known))
    assert state.num_evaluations.tolist() == [2, 1]
    message = r"at its best point the potential was 0.1\d+ and is 0.2\d+"
    with pytest.raises(ValueError, match=message):
        first_of_potential(ScoreHMC(potential_fn=whole, evaluations=known))


def test_a_design_larger_than_the_capacity_keeps_what_is_near_and_new() -> None:
    points = np.stack([np.linspace(-3, 3, 90), np.zeros(90)], axis=1).astype(np.float32)
    half = functools.partial(square, 0.5)
    known = evaluated(ScoreHMC(potential_fn=half), points)
    kernel = ScoreHMC(potential_fn=half, evaluations=known, num_kept=16)
    found = first_of_potential(kernel).evaluations
    assert found.z.shape == (16, 2) and int(found.size) == 16
    assert int(found.count) == 92
    exact = 0.5 * np.sum(np.asarray(found.z) ** 2, axis=1)
    np.testing.assert_allclose(found.potential, exact, rtol=1e-6)
    # More chains than there is room for.
    many = first_of_potential(
        ScoreHMC(potential_fn=half, num_kept=16),
        np.ones((20, 2), np.float32),
        jax.random.split(jax.random.key(0), 20),
    )
    assert int(many.evaluations.size) == 20


def test_evaluations_of_chains_that_learned_alone_are_joined(tmp_path: Path) -> None:
    half = functools.partial(square, 0.5)
    parts = [evaluated(ScoreHMC(potential_fn=half), np.full((n, 2), n, np.float32)) for n in (3, 5)]
    empty = empty_evaluations(6, 2, {"potential": (2, 1)}, parts[0].z.dtype)

    @jax.jit
    def add(room: Evaluations, rows: Evaluations) -> Evaluations:
        return add_all(room, Earlier(rows.z, _evaluation(rows), 0))

    padded = [add(empty, p) for p in parts]
    apart = jax.tree.map(lambda *x: jnp.stack(x), *padded)
    assert apart.z.shape == (2, 6, 2)
    rows = jax.tree.map(np.asarray, jax.jit(joined)(apart))
    assert int(rows.size) == int(rows.count) == 8
    assert sorted(rows.number.tolist()) == [0, 0, 0, 0, *range(1, 9)]
    assert rows.z[rows.number == 1, 0] in (3.0, 5.0)  # the first of either
    np.testing.assert_array_equal(rows.z[rows.number == 8, 0], [5.0])
    apart.save(tmp_path / "known.npz")
    loaded = Evaluations.load(tmp_path / "known.npz")
    for known in (apart, loaded):
        found = filled(
            first_of_potential(ScoreHMC(potential_fn=half, evaluations=known)).evaluations
        )
        kept = np.sort(np.asarray(found.z)[:, 0])
        np.testing.assert_array_equal(kept, [1, 1, 3, 3, 3, 5, 5, 5, 5, 5])


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    # The names in the file are those of the first version that wrote one.
    z = np.linspace(0.3, 2.0, 12, dtype=np.float32).reshape(6, 2)
    potential = 0.5 * np.sum(z**2, axis=1)
    stored: Any = {"inputs/potential": z, "outputs/potential": potential[:, None]}
    np.savez(tmp_path / "bank.npz", z=z, potential=potential, **stored)
    loaded = Evaluations.load(tmp_path / "bank.npz")
    half = functools.partial(square, 0.5)
    written = evaluated(ScoreHMC(potential_fn=half), z)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(filled(written)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    written.save(tmp_path / "new.npz")
    with np.load(tmp_path / "bank.npz") as old, np.load(tmp_path / "new.npz") as new:
        assert set(old.files) == set(new.files)


def _evaluation(known: Evaluations) -> Evaluation:
    failures = jnp.asarray(np.zeros((known.z.shape[0], 3), np.int32))
    return Evaluation(known.potential, known.inputs, known.outputs, failures)


def test_starting_points_may_be_plain_numbers() -> None:
    def two() -> None:
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Normal(0.0, 1.0))

    kernel = ScoreHMC(two)

    def first_z(kernel: ScoreHMC, keys: Array, start: Any) -> Any:
        return jax.jit(lambda keys: kernel.init(keys, 100, start, (), {}).z)(keys)

    z = first_z(kernel, jax.random.key(0), {"a": 0.5, "b": 1})
    assert z["a"].shape == () and float(z["b"]) == 1.0
    z = first_z(kernel, KEYS, {"a": np.array([1, 2]), "b": np.array([0, 1])})
    np.testing.assert_array_equal(z["a"], [1.0, 2.0])
    half = ScoreHMC(potential_fn=functools.partial(square, 0.5))
    assert first_z(half, KEYS, np.ones((2, 2), int)).dtype == jnp.float32
    for wrong in ({"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones((2, 3))}):
        with pytest.raises(ValueError, match=r"latent sites \{'a': \(\), 'b': \(\)\}"):
            first_z(kernel, KEYS, wrong)


def test_a_box_may_be_a_scale_while_arguments_are_validated() -> None:
    def positive() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        scale = black_box("scale", np.exp, x, out=())
        numpyro.sample("y", dist.Normal(0.0, scale), obs=1.0)

    with numpyro.validation_enabled():
        state = ScoreHMC(positive).init(KEYS, 100, None, (), {})
    assert np.all(np.isfinite(state.potential_energy))


def test_a_failure_that_the_model_hides_is_refused_all_the_same() -> None:
    def hiding(bad: float) -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        fn = functools.partial(_nan_if, bad)
        value = black_box("box", fn, x, out=(), on_failure="reject")
        numpyro.factor("f", jnp.nan_to_num(value))

    points = {"x": jnp.array([1.0, 2.0])}
    known = filled(ScoreHMC(hiding).evaluate(jax.random.key(0), points, 2.0))
    np.testing.assert_array_equal(jnp.isfinite(known.potential), [True, False])


def _nan_if(bad: float, x: np.ndarray) -> float:
    return float("nan") if x == bad else 0.0
