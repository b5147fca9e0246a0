"""Samples with a known score: four densities in any dimension, and six real posteriors.

| problem | definition |
|---|---|
| normal | N(0, I) |
| banana | x_1 ~ N(0, V), x_2 = z + b (x_1^2 - V), b = .03, V = 100, the rest N(0, 1) |
| mixture | half N(-2 e_1, I), half N(2 e_1, I) |
| student | independent coordinates, t with five degrees of freedom |
| a posteriordb name | published draws, unconstrained, standardised; the model's score |

Posterior draws are standardised (one scale for each coordinate, from all 10,000 draws), so that
estimators whose bandwidth is not adapted to each coordinate are not judged by the units.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import initialize_model, unconstrain_fn

from benchmarks.accuracy.posteriors import NAMES, Posterior, load

BEND, VARIANCE, MODE, FREEDOM = 0.03, 100.0, 2.0, 5.0
DENSITIES = ("normal", "banana", "mixture", "student")
NUM_QUERIES = 1000


@dataclass(frozen=True)
class Problem:
    """Samples (M, D), fresh queries (Q, D) and the true score at the queries."""

    samples: np.ndarray
    queries: np.ndarray
    truth: np.ndarray


def density(name: str, size: int, dim: int, seed: int) -> Problem:
    """Return samples of one of the densities."""
    rng = np.random.default_rng([seed, size, dim])
    samples, _ = _draw(name, rng, size, dim)
    queries, truth = _draw(name, rng, NUM_QUERIES, dim)
    return Problem(samples, queries, truth)


def _draw(
    name: str, rng: np.random.Generator, size: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return draws and their scores."""
    z = rng.normal(size=(size, dim))
    x, score = z.copy(), -z
    if name == "banana":
        x[:, 0] *= np.sqrt(VARIANCE)
        x[:, 1] += BEND * (x[:, 0] ** 2 - VARIANCE)
        score[:, 0] = -x[:, 0] / VARIANCE + 2 * BEND * x[:, 0] * z[:, 1]
    elif name == "mixture":
        x[:, 0] += rng.choice([-MODE, MODE], size=size)
        score = -x
        score[:, 0] += MODE * np.tanh(MODE * x[:, 0])
    elif name == "student":
        x = rng.standard_t(FREEDOM, size=(size, dim))
        score = -(FREEDOM + 1) * x / (FREEDOM + x**2)
    elif name != "normal":
        raise ValueError(f"`name` must be one of {DENSITIES}; got {name!r}.")
    return x, score


def posterior(name: str, size: int, seed: int, folder: Path) -> Problem:
    """Return draws of a posteriordb posterior, without repetition, in standardised coordinates."""
    draws, scores = _posterior_draws(name, folder)
    rng = np.random.default_rng([seed, size, NAMES.index(name)])
    rows = rng.permutation(len(draws))[: size + NUM_QUERIES]
    return Problem(draws[rows[:size]], draws[rows[size:]], scores[rows[size:]])


@cache
def _posterior_draws(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all standardised unconstrained draws and the model's score at each, in float64."""
    target = load(folder, name)
    stored = np.load(target.draws_file)
    columns = {
        str(n): stored["draws"][:, :, i].reshape(-1).astype(float)
        for i, n in enumerate(stored["names"])
    }
    with jax.enable_x64(True):
        sites = {k: jax.numpy.asarray(v) for k, v in _sites(columns).items()}
        args = tuple(
            jax.numpy.asarray(np.asarray(a), float) if hasattr(a, "dtype") else a
            for a in target.args
        )
        z = jax.vmap(lambda s: unconstrain_fn(target.model, args, {}, s))(sites)
        info = initialize_model(jax.random.key(0), target.model, model_args=args)
        _, unravel = ravel_pytree(jax.tree.map(lambda a: a[0], z))
        flat = jax.vmap(lambda s: ravel_pytree(s)[0])(z)
        scores = -jax.lax.map(jax.grad(lambda v: info.potential_fn(unravel(v))), flat)
        flat, scores = np.asarray(flat), np.asarray(scores)
    spread = flat.std(axis=0)
    return (flat - flat.mean(axis=0)) / spread, scores * spread


def _sites(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the model's latent sites from the named scalars of the reference."""
    out: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        site = name.split("[")[0]
        column = values[:, None] if "[" in name else values
        out[site] = np.concatenate([out[site], column], axis=1) if site in out else column
    if {"theta", "mu", "tau"} <= set(out):  # eight schools: the model samples theta_trans
        theta = out.pop("theta")
        out["theta_trans"] = (theta - out["mu"][:, None]) / out["tau"][:, None]
    return out


def check_scores(name: str, folder: Path) -> tuple[float, float]:
    """Return the largest |E[s]| and |E[s x^T] + I| over coordinates, which are 0 for exact scores.

    Stein's identity on the reference draws: a wrong transform or a missing Jacobian shows at once.
    """
    draws, scores = _posterior_draws(name, folder)
    mean = np.abs(scores.mean(axis=0)).max()
    second = np.abs(scores.T @ draws / len(draws) + np.eye(draws.shape[1])).max()
    return float(mean), float(second)


def posterior_dimension(name: str, folder: Path) -> int:
    """Return the number of unconstrained coordinates."""
    return _posterior_draws(name, folder)[0].shape[1]


__all__ = [
    "DENSITIES",
    "NAMES",
    "NUM_QUERIES",
    "Posterior",
    "Problem",
    "check_scores",
    "density",
    "posterior",
    "posterior_dimension",
]
