"""Kernel Stein discrepancy: how far draws are from a density known by its score alone.

For the inverse multiquadric `k(x, y) = u^b`, `u = 1 + |x - y|^2 / l^2`, `b = -1/2`, the Stein
kernel of the target score `s` is

    k0(x, y) = s(x).s(y) u^b + (2 b / l^2) u^(b-1) [(s(y) - s(x)).(x - y) - D]
               - (4 b (b-1) / l^4) |x - y|^2 u^(b-2),

and `KSD^2 = E k0(x, x')` is zero iff the draws come from the target (Gorham and Mackey 2017,
arXiv 1703.01717, for `-1 < b < 0`). The V-statistic averages all pairs, the U-statistic leaves out
`i = j` and has mean zero under the target. Its null distribution at the same sample size comes from
a wild bootstrap (Chwialkowski, Strathmann, Gretton 2016, arXiv 1602.02964; Liu, Lee, Jordan 2016,
arXiv 1602.03253): multiply the pair (i, j) by random signs `w_i w_j`.

Shapes: samples and scores `(N, D)`. Time `O(N^2 (D + B))`, memory `O(N (D + B) + block N)`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Bool, Float

from implicitppl._core.checks import as_matrix, check_count, same_shape
from implicitppl._core.frames import whitening_frame
from implicitppl._train.programs import Compiled

_POWER = -0.5


class KSDResult(NamedTuple):
    """Kernel Stein discrepancy of a sample, with its null distribution at the same sample size.

    `ksd` is the square root of the V-statistic (always positive, biased upwards), `u_statistic` the
    unbiased estimate of the squared discrepancy, `null` its bootstrap draws `(B,)`, `null_quantile`
    their 95% quantile and `p_value` the share of null draws at or above it.
    """

    ksd: Float[Array, ""]
    u_statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    null_quantile: Float[Array, ""]
    null: Float[Array, " B"]
    lengthscale: Float[Array, ""]


def stein_kernel(x: Array, y: Array, score_x: Array, score_y: Array, lengthscale: Array) -> Array:
    """`k0(x, y)` of the module's first lines, for two points of shape `(D,)`."""
    r = x - y
    l2 = lengthscale**2
    q = jnp.vdot(r, r)
    u = 1 + q / l2
    return (
        jnp.vdot(score_x, score_y) * u**_POWER
        + 2 * _POWER / l2 * u ** (_POWER - 1) * (jnp.vdot(score_y - score_x, r) - x.shape[0])
        - 4 * _POWER * (_POWER - 1) / l2**2 * q * u ** (_POWER - 2)
    )


def _block(rows: Array, score_rows: Array, x: Array, s: Array, lengthscale: Array) -> Array:
    """`k0` between `(R, D)` rows and all `(N, D)` points, without an `R x N x D` array."""
    l2 = lengthscale**2
    d = x.shape[1]
    dots = rows @ x.T
    q = jnp.sum(rows**2, 1)[:, None] + jnp.sum(x**2, 1)[None, :] - 2 * dots
    q = jnp.maximum(q, 0)
    u = 1 + q / l2
    # (s_y - s_x).(x - y) = s_y.x + s_x.y - s_y.y - s_x.x
    cross = rows @ s.T + score_rows @ x.T
    cross = cross - jnp.sum(s * x, 1)[None, :] - jnp.sum(score_rows * rows, 1)[:, None]
    root = lax.rsqrt(u)
    return (score_rows @ s.T) * root - (cross - d) / l2 * root**3 - 3 / l2**2 * q * root**5


@partial(jax.jit, static_argnames="block_size")
def _quadratic_forms(
    x: Array, s: Array, weights: Array, lengthscale: Array, block_size: int
) -> tuple[Array, Array]:
    """`w^T (H - diag H) w` for every column of `(N, B)` weights, and the trace of `H`."""
    n, d = x.shape
    pad = -n % block_size
    blocks = [
        jnp.pad(a, ((0, pad), (0, 0))).reshape(-1, block_size, a.shape[1]) for a in (x, s, weights)
    ]

    def step(total: Any, block: Any) -> Any:
        rows, score_rows, w_rows = block
        h = _block(rows, score_rows, x, s, lengthscale)
        return total + jnp.sum(w_rows * (h @ weights), axis=0), None

    total, _ = lax.scan(step, jnp.zeros(weights.shape[1], x.dtype), tuple(blocks))
    diagonal = jnp.sum(s**2, 1) + d / lengthscale**2
    return total - diagonal @ weights**2, jnp.sum(diagonal)


@partial(jax.jit, static_argnames="max_points")
def median_distance(samples: Float[Array, "N D"], max_points: int = 1000) -> Float[Array, ""]:
    """Median distance between pairs of rows, of at most `max_points` evenly spaced ones."""
    x = samples[:: max(1, -(-samples.shape[0] // max_points))]
    i, j = jnp.triu_indices(x.shape[0], k=1)
    dots = x @ x.T
    norms = jnp.diagonal(dots)
    q = (norms[:, None] + norms[None, :] - 2 * dots)[i, j]
    return jnp.sqrt(jnp.median(jnp.maximum(q, 0)))


def _signs(key: Array, n: int, num: int, flip_probability: float | Array, dtype: Any) -> Array:
    """Random signs `(n, num)` that change along the first axis with the given probability."""
    first_key, flip_key = random.split(key)
    start = random.rademacher(first_key, (1, num), dtype=jnp.int32)
    flips = random.bernoulli(flip_key, flip_probability, (n - 1, num))
    steps = jnp.where(flips, -1, 1)
    return jnp.cumprod(jnp.concatenate([start, steps]), axis=0).astype(dtype)


def kernel_stein_discrepancy(
    scores: Float[Array, "N D"],
    samples: Float[Array, "N D"],
    *,
    key: Array,
    lengthscale: float | str = "median",
    whiten: bool = True,
    num_bootstrap: int = 500,
    flip_probability: float | Array = 0.5,
    block_size: int = 512,
) -> KSDResult:
    """Kernel Stein discrepancy of draws from a target score, with a p-value at this sample size.

    A small p-value says that the draws are not from the target. A large one says only that
    no difference is visible at this sample size: draws that miss a separated mode, or give it a
    wrong weight, have almost the target's score everywhere they are, and pass.

    Args:
        scores: gradients of the target log density at the samples, in the same coordinates. An
            unnormalised density is enough.
        samples: the draws; unconstrained coordinates, because boundary terms must vanish.
        key: random key of the bootstrap.
        lengthscale: of the inverse multiquadric, in whitened units; `"median"` takes the median
            pairwise distance, which keeps power in many dimensions; `1.0` is Gorham and Mackey's.
        whiten: measure in coordinates where the draws have identity covariance, so that the units
            of the parameters do not matter.
        num_bootstrap: null draws; 500 resolve a p-value of .05 to .01.
        flip_probability: 0.5 for independent draws. For a Markov chain in its order, about
            one over its autocorrelation time.
        block_size: rows of the Stein kernel held at once.

    Returns:
        `KSDResult`; compare `u_statistic` with `null_quantile`, never with zero.

    Raises:
        ValueError: wrong shape, NaN or infinity, fewer than four draws, an unknown lengthscale.

    Reference:
        Gorham and Mackey 2017, section 4; Chwialkowski et al. 2016, section 3.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics import kernel_stein_discrepancy
        >>> x = jax.random.normal(jax.random.key(0), (200, 2))
        >>> good = kernel_stein_discrepancy(-x, x, key=jax.random.key(1))
        >>> y = x + 0.5
        >>> bad = kernel_stein_discrepancy(-y, y, key=jax.random.key(1))
        >>> bool(good.p_value > 0.05), bool(bad.p_value < 0.05)
        (True, True)
    """
    x = as_matrix("samples", samples, min_rows=4)
    s = as_matrix("scores", scores, min_rows=4).astype(x.dtype)
    same_shape("samples", x, "scores", s)
    check_count("num_bootstrap", num_bootstrap, 1)
    check_count("block_size", block_size, 1)
    if not 0 < flip_probability <= 1:
        raise ValueError(f"`flip_probability` must be in (0, 1]; got {flip_probability}.")
    length = _given_lengthscale(lengthscale, x.dtype)
    flips, block_size = jnp.asarray(flip_probability), min(int(block_size), x.shape[0])
    return _discrepancy(key, x, s, length, bool(whiten), int(num_bootstrap), flips, block_size)


def _given_lengthscale(lengthscale: float | str, dtype: Any) -> Array | None:
    """The lengthscale as an array; None for the median of the distances."""
    if isinstance(lengthscale, str):
        if lengthscale != "median":
            raise ValueError(f'`lengthscale` must be a number or "median"; got {lengthscale!r}.')
        return None
    if not lengthscale > 0:
        raise ValueError(f"`lengthscale` must be positive; got {lengthscale}.")
    return jnp.asarray(lengthscale, dtype)


def _in_own_frame(
    key: Array, x: Array, s: Array, lengthscale: Array | None, whiten: bool, *options: Any
) -> KSDResult:
    if whiten:
        white = whitening_frame(x)
        x, s = white.to(x), white.score_to(s)
    else:
        x = x - x.mean(0)  # distances by Gram products lose digits far from the origin
    return _test(key, x, s, median_distance(x) if lengthscale is None else lengthscale, *options)


_discrepancy = Compiled(_in_own_frame)


def _test(
    key: Array,
    x: Array,
    s: Array,
    lengthscale: Array,
    num_bootstrap: int,
    flip_probability: Array,
    block_size: int,
) -> KSDResult:
    n = x.shape[0]
    ones = jnp.ones((n, 1), x.dtype)
    weights = _signs(key, n, num_bootstrap, flip_probability, x.dtype)
    forms, trace = _quadratic_forms(
        x, s, jnp.concatenate([ones, weights], axis=1), lengthscale, block_size
    )
    pairs = n * (n - 1)
    u_statistic, null = forms[0] / pairs, forms[1:] / pairs
    above: Bool[Array, " B"] = null >= u_statistic
    return KSDResult(
        ksd=jnp.sqrt(jnp.maximum(forms[0] + trace, 0)) / n,
        u_statistic=u_statistic,
        p_value=(1 + jnp.sum(above)) / (1 + num_bootstrap),
        null_quantile=jnp.quantile(null, 0.95),
        null=null,
        lengthscale=lengthscale,
    )
