"""Targets on which a Gaussian fails, and eight schools, all bundled.

| name | what is hard | truth |
|---|---|---|
| eight_schools | mild: the noncentred form, 10 scalars | NUTS |
| eight_schools_centred | a funnel from real data | NUTS on the noncentred form |
| funnel | Neal's funnel, 10 scalars, scales from e^-4.5 to e^4.5 | exact draws |
| skewed | correlated sinh-arcsinh coordinates: skewed, heavy tails | exact draws |
| banana | curved: b = .03, V = 100 | exact draws |
| product | boomerang: only a product is observed | exact draws (conjugate) |
| logistic_growth | early yeast counts: the capacity is hardly identified | NUTS |
| bimodal | two overlapping modes of weights .3 and .7 | exact draws |
| cauchy_location | two clusters of eruptions, one location: real, two modes | exact draws (grid) |

Where the density is known but is no NumPyro distribution, the model is a flat site and a factor.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from benchmarks.accuracy.posteriors import (
    Draws,
    Posterior,
    eight_schools_noncentred,
    eight_schools_scalars,
    flat,
    indexed,
    scalars,
)

# Rubin (1981), Journal of Educational Statistics 6: effects of coaching and standard errors.
SCHOOLS = (
    jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)
# Carlson (1913), Biochemische Zeitschrift 57: amount of yeast after 0, 1, 2, ... hours, the first
# seven of nineteen, before the growth slows down.
YEAST = jnp.array([9.6, 18.3, 29.0, 47.2, 71.1, 119.1, 174.6])
# Azzalini and Bowman (1990), Applied Statistics 39: the first 19 durations of Old Faithful
# (minutes).
ERUPTIONS = jnp.array(
    [3.600, 1.800, 3.333, 2.283, 4.533, 2.883, 4.700, 3.600, 1.950, 4.350]
    + [1.833, 3.917, 4.200, 1.750, 4.700, 2.167, 1.750, 4.800, 1.600]
)
FUNNEL_SCALE = 3.0
SKEW = np.array([0.6, -0.5, 0.4, 0.0, 0.3])
TAIL = np.array([0.75, 0.8, 1.0, 0.7, 0.85])
SKEWED_CORRELATION = 0.6 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
BANANA_BEND, BANANA_VARIANCE = 0.03, 100.0
MODE, HEAVY_WEIGHT = np.array([2.0, 1.0, 0.0, 0.0]), 0.7
PRODUCT, PRODUCT_ERROR, FACTOR_MEAN = 1.0, 0.25, 1.0


def by_density(log_density: Callable[[Array], Array], size: int) -> Callable[[], None]:
    """Return a model whose posterior of the flat site `x` has the given log density."""

    def model() -> None:
        numpyro.factor("log_density", log_density(flat("x", (size,), constraints.real_vector)))

    return model


def eight_schools_centred(y: Array, sigma: Array) -> None:
    """Eight schools: theta ~ N(mu, tau), y ~ N(theta, sigma): theta collapses as tau goes to 0."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def funnel() -> None:
    """Neal's funnel: v ~ N(0, 3), x_i ~ N(0, exp(v/2)), i = 1..9 (Neal 2003)."""
    v = numpyro.sample("v", dist.Normal(0.0, FUNNEL_SCALE))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([9]).to_event(1))


def funnel_scalars(draws: Draws) -> dict[str, np.ndarray]:
    """Return v and asinh(x): the variance of x itself needs over 10^6 draws to be estimated."""
    return {"v": np.asarray(draws["v"])} | indexed("asinh_x", np.arcsinh(np.asarray(draws["x"])))


def exact_funnel(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Return independent draws of the funnel's scalars."""
    v = FUNNEL_SCALE * rng.normal(size=size)
    return funnel_scalars({"v": v, "x": np.exp(v / 2)[:, None] * rng.normal(size=(size, 9))})


def skewed_log_density(x: Float[Array, " 5"]) -> Float[Array, ""]:
    """Return the log density of x = sinh((asinh z + skew)/tail), z ~ N(0, R).

    Reference: Jones and Pewsey (2009), Biometrika 96, equation 2.
    """
    t = TAIL * jnp.arcsinh(x) - SKEW
    slope = jnp.log(TAIL) + jnp.log(jnp.cosh(t)) - 0.5 * jnp.log1p(x**2)
    normal = dist.MultivariateNormal(jnp.zeros(5), jnp.asarray(SKEWED_CORRELATION))
    return normal.log_prob(jnp.sinh(t)) + jnp.sum(slope)


def exact_skewed(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Return independent draws of the sinh-arcsinh coordinates."""
    z = rng.normal(size=(size, 5)) @ np.linalg.cholesky(SKEWED_CORRELATION).T
    return indexed("x", np.sinh((np.arcsinh(z) + SKEW) / TAIL))


def banana_log_density(x: Float[Array, " 2"]) -> Float[Array, ""]:
    """Return the log density of x_2 = z_2 + b (x_1^2 - V), x_1 ~ N(0, V) (Haario et al. 1999)."""
    z = x[1] - BANANA_BEND * (x[0] ** 2 - BANANA_VARIANCE)
    return -0.5 * (x[0] ** 2 / BANANA_VARIANCE + z**2)


def exact_banana(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Return independent draws of the banana."""
    x, z = np.sqrt(BANANA_VARIANCE) * rng.normal(size=size), rng.normal(size=size)
    bent = z + BANANA_BEND * (x**2 - BANANA_VARIANCE)
    return indexed("x", np.stack([x, bent], axis=1))


def product() -> None:
    """a, b ~ N(m, 1), and a b is observed with error."""
    a = numpyro.sample("a", dist.Normal(FACTOR_MEAN, 1.0))
    b = numpyro.sample("b", dist.Normal(FACTOR_MEAN, 1.0))
    numpyro.sample("y", dist.Normal(a * b, PRODUCT_ERROR), obs=jnp.asarray(PRODUCT))


def exact_product(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Return draws: a from its marginal on a fine grid, b from its normal conditional.

    p(y | a) = N(y; a m, sqrt(a^2 + s^2)); b | a, y has precision 1 + a^2/s^2.
    """
    variance = PRODUCT_ERROR**2
    grid = np.linspace(-7.0, 9.0, 400_001)
    total = grid**2 + variance
    log_p = -0.5 * (grid - FACTOR_MEAN) ** 2 - 0.5 * np.log(total)
    log_p -= 0.5 * (PRODUCT - grid * FACTOR_MEAN) ** 2 / total
    a = from_grid(rng, grid, log_p, size)
    precision = 1.0 + a**2 / variance
    mean = (FACTOR_MEAN + a * PRODUCT / variance) / precision
    return {"a": a, "b": mean + rng.normal(size=size) / np.sqrt(precision)}


def from_grid(
    rng: np.random.Generator, grid: np.ndarray, log_p: np.ndarray, size: int
) -> np.ndarray:
    """Return draws of a density known on an even grid, uniform within each cell."""
    p = np.exp(log_p - log_p.max())
    cells = rng.choice(len(grid), size=size, p=p / p.sum())
    return grid[cells] + (grid[1] - grid[0]) * (rng.random(size) - 0.5)


def logistic_growth(y: Array) -> None:
    """y_t ~ LogNormal(log K - log(1 + (K/y_0 - 1) exp(-r t)), sigma), hours t = 0, 1, 2, ..."""
    capacity = numpyro.sample("K", dist.LogNormal(jnp.log(500.0), 0.6))
    rate = numpyro.sample("r", dist.LogNormal(jnp.log(0.5), 0.5))
    start = numpyro.sample("y0", dist.LogNormal(jnp.log(10.0), 0.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.2))
    ratio = jnp.maximum(capacity / start - 1.0, 0.01)  # the prior mass of y_0 > K is negligible
    log_size = jnp.log(capacity) - jnp.log1p(ratio * jnp.exp(-rate * jnp.arange(len(y))))
    numpyro.sample("y", dist.LogNormal(log_size, sigma), obs=y)


def bimodal_log_density(x: Float[Array, " 4"]) -> Float[Array, ""]:
    """Return log(.3 N(x; -m, I) + .7 N(x; m, I)) up to a constant."""
    heavy = jnp.log(HEAVY_WEIGHT) - 0.5 * jnp.sum((x - MODE) ** 2)
    light = jnp.log1p(-HEAVY_WEIGHT) - 0.5 * jnp.sum((x + MODE) ** 2)
    return jnp.logaddexp(heavy, light)


def exact_bimodal(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Return independent draws of the two-component mixture."""
    sign = np.where(rng.random(size) < HEAVY_WEIGHT, 1.0, -1.0)
    return indexed("x", sign[:, None] * MODE + rng.normal(size=(size, 4)))


def cauchy_location(y: Any) -> None:
    """One location for two clusters: y ~ Cauchy(mu, exp(log_scale))."""
    mu = numpyro.sample("mu", dist.Normal(3.0, 2.0))
    log_scale = numpyro.sample("log_scale", dist.Normal(-1.6, 0.25))
    numpyro.sample("y", dist.Cauchy(mu, jnp.exp(log_scale)), obs=y)


def cauchy_log_density(mu: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    """Return the unnormalised log posterior of `cauchy_location`, elementwise."""
    y = np.asarray(ERUPTIONS, float)[:, None, None]
    log_likelihood = -log_scale - np.log1p(((y - mu) / np.exp(log_scale)) ** 2)
    log_prior = -0.5 * ((mu - 3.0) / 2.0) ** 2 - 0.5 * ((log_scale + 1.6) / 0.25) ** 2
    return log_prior + log_likelihood.sum(axis=0)


def exact_cauchy(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Return draws of the two-dimensional posterior from a fine grid."""
    mu, log_scale = np.linspace(-3.0, 9.0, 3001), np.linspace(-4.5, 1.5, 601)
    log_p = cauchy_log_density(mu[:, None], log_scale[None, :])
    p = np.exp(log_p - log_p.max()).ravel()
    cells = np.unravel_index(rng.choice(p.size, size=size, p=p / p.sum()), log_p.shape)
    jitter = rng.random((2, size)) - 0.5
    return {
        name: grid[cell] + (grid[1] - grid[0]) * shift
        for name, grid, cell, shift in zip(
            ("mu", "log_scale"), (mu, log_scale), cells, jitter, strict=True
        )
    }


_FIRST = scalars(x=1)
_TARGETS = (
    Posterior("eight_schools", eight_schools_noncentred, eight_schools_scalars, SCHOOLS),
    Posterior(
        "eight_schools_centred",
        eight_schools_centred,
        scalars(theta=1, mu=0, tau=0),
        SCHOOLS,
        gaussian=False,
        reference_model=eight_schools_noncentred,
        reference_to_reference=eight_schools_scalars,
    ),
    Posterior("funnel", funnel, funnel_scalars, gaussian=False, exact=exact_funnel),
    Posterior(
        "skewed", by_density(skewed_log_density, 5), _FIRST, gaussian=False, exact=exact_skewed
    ),
    Posterior(
        "banana", by_density(banana_log_density, 2), _FIRST, gaussian=False, exact=exact_banana
    ),
    Posterior("product", product, scalars(a=0, b=0), gaussian=False, exact=exact_product),
    Posterior(
        "logistic_growth",
        logistic_growth,
        scalars(K=0, r=0, y0=0, sigma=0),
        (YEAST,),
        gaussian=False,
    ),
    Posterior(
        "bimodal", by_density(bimodal_log_density, 4), _FIRST, gaussian=False, exact=exact_bimodal
    ),
    Posterior(
        "cauchy_location",
        cauchy_location,
        scalars(mu=0, log_scale=0),
        (ERUPTIONS,),
        gaussian=False,
        exact=exact_cauchy,
    ),
)
TARGETS = {target.name: target for target in _TARGETS}
