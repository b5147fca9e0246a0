"""Regression data in the published splits: 90/10, seeds 1 to 10, standardised by the training rows.

Sun et al. (2018), arXiv 1806.04326, section 5.1, as in the authors' code.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = {
    "yacht": "yacht_hydrodynamics.data",
    "energy": "energy.data",
    "concrete": "concrete.data",
    "kin8nm": "kin8nm.data",
    "protein": "protein.data",
}
BUNDLED = "diabetes"
TEST_SHARE = 0.1


class Split(NamedTuple):
    """One split of a data set; everything is in units of the training rows' standard deviations.

    Attributes:
        name, seed: which.
        x, y: training rows, (N, D) and (N,).
        x_test, y_test: test rows.
        scale: standard deviation of the training outputs, in the data's units.
    """

    name: str
    seed: int
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: float


def table(name: str, data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and outputs as they are.

    Raises:
        ValueError: if the data are not bundled with scikit-learn and `data` is None.
    """
    if name == BUNDLED:
        from sklearn.datasets import load_diabetes

        return load_diabetes(return_X_y=True)
    if data is None:
        raise ValueError(f"`--data` must name the folder of uci/{FILES[name]}; got None.")
    rows = np.loadtxt(data / "uci" / FILES[name])
    return rows[:, :-1], rows[:, -1]


def split(name: str, seed: int, data: Path | None = None, max_train: int | None = None) -> Split:
    """Return the split of that seed, in float64; of its training rows at most the first so many."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(*table(name, data), test_size=TEST_SHARE, random_state=seed)
    x, x_test, y, y_test = parts
    x, y = x[:max_train], y[:max_train]
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    middle, scale = y.mean(), y.std()
    return Split(
        name,
        seed,
        (x - centre) / spread,
        (y - middle) / scale,
        (x_test - centre) / spread,
        (y_test - middle) / scale,
        float(scale),
    )


def median_lengthscales(x: np.ndarray, max_rows: int = 2000) -> np.ndarray:
    """Return sqrt(D) times the median distance of two rows in each column, 1 where that is 0."""
    rows = x[np.linspace(0, len(x) - 1, min(len(x), max_rows)).round().astype(int)]
    first, second = np.triu_indices(len(rows), 1)
    medians = np.array([np.median(np.abs(column[first] - column[second])) for column in rows.T])
    length = np.sqrt(x.shape[1]) * medians
    return np.where(length < 1e-6, 1.0, length)


def scores(split: Split, mean: np.ndarray, variance: np.ndarray) -> dict[str, float]:
    """Return RMSE and mean test log likelihood in the data's units, of noisy predictions."""
    from scipy.stats import norm

    log_densities = norm.logpdf(split.y_test, mean, np.sqrt(variance))
    return {
        "rmse": float(split.scale * np.sqrt(np.mean((mean - split.y_test) ** 2))),
        "ll": float(np.mean(log_densities) - np.log(split.scale)),
    }
