"""Stein slopes: moments that integration by parts fixes for the exact posterior.

With the target score `g = grad log p` and draws `z ~ q`, `q = p` implies, for every direction `i`,

    E[g_i] = 0,        slope_i = -E[g_i (z_i - m_i)] = 1,

Stein's identity `E_p[g_i f] = -E_p[df / dz_i]` with `f = 1` and `f = z_i - m_i`. For a Gaussian
target of covariance `S` and draws of covariance `C` the matrix `-E[g (z - m)^T]` is `S^-1 C`: a
slope of 1.44 along a direction says that the draws are 1.2 times too wide there, .64 that they are
.8 times as wide.

Shapes: samples and scores `(N, D)`, unconstrained coordinates. Time `O(N D^2 + D^3)`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import as_matrix, same_shape
from implicitppl._core.frames import whitening_frame
from implicitppl._train.programs import ONCE, Compiled


class SteinSlopes(NamedTuple):
    """Stein slopes and mean scores, with standard errors of `N` independent draws.

    `slope`, `slope_se` `(D,)`: per coordinate, 1 under the target. `mean`, `mean_se` `(D,)`: mean
    whitened score, 0 under the target. `low_*` and `high_*`: slope along the whitened directions in
    which one half of the draws has the smallest and largest slope, evaluated on the other half, so
    that the choice of direction does not bias it.
    """

    slope: Float[Array, " D"]
    slope_se: Float[Array, " D"]
    mean: Float[Array, " D"]
    mean_se: Float[Array, " D"]
    low_slope: Float[Array, ""]
    low_se: Float[Array, ""]
    high_slope: Float[Array, ""]
    high_se: Float[Array, ""]

    @property
    def z_scores(self) -> Float[Array, " D"]:
        """`(slope - 1) / se` per coordinate."""
        return (self.slope - 1) / self.slope_se


class ScoreSlope(NamedTuple):
    """Slope of an estimated score on the target score, and its standard error."""

    slope: Float[Array, ""]
    se: Float[Array, ""]


def stein_slopes(scores: Float[Array, "N D"], samples: Float[Array, "N D"]) -> SteinSlopes:
    """Slopes `-E[g_i (z_i - m_i)]`, 1 for draws from the target, with standard errors.

    What it sees: wrong scale (slope) and wrong location (mean score), coordinate by coordinate and
    along the worst direction, whatever the shape of the target. What it cannot see: the weights of
    separated modes (scores are local), and a wrong shape with the right linear moments, e.g. a
    Gaussian that minimises KL(q, p) exactly has slopes of 1. Use fresh draws, never the ones a
    score was fitted on. Very heavy-tailed scores make the standard error itself uncertain.

    Args:
        scores: gradient of the target log density at each draw.
        samples: independent draws in the same unconstrained coordinates.

    Returns:
        `SteinSlopes`; `(slope - 1) / slope_se` is standard normal under the target.

    Raises:
        ValueError: wrong shape, NaN or infinity, fewer than eight draws.

    Reference:
        Stein's identity as in Gorham and Mackey 2017 (arXiv 1703.01717), section 2.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics import stein_slopes
        >>> z = 0.8 * jax.random.normal(jax.random.key(0), (4000, 1))   # target: N(0, 1)
        >>> round(float(stein_slopes(-z, z).slope[0]), 1)
        0.6
    """
    z = as_matrix("samples", samples, min_rows=8)
    g = as_matrix("scores", scores, min_rows=8).astype(z.dtype)
    same_shape("samples", z, "scores", g)
    return _compiled_slopes(g, z)


def _slopes(g: Array, z: Array) -> SteinSlopes:
    n = z.shape[0]
    white = whitening_frame(z)
    u, h = white.to(z), white.score_to(g)
    slope, slope_se = _slope(g, z - z.mean(0))
    low, high = _extreme_directions(h[: n // 2], u[: n // 2])
    test_h, test_u = h[n // 2 :], u[n // 2 :]
    low_slope, low_se = _slope((test_h @ low)[:, None], (test_u @ low)[:, None])
    high_slope, high_se = _slope((test_h @ high)[:, None], (test_u @ high)[:, None])
    root = jnp.sqrt(jnp.asarray(n, z.dtype))
    return SteinSlopes(
        slope,
        slope_se,
        h.mean(0),
        h.std(0, ddof=1) / root,
        low_slope[0],
        low_se[0],
        high_slope[0],
        high_se[0],
    )


_compiled_slopes = Compiled(_slopes, ONCE)


def _slope(g: Array, z: Array) -> tuple[Array, Array]:
    """`-cov(g_i, z_i)` per column; its influence `(g - gbar)(zbar - z)` gives the error."""
    n = g.shape[0]
    influence = -(g - g.mean(0)) * (z - z.mean(0))
    slope = influence.sum(0) / (n - 1)
    return slope, influence.std(0, ddof=1) / jnp.sqrt(jnp.asarray(n, g.dtype))


def _extreme_directions(h: Array, u: Array) -> tuple[Array, Array]:
    """Unit eigenvectors of the symmetric part of `-cov(h, u)` with the least and greatest slope."""
    a = -(h - h.mean(0)).T @ (u - u.mean(0)) / h.shape[0]
    vectors = jnp.linalg.eigh((a + a.T) / 2)[1]
    return vectors[:, 0], vectors[:, -1]


def score_slope(
    estimated: Float[Array, "N D"], scores: Float[Array, "N D"], samples: Float[Array, "N D"]
) -> ScoreSlope:
    """Slope `<s, g> / <g, g>` of an estimated score `s` of the guide on the target score `g`.

    Inner products are means over draws, in whitened coordinates. Fitted on one set of draws and
    evaluated on fresh ones, it is 1 if the guide is the target and the estimate is right. A
    Gaussian guide with `r` times the target's variance in every direction has `1 / r`. It cannot
    tell an inaccurate estimate from an inaccurate guide: read it next to `stein_slopes`, which
    needs no estimate.

    Args:
        estimated: estimated score of the guide at the draws, e.g. `SSGE().fit(bank)(samples)`.
        scores: score of the target at the same draws.
        samples: the draws, fresh ones; they define the whitened inner product.

    Returns:
        `ScoreSlope(slope, se)`, `se` by the delta method for independent draws.

    Raises:
        ValueError: shapes differ, NaN or infinity.

    Reference:
        The ratio estimator is standard; Shi, Sun, Zhu 2018 (arXiv 1806.02925) give the score
        estimate.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics._statistics.slopes import score_slope
        >>> z = jax.random.normal(jax.random.key(0), (100, 3))
        >>> float(score_slope(-0.5 * z, -z, z).slope)
        0.5
    """
    z = as_matrix("samples", samples, min_rows=4)
    s = as_matrix("estimated", estimated, min_rows=4).astype(z.dtype)
    g = as_matrix("scores", scores, min_rows=4).astype(z.dtype)
    same_shape("samples", z, "estimated", s)
    same_shape("samples", z, "scores", g)
    white = whitening_frame(z)
    s, g = white.score_to(s), white.score_to(g)
    top, bottom = jnp.sum(s * g, 1), jnp.sum(g * g, 1)
    slope = top.mean() / bottom.mean()
    residual = (top - slope * bottom) / bottom.mean()
    return ScoreSlope(slope, residual.std(ddof=1) / jnp.sqrt(jnp.asarray(z.shape[0], z.dtype)))
