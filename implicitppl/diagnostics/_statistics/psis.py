"""Pareto k-hat of importance weights: whether the guide's tails cover the target's.

The largest `M = min(S / 5, 3 sqrt(S))` weights `w = p / q` above the next one follow a generalised
Pareto distribution `P(w > t) ~ (1 + k t / sigma)^(-1/k)`; its shape `k` says how many moments the
weights have. `k < min(1 - 1 / log10(S), .7)` is good; above .7 importance sampling from the guide
is unreliable (Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646). The fit is the profile
posterior mean of Zhang and Stephens (2009, Technometrics 51), with the weak prior of Vehtari et
al., appendix C.

Shapes: log weights `(S,)`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from implicitppl._core.checks import is_known
from implicitppl._train.programs import ONCE, Compiled


class ParetoSmoothed(NamedTuple):
    """Shape `k_hat`, normalised smoothed log weights `(S,)`, and their effective sample size."""

    k_hat: Float[Array, ""]
    log_weights: Float[Array, " S"]
    ess: Float[Array, ""]


def pareto_smooth(log_weights: Float[Array, " S"]) -> ParetoSmoothed:
    """Pareto-smoothed importance weights and the diagnostic `k_hat`, from log weights.

    Without an exact density, use weights whose denominator includes the component that
    generated the draw (a semi-implicit guide's *upper* density): they are exact importance weights
    on the extended space. A *lower* estimate leaves it out and makes weights look heavy-tailed. A
    mode that no draw has reached is invisible: `k_hat` can be small while half the mass is missing.

    Args:
        log_weights: `log p(z) - log q(z)` at draws `z ~ q`, up to a constant.

    Returns:
        `ParetoSmoothed`; `k_hat` is infinite where fewer than five weights are in the tail, and 0
        where all weights are equal up to rounding (an exact guide).

    Raises:
        ValueError: not a vector, fewer than 25 draws, NaN or infinite weights.

    Reference:
        Vehtari et al. 2024 (arXiv 1507.02646), algorithm 1 and appendix C.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.diagnostics import pareto_smooth
        >>> z = jax.random.normal(jax.random.key(0), (2000,))      # q = N(0, 1)
        >>> narrow = pareto_smooth(-z**2 / 2 / 0.25 + z**2 / 2)    # p = N(0, .25): covered
        >>> wide = pareto_smooth(-z**2 / 2 / 9.0 + z**2 / 2)       # p = N(0, 9): tails missed
        >>> bool(narrow.k_hat < 0.5), bool(wide.k_hat > 0.7)
        (True, True)
    """
    lw = jnp.asarray(log_weights)
    if lw.ndim != 1:
        raise ValueError(f"`log_weights` must have shape (S,); got {lw.shape}.")
    if lw.shape[0] < 25:
        raise ValueError(f"`log_weights` must have at least 25 entries; got {lw.shape[0]}.")
    if is_known(lw) and not np.isfinite(np.asarray(lw)).all():
        raise ValueError("`log_weights` must be finite; got NaN or infinity.")
    return _compiled_smooth(lw)


def k_hat_limit(num_samples: int) -> float:
    """The largest `k_hat` at which weights of `num_samples` draws are usable."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def _smooth(lw: Array) -> ParetoSmoothed:
    size = lw.shape[0]
    m = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    order = jnp.argsort(lw)
    lw = lw - lw[order[-1]]
    tiny = jnp.log(jnp.finfo(lw.dtype).tiny)
    cut = jnp.maximum(lw[order[-m - 1]], tiny)
    tail = order[-m:]
    excess = jnp.exp(lw[tail]) - jnp.exp(cut)
    usable = jnp.sum(excess > 0) > 4
    k_raw, sigma = _pareto_fit(jnp.maximum(excess, jnp.finfo(lw.dtype).tiny))
    k_hat = (m * k_raw + 5.0) / (m + 10.0)
    usable &= jnp.isfinite(k_hat)
    # log weights carry the rounding of two log densities: a smaller spread is no tail
    constant = lw[order[-1]] - cut < 3 * math.sqrt(float(jnp.finfo(lw.dtype).eps))
    usable &= ~constant
    p = (jnp.arange(m, dtype=lw.dtype) + 0.5) / m
    quantile = jnp.where(
        jnp.abs(k_hat) < 1e-6, -jnp.log1p(-p), jnp.expm1(-k_hat * jnp.log1p(-p)) / k_hat
    )
    smooth = jnp.minimum(jnp.log(jnp.exp(cut) + sigma * quantile), 0.0)
    lw = lw.at[tail].set(jnp.where(usable, smooth, lw[tail]))
    lw = lw - logsumexp(lw)
    k_hat = jnp.where(constant, 0.0, jnp.where(usable, k_hat, jnp.inf))
    return ParetoSmoothed(k_hat, lw, jnp.exp(-logsumexp(2 * lw)))


_compiled_smooth = Compiled(_smooth, ONCE)


def _pareto_fit(excess: Array) -> tuple[Array, Array]:
    """Shape and scale of a generalised Pareto fitted to ascending positive excesses `(M,)`."""
    n = excess.shape[0]
    num = 30 + int(math.sqrt(n))
    grid = 1 - jnp.sqrt(num / (jnp.arange(1, num + 1, dtype=excess.dtype) - 0.5))
    b = grid / (3 * excess[int(n / 4 + 0.5) - 1]) + 1 / excess[-1]
    k = jnp.mean(jnp.log1p(-b[:, None] * excess[None, :]), axis=1)
    log_profile = n * (jnp.log(-b / k) - k - 1)
    weights = jax.nn.softmax(log_profile)
    weights = jnp.where(weights >= 10 * jnp.finfo(excess.dtype).eps, weights, 0)
    b_mean = jnp.sum(b * weights) / jnp.sum(weights)
    k_mean = jnp.mean(jnp.log1p(-b_mean * excess))
    return k_mean, -k_mean / b_mean
