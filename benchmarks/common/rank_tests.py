"""Are ranks uniform? A chi-square test and simultaneous bands for their empirical distribution.

In simulation-based calibration (Talts et al. 2018) the rank of a true value among L draws is
uniform on 0, 1, ..., L when the sampler is right. Of n ranks,

    count_k = #{rank < k} ~ Binomial(n, k / (L + 1)),   k = 1, ..., L,

at each k. Sailynoja, Burkner and Vehtari (2022) take the same two-sided tail probability at every
k, and simulate uniform ranks to find the level that makes the band hold at all k together. The
smallest tail probability of the ranks is therefore a test statistic, and its place among the
simulated ones a p-value.

Reference: Talts et al. (2018), arXiv:1804.06788; Sailynoja, Burkner and Vehtari (2022), Statistics
and Computing 32; Modrak et al. (2023), Bayesian Analysis 20 (ranks of the log likelihood).
"""

import functools

import numpy as np
from scipy import stats

NUM_SIMULATIONS = 10_000
BINS = 20


def chi_square(ranks: np.ndarray, num_ranks: int, bins: int = BINS) -> float:
    """Return the p-value of equal counts in `bins` bins of ranks 0, ..., num_ranks - 1.

    Raises:
        ValueError: when the bins would not hold equally many ranks.
    """
    if num_ranks % bins:
        raise ValueError(f"`bins` must divide {num_ranks} ranks; got {bins}.")
    counts = np.bincount(ranks * bins // num_ranks, minlength=bins)
    return float(stats.chisquare(counts).pvalue)


def counts_below(ranks: np.ndarray, num_ranks: int) -> np.ndarray:
    """Return how many of the ranks `(..., n)` are below 1, ..., num_ranks - 1."""
    flat = ranks.reshape(-1, ranks.shape[-1])
    cells = num_ranks * np.arange(len(flat))[:, None] + flat
    found = np.bincount(cells.ravel(), minlength=num_ranks * len(flat)).reshape(-1, num_ranks)
    return np.cumsum(found, axis=1)[:, :-1].reshape(*ranks.shape[:-1], num_ranks - 1)


def least_tail(ranks: np.ndarray, num_ranks: int) -> np.ndarray:
    """Return the smallest two-sided binomial tail of the counts of ranks `(..., n)`."""
    tail = tails(ranks.shape[-1], num_ranks)
    return np.min(tail[counts_below(ranks, num_ranks), np.arange(num_ranks - 1)], axis=-1)


@functools.cache
def tails(n: int, num_ranks: int) -> np.ndarray:
    """Return the two-sided tails `(n + 1, num_ranks - 1)` of each count below each rank."""
    share, counts = np.arange(1, num_ranks) / num_ranks, np.arange(n + 1)[:, None]
    lower, upper = stats.binom.cdf(counts, n, share), stats.binom.sf(counts - 1, n, share)
    return np.minimum(1.0, 2 * np.minimum(lower, upper))


@functools.cache
def simulated_tails(n: int, num_ranks: int, seed: int = 0) -> np.ndarray:
    """Return the statistic of `least_tail` for simulated uniform ranks, sorted."""
    rng = np.random.default_rng(seed)
    return np.sort(least_tail(rng.integers(num_ranks, size=(NUM_SIMULATIONS, n)), num_ranks))


def ecdf_test(ranks: np.ndarray, num_ranks: int) -> np.ndarray:
    """Return the p-value of the largest departure of ranks `(..., n)` from uniform."""
    null = simulated_tails(ranks.shape[-1], num_ranks)
    smaller = np.searchsorted(null, least_tail(ranks, num_ranks), side="right")
    return np.asarray((1 + smaller) / (1 + len(null)))


def band(n: int, num_ranks: int, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper limits `(num_ranks - 1,)` of counts that hold simultaneously."""
    level = np.quantile(simulated_tails(n, num_ranks), 1 - coverage)
    share = np.arange(1, num_ranks) / num_ranks
    return stats.binom.ppf(level / 2, n, share), stats.binom.isf(level / 2, n, share)


def holm(p_values: list[float]) -> list[float]:
    """Return p-values adjusted for their number, by Holm's method."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return adjusted[np.argsort(order)].tolist()
