"""Random targets (pseudo-marginal): what a chain keeps and proposes, and how noisy they are.

A likelihood that is an unbiased random estimate leaves the posterior exact if the estimate is part
of the state: that of the current point is kept, and only a proposal gets a new one (Andrieu,
Roberts 2009). With u ~ N(0, I) behind the estimate, u' = r u + (1 - r^2)^(1/2) e is reversible with
respect to N(0, I), so (z', u') is accepted by the same rule, and the noise of the two estimates
largely cancels (Deligiannidis, Doucet, Pitt 2018).

A kept estimate that is far too high holds a chain for long. That is right after warm-up, and a
waste in it: there the current point is estimated anew now and then, and in its last iterations
several times over, for the variance of the noise.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Noise = dict[str, Array]
REFRESH_SHARE = 0.1  # of the iterations of warm-up
MOST_MEASURED, LEAST_MEASURED = 16, 4
LIMIT = 2.0


class Meter(NamedTuple):
    """Count, mean and sum of squared deviations of U at one point, for each chain."""

    count: Int[Array, " C"]  # type: ignore[assignment]  # a tuple has a method of this name
    mean: Float[Array, " C"]
    squares: Float[Array, " C"]

    @property
    def variance(self) -> Float[Array, "*C"]:
        """Sample variance; NaN before there are two values."""
        several = self.count > 1
        return jnp.where(several, self.squares / jnp.where(several, self.count - 1, 1), jnp.nan)


def new_meter(num_chains: int, dtype: jnp.dtype) -> Meter:
    """Return a meter without values."""
    zero = jnp.zeros((num_chains,), dtype)
    return Meter(jnp.zeros((num_chains,), jnp.int32), zero, zero)


def measured(meter: Meter, potential: Float[Array, " C"]) -> Meter:
    """Return the meter with one value more for each chain; infinite ones are left out (Welford)."""
    good = jnp.isfinite(potential)
    count = meter.count + good
    away = jnp.where(good, potential - meter.mean, 0)
    mean = meter.mean + away / jnp.maximum(count, 1)
    squares = meter.squares + away * jnp.where(good, potential - mean, 0)
    return Meter(count, mean, squares)


def num_measured(num_warmup: int) -> int:
    """Return how many iterations of the warm-up measure the noise of a random target."""
    if num_warmup < 5 * LEAST_MEASURED:
        return 0
    return min(MOST_MEASURED, max(LEAST_MEASURED, num_warmup // 10))


def draw(keys: Array, shapes: dict[str, jax.ShapeDtypeStruct]) -> Noise:
    """Return u ~ N(0, I) for each box that takes it, with an axis for the chains."""
    out = {}
    for number, (name, struct) in enumerate(shapes.items()):
        own = jax.vmap(lambda k, n=number: jax.random.fold_in(k, n))(keys)
        out[name] = jax.vmap(lambda k, s=struct: jax.random.normal(k, s.shape, s.dtype))(own)
    return out


def moved(old: Noise, fresh: Noise, correlation: float, anew: Bool[Array, ""]) -> Noise:
    """Return the noise of a proposal: r u + (1 - r^2)^(1/2) e, or e where `anew`."""
    rest = (1 - correlation**2) ** 0.5
    return {k: jnp.where(anew, e, correlation * old[k] + rest * e) for k, e in fresh.items()}


def warn_if_large(now: Bool[Array, ""], variance: Float[Array, " C"]) -> None:
    """Warn from the compiled program, where `now`, if the log likelihood is too noisy."""
    jax.lax.cond(now, lambda: jax.debug.callback(_warn, jnp.mean(variance)), lambda: None)


def _warn(variance: Array) -> None:
    if not variance > LIMIT:
        return
    warnings.warn(
        f"The estimates of the log likelihood have variance {float(variance):.3g} at the end of "
        f"warm-up; above {LIMIT:g} chains stick. Use more particles or samples for each estimate, "
        "or a box with `noise=` and `noise_correlation=`.",
        stacklevel=2,
    )
