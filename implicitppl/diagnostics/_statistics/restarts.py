"""Spread between restarts: how much of the answer is the seed of the optimiser.

From the draws of `R` fits, per scalar and in units of the mean within-fit standard deviation,

    mean_spread = sd over fits of the mean,      sd_range = largest sd / smallest sd,

and for the joint distribution the largest sliced Wasserstein and energy distance between two fits,
beside the sliced Wasserstein distance of two random halves of the pooled draws, cut to the same
size.

Shapes: draws of each fit `(S, P)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array

from implicitppl.diagnostics._draws import as_draws, columns
from implicitppl.metrics._distances import energy_distance, sliced_wasserstein

_ENERGY_ROWS = 1000


@dataclass(frozen=True)
class RestartSpread:
    """Differences between fits from different seeds; `print` it, or take the arrays `(P,)`.

    `mean_noise` is the spread of means that `S` independent draws of one fit would show by
    chance, `sliced_wasserstein_noise` the distance of two random samples of the pool of all fits.
    """

    names: tuple[str, ...]
    mean_spread: np.ndarray
    mean_noise: float
    sd_range: np.ndarray
    sliced_wasserstein: float
    sliced_wasserstein_noise: float
    energy: float
    num_restarts: int

    def __str__(self) -> str:
        width = max(9, *(len(n) for n in self.names))
        lines = [f"{'':{width}}  {'mean spread':>11}  {'sd max/min':>10}"]
        for name, spread, ratio in zip(self.names, self.mean_spread, self.sd_range, strict=True):
            lines.append(f"{name:{width}}  {spread:>11.3f}  {ratio:>10.3f}")
        lines.append(
            f"{self.num_restarts} restarts; mean spread by chance {self.mean_noise:.3f}; "
            f"largest sliced Wasserstein {self.sliced_wasserstein:.4f} "
            f"(by chance {self.sliced_wasserstein_noise:.4f}), energy {self.energy:.4f}"
        )
        return "\n".join(lines)


def restart_spread(
    draws: Sequence[Any] | Callable[[int], Any],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    var_names: Sequence[str] | None = None,
    key: Array | None = None,
    num_projections: int = 100,
) -> RestartSpread:
    """How much fits from different seeds disagree, in units of the posterior's width.

    Large spread means that the optimiser has not converged or finds different local optima. Small
    spread does not mean that the answer is right: every restart can miss the same mode.

    Args:
        draws: one dict of `(S, ...)` draws (or ArviZ object) per fit, or a function of the seed
            that returns one.
        seeds: seeds for the function; ignored for a sequence.
        var_names: sites to compare; default all of the first fit.
        key: random key of directions and of the random halves; fixed by default.
        num_projections: directions of the sliced Wasserstein distance.

    Returns:
        `RestartSpread`.

    Raises:
        ValueError: fewer than two fits, or fits with different sites or shapes.

    Reference:
        Between-fit variance as in a one-way layout; distances as in `sliced_wasserstein`.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics import restart_spread
        >>> fit = lambda seed: {"x": seed + jax.random.normal(jax.random.key(seed), (500,))}
        >>> spread = restart_spread(fit, seeds=(0, 1, 2))       # each fit is shifted by one sd
        >>> round(float(spread.mean_spread[0]))
        1
    """
    fits = [draws(seed) for seed in seeds] if callable(draws) else list(draws)
    if len(fits) < 2:
        raise ValueError(f"`draws` must hold at least 2 fits; got {len(fits)}.")
    labels, tables = _tables(fits, var_names)
    means = np.stack([t.mean(0) for t in tables])
    sds = np.stack([t.std(0, ddof=1) for t in tables])
    within = np.sqrt((sds**2).mean(0))
    within = np.where(within > 0, within, 1.0)
    smallest = np.maximum(sds.min(0), np.finfo(sds.dtype).tiny)
    key = random.key(0) if key is None else key
    sw, noise, energy = _joint(tables, key, num_projections)
    return RestartSpread(
        tuple(labels),
        means.std(0, ddof=1) / within,
        float(np.mean([1 / np.sqrt(t.shape[0]) for t in tables])),
        np.where(sds.max(0) > 0, sds.max(0) / smallest, 1.0),
        sw,
        noise,
        energy,
        len(fits),
    )


def _tables(fits: Any, var_names: Any) -> tuple[list[str], list[np.ndarray]]:
    labels: list[str] = []
    tables: list[np.ndarray] = []
    for i, fit in enumerate(fits):
        own, table = columns(as_draws(f"draws[{i}]", fit, var_names))
        if not labels:
            labels = own
        if own != labels:
            raise ValueError(
                f"`draws[{i}]` must have the scalars of `draws[0]`, {labels}; got {own}."
            )
        tables.append(table)
    return labels, tables


def _joint(
    tables: list[np.ndarray], key: Array, num_projections: int
) -> tuple[float, float, float]:
    direction_key, half_key = random.split(key)
    pool = np.concatenate(tables)
    pairs = list(combinations(tables, 2))
    sw = max(
        float(sliced_wasserstein(jnp.asarray(a), jnp.asarray(b), direction_key, num_projections))
        for a, b in pairs
    )
    energy = max(
        float(energy_distance(jnp.asarray(a[:_ENERGY_ROWS]), jnp.asarray(b[:_ENERGY_ROWS])))
        for a, b in pairs
    )
    size = min(min(t.shape[0] for t in tables), pool.shape[0] // 2)
    order = np.asarray(random.permutation(half_key, pool.shape[0]))
    first, second = pool[order[:size]], pool[order[size : 2 * size]]
    noise = sliced_wasserstein(
        jnp.asarray(first), jnp.asarray(second), direction_key, num_projections
    )
    return sw, float(noise), energy
