"""Bundled targets: their exact draws obey the Stein identity of their NumPyro models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.integrate import solve_ivp

from benchmarks.accuracy.targets import TARGETS
from benchmarks.hmc.lotka_volterra import lotka_volterra

SIZE, STANDARD_ERRORS = 20_000, 4.5  # at most 110 averages per target: 4.5 is a p of 1e-3
EXACT = [name for name, target in TARGETS.items() if target.exact is not None]


def sites(name: str, row: jax.Array) -> dict[str, jax.Array]:
    """Return the latent sites of a target from one row of its scalars."""
    if name == "funnel":
        return {"v": row[0], "x": jnp.sinh(row[1:])}
    names = {"product": ("a", "b"), "cauchy_location": ("mu", "log_scale")}
    return dict(zip(names[name], row, strict=True)) if name in names else {"x": row}


def stein_errors(name: str, scale: float) -> np.ndarray:
    """Return E[s_i x_j] + 1{i=j} in standard errors, x the scalars, s the score in them."""
    target = TARGETS[name]
    assert target.exact is not None
    columns = np.stack(list(target.exact(np.random.default_rng(1), SIZE).values()), axis=1)
    x = scale * columns

    def log_p(row: jax.Array) -> jax.Array:
        value = log_density(target.model, target.args, target.kwargs, sites(name, row))[0]
        return value + (jnp.sum(jnp.log(jnp.cosh(row[1:]))) if name == "funnel" else 0.0)

    score = np.asarray(jax.jit(jax.vmap(jax.grad(log_p)))(jnp.asarray(x)))
    products = score[:, :, None] * x[:, None, :] + np.eye(x.shape[1])
    return products.mean(axis=0) / (products.std(axis=0) / np.sqrt(SIZE))


@pytest.mark.statistical
@pytest.mark.parametrize("name", EXACT)
def test_exact_draws_obey_the_stein_identity(name: str) -> None:
    assert np.max(np.abs(stein_errors(name, 1.0))) < STANDARD_ERRORS


@pytest.mark.statistical
@pytest.mark.parametrize("name", EXACT)
def test_draws_of_a_wrong_scale_do_not(name: str) -> None:
    assert np.max(np.abs(stein_errors(name, 1.1))) > STANDARD_ERRORS


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_lotka_volterra_agrees_with_an_adaptive_solver(scale: float) -> None:
    theta, start = scale * np.array([0.547, 0.0277, 0.8, 0.0241]), np.array([34.0, 5.9])

    def slope(_: float, z: np.ndarray) -> list[float]:
        return [(theta[0] - theta[1] * z[1]) * z[0], (-theta[2] + theta[3] * z[0]) * z[1]]

    times = range(1, 21)
    exact = solve_ivp(slope, (0, 20), start, t_eval=list(times), rtol=1e-10, atol=1e-10).y.T
    solution = jax.jit(lambda t, z: lotka_volterra(t, z, times))
    found = np.asarray(solution(jnp.asarray(theta), jnp.log(start)))
    np.testing.assert_allclose(np.exp(found), exact, rtol=5e-5)


def test_lotka_volterra_refuses_other_times() -> None:
    with pytest.raises(ValueError, match="`times` must be"):
        lotka_volterra(jnp.ones(4), jnp.zeros(2), [0.5, 1.0])
