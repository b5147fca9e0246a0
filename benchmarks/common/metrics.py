"""How far draws are from reference draws, in units that a statistician reads.

Per scalar, with m, s, q the mean, standard deviation and quantile of the reference:
(m' - m)/s, (q'_05 - q_05)/s, (q'_95 - q_95)/s and s'/s; over pairs the largest |corr' - corr|;
jointly the sliced Wasserstein distance of the coordinates divided by s,

    SW = mean over unit directions w of  integral |F'_w^{-1}(u) - F_w^{-1}(u)| du,

(Rabin et al. 2012; Bonneel et al. 2015), less its floor: the SW of two independent halves of the
reference. Pure NumPy. Draws are `(N, P)`, references `(chains, N, P)`.
"""

from dataclasses import asdict, dataclass

import numpy as np

LIMITS = {"mean_shift": 0.1, "quantile_shift": 0.15, "sd_ratio": 0.1, "correlation": 0.1}
EXCESS_FACTOR = 0.5


@dataclass(frozen=True)
class Accuracy:
    """Worst deviations over scalars, the joint distance, and the deviations of each scalar."""

    mean_shift: float
    quantile_shift: float
    sd_ratio_low: float
    sd_ratio_high: float
    correlation: float
    sliced_wasserstein: float
    floor: float
    scalars: dict[str, dict[str, float]]

    @property
    def excess(self) -> float:
        """Return the sliced Wasserstein distance beyond that of two reference runs."""
        return self.sliced_wasserstein - self.floor

    def as_dict(self) -> dict[str, object]:
        """Return a dictionary that JSON can hold, with `excess` and the flags of `passes`."""
        return asdict(self) | {"excess": self.excess, "passes": self.passes()}

    def passes(self) -> dict[str, bool]:
        """Return, for each limit, whether every scalar (or pair) is within it."""
        width = LIMITS["sd_ratio"]
        return {
            "mean_shift": self.mean_shift <= LIMITS["mean_shift"],
            "quantile_shift": self.quantile_shift <= LIMITS["quantile_shift"],
            "sd_ratio": 1 - width <= self.sd_ratio_low and self.sd_ratio_high <= 1 + width,
            "correlation": self.correlation <= LIMITS["correlation"],
        }


def marginal_deviations(draws: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, 5% and 95% quantile shifts in reference sds, and sd ratios, each `(P,)`."""
    sd = reference.std(axis=0, ddof=1)
    probabilities = (0.05, 0.95)
    quantiles = np.quantile(draws, probabilities, axis=0)
    low, high = (quantiles - np.quantile(reference, probabilities, axis=0)) / sd
    return {
        "mean_shift": (draws.mean(axis=0) - reference.mean(axis=0)) / sd,
        "q05_shift": low,
        "q95_shift": high,
        "sd_ratio": draws.std(axis=0, ddof=1) / sd,
    }


def correlation_difference(draws: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest absolute difference over pairs of correlations (0 for one scalar)."""
    if draws.shape[1] == 1:
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.corrcoef(draws, rowvar=False) - np.corrcoef(reference, rowvar=False)
    return float(np.max(np.abs(difference)))


def directions(num_scalars: int, num_projections: int = 200, seed: int = 0) -> np.ndarray:
    """Return unit vectors `(num_projections, num_scalars)`, the same for every comparison."""
    w = np.random.default_rng(seed).normal(size=(num_projections, num_scalars))
    return w / np.linalg.norm(w, axis=1, keepdims=True)


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, sd: np.ndarray, order: int = 1) -> float:
    """Return the sliced Wasserstein distance of two equally large sets in units of `sd`.

    Order 1 is the default because it stays estimable under heavy tails. Its bias under equality
    is of order N^-1/2: compare with the floor.

    Args:
        x: draws `(N, P)`.
        y: draws `(N, P)`; equal sizes, so that sorting is the optimal coupling.
        sd: scale of each scalar, `(P,)`.
        order: 1 or 2; the p of W_p, averaged over directions before the root is taken.

    Raises:
        ValueError: when the shapes differ.
    """
    if x.shape != y.shape:
        raise ValueError(f"`x` and `y` must have equal shapes; got {x.shape} and {y.shape}.")
    w = directions(x.shape[1]).T
    gaps = np.abs(np.sort((x / sd) @ w, axis=0) - np.sort((y / sd) @ w, axis=0))
    return float(np.mean(gaps**order) ** (1 / order))


def distance_and_floor(draws: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return SW of draws from the reference, and of one half of the reference from the other.

    Both are taken at the size of half a reference, or half of the draws where those are fewer:
    the distance is the mean over the two halves.
    """
    chains = reference.shape[0] // 2
    first = reference[:chains].reshape(-1, reference.shape[-1])
    second = reference[chains : 2 * chains].reshape(-1, reference.shape[-1])
    size = min(len(first), len(draws) // 2)
    first, second = first[:size], second[:size]
    sd = reference.reshape(-1, reference.shape[-1]).std(axis=0, ddof=1)
    parts = (draws[:size], first), (draws[size : 2 * size], second)
    distance = np.mean([sliced_wasserstein(a, b, sd) for a, b in parts])
    return float(distance), sliced_wasserstein(first, second, sd)


def accuracy(draws: np.ndarray, reference: np.ndarray, names: list[str]) -> Accuracy:
    """Return all deviations of draws `(N, P)` from reference draws `(chains, n, P)`.

    Draws that are not finite give infinite deviations (a failure, never a pass).

    Args:
        draws: from the method, independent over rows.
        reference: even number of chains; halves of the chains are taken as independent runs.
        names: of the P scalars.
    """
    if reference.ndim != 3 or not draws.shape[1] == reference.shape[2] == len(names):
        raise ValueError(f"`draws` must be (N, {len(names)}); got {draws.shape}.")
    draws, reference = draws.astype(np.float64), reference.astype(np.float64)
    pooled = reference.reshape(-1, reference.shape[-1])
    if not np.all(np.isfinite(draws)):
        floor = distance_and_floor(pooled, reference)[1]
        inf = float("inf")
        return Accuracy(inf, inf, 0.0, inf, inf, inf, floor, {})
    shifts = marginal_deviations(draws, pooled)
    distance, floor = distance_and_floor(draws, reference)
    return Accuracy(
        mean_shift=_worst(shifts["mean_shift"]),
        quantile_shift=max(_worst(shifts["q05_shift"]), _worst(shifts["q95_shift"])),
        sd_ratio_low=float(np.min(shifts["sd_ratio"])),
        sd_ratio_high=float(np.max(shifts["sd_ratio"])),
        correlation=correlation_difference(draws, pooled),
        sliced_wasserstein=distance,
        floor=floor,
        scalars={n: {k: float(v[i]) for k, v in shifts.items()} for i, n in enumerate(names)},
    )


def _worst(values: np.ndarray) -> float:
    return float(np.max(np.abs(values)))
