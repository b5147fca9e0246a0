"""Whether a surrogate's tails cover the target's: Pareto k-hat from draws of the target.

With the potential `U` of the target, that of the surrogate `U~` and its density `q ~ exp(-U~)`, the
importance weights are `w = exp(-(U - U~))`, `gap = U - U~`. Where `w` is large the surrogate says
"improbable" and the target does not: proposals from there are refused, and a chain stays for about
`w` iterations.

The draws come from the target, not from `q`. If `P_q(w > t) ~ t^(-1/k)`, then, in parts,

    P_pi(w > t)  =  E_q[w; w > t] / E_q[w]  ~  t^(1 - 1/k) / (1 - k),

so `1 / k_pi = 1 / k - 1` and `k = k_pi / (1 + k_pi)`. In a chain that sticks nothing is left of
that: its largest weights are a few states, each repeated hundreds of times, and a fit to them sees
a tail that ends there. So `k` is estimated under `q` directly: each draw of the target stands for
`1 / w` draws of `q`. A state that was kept for `L` iterations stands for `L / w` of them, which is
of the order of the others' however long it was kept.

Shapes: `(C, N)` for chains and draws.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from implicitppl.diagnostics._statistics.psis import k_hat_limit

LEVELS = (0.01, 0.05, 0.5, 0.95, 0.99)
FAR = math.log(10.0)  # a weight ten times the median one
_MIN_STATES = 25


class SurrogateTail(NamedTuple):
    """The importance weights `exp(-gap)` of a surrogate.

    Attributes:
        k_hat: Pareto shape of their tail under the surrogate's density. NaN for fewer than 25
            distinct states. Below 0.5 the mean stay in a state is finite.
        error: standard error of `k_hat` from independent states; those of a chain are fewer.
        limit: up to which `k_hat` is good.
        overlap: effective share of draws of the surrogate as an importance density, in (0, 1].
        num_states: distinct states in the tail that was fitted.
        quantiles: (5,) of `gap` minus its median, at 1, 5, 50, 95 and 99%.
        sticking: share of draws whose weight is more than ten times the median one.
        avoided: share of draws whose weight is less than a tenth of it; the surrogate proposes
            such states too often, which costs proposals and no bias.
    """

    k_hat: float
    error: float
    limit: float
    overlap: float
    num_states: int
    quantiles: Float[np.ndarray, "5"]
    sticking: float
    avoided: float


def stays(moved: Bool[np.ndarray, "C T"]) -> tuple[np.ndarray, np.ndarray]:
    """Where states begin, `(C, T + 1)` of bool, and for how many draws each is kept, `(R,)`."""
    first = np.ones((moved.shape[0], 1), bool)
    starts = np.concatenate([first, moved], axis=1)
    places = np.flatnonzero(starts.ravel())
    return starts, np.diff(np.append(places, starts.size))


def surrogate_tail(gap: Float[np.ndarray, "C N"], moved: Bool[np.ndarray, "C T"]) -> SurrogateTail:
    """The tail of the weights `exp(-gap)`, from draws of the target.

    Autocorrelation is not corrected for: states that were kept count once, but neighbours that
    differ still resemble each other, so that `error` is too small for chains that move little.

    Args:
        gap: true minus surrogate potential at every draw, up to a constant.
        moved: whether a draw differs from the one before it, `T = N - 1`.

    Returns:
        `SurrogateTail`; all NaN where no gap is finite (no surrogate was fitted).
    """
    starts, lengths = stays(moved)
    states = gap[starts]
    good = np.isfinite(states)
    states, lengths = states[good].astype(float), lengths[good]
    finite = gap[np.isfinite(gap)].astype(float)
    if not finite.size:
        nan = math.nan
        return SurrogateTail(nan, nan, nan, nan, 0, np.full(5, nan), nan, nan)
    centred = finite - np.median(finite)
    k, error, num = math.nan, math.nan, 0
    if states.size >= _MIN_STATES:
        k, error, num = _shape(-states, lengths, float(np.finfo(gap.dtype).eps))
    return SurrogateTail(
        k,
        error,
        k_hat_limit(states.size) if states.size >= _MIN_STATES else math.nan,
        _overlap(centred),
        num,
        np.quantile(centred, LEVELS),
        float(np.mean(centred < -FAR)),
        float(np.mean(centred > FAR)),
    )


def _overlap(gap: np.ndarray) -> float:
    """`E_q[w]^2 / E_q[w^2] = 1 / (E_pi[w] E_pi[1 / w])`."""
    log_means = [np.logaddexp.reduce(sign * gap) - math.log(gap.size) for sign in (-1, 1)]
    return float(np.exp(-sum(log_means)))


def _shape(log_weights: np.ndarray, lengths: np.ndarray, eps: float) -> tuple[float, float, int]:
    """Shape under the surrogate's density, its standard error, and the states in the tail."""
    size = log_weights.size
    m = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    order = np.argsort(log_weights)
    top, cut = log_weights[order[-m:]], log_weights[order[-m - 1]]
    if top[-1] - cut < 3 * math.sqrt(eps):  # rounding of two potentials is no tail
        return 0.0, 0.0, m
    excess = np.exp(top - top[-1]) - np.exp(cut - top[-1])
    share = lengths[order[-m:]] * np.exp(cut - top)
    excess, share = excess[excess > 0], share[excess > 0]
    if excess.size < 5:
        return math.inf, math.inf, excess.size
    k, num = pareto_shape(excess, share)
    return k, (1 + abs(k)) / math.sqrt(num), excess.size


def pareto_shape(
    excess: Float[np.ndarray, " M"], share: Float[np.ndarray, " M"]
) -> tuple[float, float]:
    """Shape of a generalised Pareto fitted to weighted ascending excesses, and their number.

    The estimator of `pareto_smooth`, with means weighted by `share` and for the number of points
    the effective one, `(sum share)^2 / sum share^2`. In NumPy, as the number of distinct states, a
    shape, differs from run to run, and JAX would compile for each.

    Reference:
        Zhang, Stephens 2009 (Technometrics 51); Vehtari et al. 2024 (arXiv 1507.02646), appendix C.
    """
    num = share.sum() ** 2 / (share**2).sum()
    share = share / share.sum()
    size = 30 + int(math.sqrt(num))
    quartile = excess[int(np.searchsorted(np.cumsum(share), 0.25))]
    grid = 1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))
    b = grid / (3 * quartile) + 1 / excess[-1]
    k = np.log1p(-b[:, None] * excess) @ share
    profile = num * (np.log(-b / k) - k - 1)
    weights = np.exp(profile - profile.max())
    weights[weights < 10 * np.finfo(float).eps * weights.sum()] = 0
    mean = (b * weights).sum() / weights.sum()
    shape = np.log1p(-mean * excess) @ share
    return float((num * shape + 5) / (num + 10)), float(num)
