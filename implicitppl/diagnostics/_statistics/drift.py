"""Drift of guide draws under a few NUTS transitions.

NUTS leaves the posterior invariant: draws from the posterior stay draws from the posterior. From
guide draws `z_0^c`, one chain each, run `T` transitions and compare every chain with its own start,

    drift = mean_c (zbar^c - z_0^c) / sd,      ratio = sd of z_t^c (t > T/2) / sd of z_0^c,

with `zbar` the mean over the second half of the chain. The starts enter through their regression on
the ends (slope `b`), and the guide's own moments come from all draws at hand:

    drift sd = mean_c zbar^c - b (mean_c z_0^c - mean of all) - mean of all,

likewise for second moments: chains that forget their start are not charged for its noise. The
spread over chains gives the standard errors. Geometry: whitened by the guide's covariance; one step
size, the largest of a halving grid whose short trajectories are accepted at 0.8.

Shapes: samples `(C, D)`, unconstrained. Cost: `C x T` NUTS transitions in one compiled program.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float
from numpyro.infer import NUTS

from implicitppl._core.checks import as_matrix, check_count
from implicitppl._core.frames import whitening_frame
from implicitppl._train.programs import OFTEN, Compiled, Options, effort_once

_STEP_GRID = tuple(1.0 * 0.5**i for i in range(9))
_PILOT_STEPS = 8
_TARGET_ACCEPT = 0.8
KEPT = 8  # programs, of so many densities


class NutsDrift(NamedTuple):
    """Drift per coordinate, `(D,)`, in guide standard deviations, with standard errors.

    `moved` is the mean whitened distance between start and end over `sqrt(2 D)`: about 1 once
    chains forget their start; a small drift with a small `moved` proves nothing. `acceptance` is
    the mean acceptance, `divergent` the share of divergent transitions.
    """

    mean_drift: Float[Array, " D"]
    mean_se: Float[Array, " D"]
    sd_ratio: Float[Array, " D"]
    sd_se: Float[Array, " D"]
    moved: Float[Array, ""]
    acceptance: Float[Array, ""]
    divergent: Float[Array, ""]
    step_size: Float[Array, ""]
    final: Float[Array, "C D"]


def nuts_drift(
    rng_key: Array,
    log_density: Callable[[Float[Array, " D"]], Float[Array, ""]],
    samples: Float[Array, "C D"],
    *,
    baseline: Float[Array, "S D"] | None = None,
    num_steps: int = 24,
    max_tree_depth: int = 6,
) -> NutsDrift:
    """How guide draws move in mean and width under a few dozen exact NUTS transitions.

    Sees wrong location, width and correlation near the draws, and heavier tails as far as NUTS gets
    in `num_steps` transitions. Cannot see a separated mode (no chain crosses in so few steps), nor
    a narrow funnel neck that the common step size does not enter: look at `divergent` and `moved`.

    Args:
        rng_key: random key.
        log_density: unnormalised target log density of one unconstrained point, differentiable.
        samples: independent guide draws in the same coordinates, one chain each; 100 to 500.
        baseline: more guide draws, independent of `samples`; they cost no transitions and make the
            standard errors two to four times smaller.
        num_steps: transitions per chain; two dozen reach across a moderate correlation.
        max_tree_depth: cap of NUTS's tree, 63 leapfrog steps at 6; all chains of one vectorised
            program wait for the longest.

    Returns:
        `NutsDrift`; `mean_drift / mean_se` is standard normal if the guide is the posterior.

    Raises:
        ValueError: wrong shape, NaN, fewer than eight draws, a starting point without finite
            density.

    Reference:
        Hoffman and Gelman 2014 (arXiv 1111.4246) for NUTS; the check is invariance itself.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics import nuts_drift
        >>> z = 0.5 * jax.random.normal(jax.random.key(0), (64, 1))   # half as wide as N(0, 1)
        >>> d = nuts_drift(jax.random.key(1), lambda z: -0.5 * z @ z, z, num_steps=8)
        >>> bool(d.sd_ratio[0] > 1.5)
        True
    """
    z = as_matrix("samples", samples, min_rows=8)
    check_count("num_steps", num_steps, 2)
    check_count("max_tree_depth", max_tree_depth, 1)
    pool = z if baseline is None else as_matrix("baseline", baseline, min_rows=8).astype(z.dtype)
    if pool.shape[1] != z.shape[1]:
        raise ValueError(f"`baseline` must have {z.shape[1]} columns; got {pool.shape[1]}.")
    paired = baseline is None
    sizes = int(num_steps), int(max_tree_depth)
    drift, bad = _run(rng_key, z, pool, log_density, *sizes, paired)
    if int(bad):
        raise ValueError(f"`log_density` must be finite at every row of `samples`; got {bad} rows.")
    return drift


def _drift(
    rng_key: Array,
    z: Array,
    pool: Array,
    log_density: Callable[[Array], Array],
    num_steps: int,
    max_tree_depth: int,
    paired: bool,
) -> tuple[NutsDrift, Array]:
    """The drift, and the number of starting points without a finite density."""
    bad = jnp.sum(~jnp.isfinite(jax.vmap(log_density)(z)))
    white = whitening_frame(pool)
    start = white.to(z)

    def potential(u: Array) -> Array:
        return -log_density(white.back(u[None])[0])

    pilot_key, run_key = random.split(rng_key)
    step_size = _choose_step(pilot_key, potential, start)
    trace, acceptance, divergent = _chains(
        run_key, potential, start, step_size, num_steps, max_tree_depth
    )
    states = jax.vmap(white.back)(trace)[num_steps // 2 :]
    mean_drift, mean_se, sd_ratio, sd_se = _moments(z, pool, states, paired)
    moved = jnp.mean(jnp.linalg.norm(trace[-1] - start, axis=1)) / math.sqrt(2.0 * z.shape[1])
    drift = NutsDrift(
        mean_drift,
        mean_se,
        sd_ratio,
        sd_se,
        moved,
        acceptance,
        divergent,
        step_size,
        states[-1],
    )
    return drift, bad


def _effort(key: Array, z: Array, pool: Array, log_density: Any, *options: Any) -> Options:
    """By the data of the density; those of a plain function are not seen."""
    is_plain = len(jax.tree.leaves(log_density)) == 1
    return OFTEN if is_plain else effort_once(log_density)


_run = Compiled(_drift, _effort, keep=KEPT)


def _choose_step(key: Array, potential: Callable[[Array], Array], start: Array) -> Array:
    """Largest step of the grid whose short trajectories are accepted at the target rate."""
    steps = jnp.asarray(_STEP_GRID, start.dtype)
    momentum = random.normal(key, start.shape, start.dtype)
    gradient = jax.vmap(jax.grad(potential))
    energy = jax.vmap(lambda u, r: potential(u) + 0.5 * jnp.vdot(r, r))
    before = energy(start, momentum)

    def acceptance(step: Any) -> Array:
        def leapfrog(state: Any, _: Any) -> Any:
            u, r = state
            r = r - 0.5 * step * gradient(u)
            u = u + step * r
            return (u, r - 0.5 * step * gradient(u)), None

        end, _ = lax.scan(leapfrog, (start, momentum), None, length=_PILOT_STEPS)
        change = before - energy(*end)
        return jnp.mean(jnp.where(jnp.isfinite(change), jnp.exp(jnp.minimum(change, 0)), 0))

    rates = lax.map(acceptance, steps)
    good = rates >= _TARGET_ACCEPT
    return jnp.where(good.any(), steps[jnp.argmax(good)], steps[-1])


def _chains(
    key: Array,
    potential: Callable[[Array], Array],
    start: Array,
    step_size: Array,
    num_steps: int,
    max_tree_depth: int,
) -> tuple[Array, Array, Array]:
    """States `(T, C, D)` after each transition, with mean acceptance and divergence rates."""
    kernel = NUTS(
        potential_fn=potential,
        step_size=step_size,
        adapt_step_size=False,
        adapt_mass_matrix=False,
        max_tree_depth=max_tree_depth,
    )
    state = kernel.init(random.split(key, start.shape[0]), 0, init_params=start)

    def transition(state: Any, _: Any) -> Any:
        state = kernel.sample(state, (), {})
        return state, (state.z, state.accept_prob, state.diverging)

    _, (trace, acceptance, diverging) = lax.scan(transition, state, None, length=num_steps)
    return trace, acceptance.mean(), diverging.mean(dtype=start.dtype)


def _moments(
    z: Array, pool: Array, states: Array, paired: bool
) -> tuple[Array, Array, Array, Array]:
    """Drift of mean and sd with standard errors; starts `(C, D)`, late states `(T/2, C, D)`."""
    sd = pool.std(0, ddof=1)
    mean, end_mean = pool.mean(0), states.mean((0, 1))
    shift, shift_se = _change(z, pool, states.mean(0), paired)
    # second moments, each about the mean of its own distribution
    before, base = (z - mean) ** 2, (pool - mean) ** 2
    growth, growth_se = _change(before, base, jnp.mean((states - end_mean) ** 2, axis=0), paired)
    variance = base.mean(0)
    ratio = jnp.sqrt(jnp.maximum(1 + growth / variance, 0))
    # d sqrt(1 + g / v) = (dg - (ratio^2 - 1) dv) / (2 v ratio)
    own = 0.0 if paired else base.std(0, ddof=1) / math.sqrt(base.shape[0]) * jnp.abs(ratio**2 - 1)
    spread = jnp.sqrt(growth_se**2 + own**2)
    return shift / sd, shift_se / sd, ratio, spread / (2 * variance * jnp.maximum(ratio, 1e-6))


def _change(start: Array, pool: Array, end: Array, paired: bool) -> tuple[Array, Array]:
    """`E end - E start` per column and its standard error, from pairs and a pool of starts."""
    c, s = start.shape[0], pool.shape[0]
    if paired:
        difference = end - start
        return difference.mean(0), difference.std(0, ddof=1) / math.sqrt(c)
    centred = start - start.mean(0)
    b = jnp.sum(centred * end, 0) / jnp.maximum(jnp.sum(centred**2, 0), jnp.finfo(start.dtype).tiny)
    residual = (end - b * start).std(0, ddof=1) ** 2 / c
    base = (1 - b) ** 2 * pool.std(0, ddof=1) ** 2 / s
    change = end.mean(0) - b * (start.mean(0) - pool.mean(0)) - pool.mean(0)
    return change, jnp.sqrt(residual + base)
