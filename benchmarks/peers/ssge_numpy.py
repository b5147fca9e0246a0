"""SSGE as published (Shi, Sun, Zhu, ICML 2018), from its formulas, in NumPy and with its settings.

The lengthscale is the median of all pairwise distances, over samples and queries together and with
the zero diagonal; J counts the eigenvalues whose cumulative share is below .99, or is 6; every call
fits again. What the authors' code does, written anew: it is the comparator, not an example.
"""

import numpy as np
from worker import serve


def ssge(
    samples: np.ndarray, queries: np.ndarray, number: int | None = None, ridge: float = 0.0
) -> np.ndarray:
    """Return the estimated scores at the queries."""
    size = len(samples)
    both = np.concatenate([samples, queries])
    width = np.median(np.sqrt(_squared(both, both)))
    gram = np.exp(-_squared(samples, samples) / (2 * width**2))
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    values, vectors = values[::-1], vectors[:, ::-1]
    if number is None:
        number = max(1, int(np.sum(np.cumsum(values) / values.sum() < 0.99)))
    values, vectors = values[:number] + ridge, vectors[:, :number]
    # (1/M) sum_m grad_{x_m} k(x_i, x_m) = (1/(M width^2)) sum_m k_im (x_i - x_m)
    steps = (gram.sum(1, keepdims=True) * samples - gram @ samples) / (size * width**2)
    beta = -np.sqrt(size) / values[:, None] * (vectors.T @ steps)
    cross = np.exp(-_squared(queries, samples) / (2 * width**2))
    psi = np.sqrt(size) / values * (cross @ vectors)
    return psi @ beta


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cross = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.maximum(cross, 0)


if __name__ == "__main__":
    serve({"SSGE NumPy .99": ssge, "SSGE NumPy J=6": lambda x, q: ssge(x, q, 6)})
