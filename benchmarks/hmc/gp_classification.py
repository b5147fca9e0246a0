"""Gaussian-process classification: data, an unbiased estimate of the evidence, and the joint model.

    f ~ N(0, s^2 (C + 1e-3 I)),  C_ij = exp(-1/2 sum_k (x_ik - x_jk)^2 / l_k^2),  y ~ Bernoulli(f)

with hyper-parameters theta = (log l_1, ..., log l_d, log s). The latent function is integrated out
by importance sampling (Filippone and Girolami 2014, Pseudo-marginal Bayesian inference for Gaussian
processes): in whitened coordinates, f = L v with L the Cholesky factor of the covariance,

    p(y | theta) = E[ p(y | L v) N(v; 0, I) / q(v) ],  v ~ q,

whatever the density q. Here q is Student's t with 50 degrees of freedom: a normal q has lighter
tails than the posterior, for which the variance of the weights may be infinite. Mean and covariance
are those of expectation propagation (Minka 2001; Rasmussen and Williams 2006, 3.6), a few parallel
sweeps from Laplace's approximation, or Laplace's own: the mode of v and the curvature there. The
posterior of a classifier leans away from its mode, so Laplace's weights are far more uneven. All in
NumPy and float64: to a sampler it is a host function without a gradient. A call costs
O(d N^2 + N^3 + K N^2).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from scipy.linalg import solve_triangular
from scipy.special import expit, gammaln, logsumexp

from implicitppl.models import black_box

RIDGE, DEGREES = 1e-3, 50.0
LENGTH_PRIOR, AMPLITUDE_PRIOR = (0.5, 1.0), (1.0, 1.0)  # of the logs; inputs are standardised
MAX_NEWTON, TOLERANCE = 30, 1e-6
SWEEPS = 4
CURVATURE = 0.25  # the largest of -log expit
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
ROWS = 150
COLUMNS = (0, 1, 4, 7)  # of breast_cancer: radius, texture, smoothness, concave points
UCI = {"energy": "energy.data", "yacht": "yacht_hydrodynamics.data"}
BUNDLED = ("iris", "breast_cancer")


@dataclass
class Evidence:
    """Estimates log p(y | theta), and counts how often.

    Attributes:
        x: (N, d) standardised inputs.
        y: (N,) classes, 0 or 1.
        num_particles: K, importance samples of one estimate.
        sweeps: of expectation propagation; with 0 the samples are those of Laplace's approximation.
        calls: estimates so far.
    """

    x: Float[np.ndarray, "N d"]
    y: Float[np.ndarray, " N"]
    num_particles: int = 64
    sweeps: int = SWEEPS
    calls: int = field(default=0, compare=False)

    __hash__ = object.__hash__  # a black box is known by its function

    def __call__(self, rng: np.random.Generator, theta: Float[np.ndarray, " D"]) -> float:
        """Return the log of an unbiased estimate of p(y | theta)."""
        self.calls += 1
        return float(logsumexp(self.log_weights(rng, theta)) - np.log(self.num_particles))

    def log_weights(self, rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
        """Return log p(y | L v) N(v; 0, I) / q(v) at K draws of q."""
        factor = np.linalg.cholesky(covariance(self.x, np.asarray(theta, float)))
        center, root = gaussian(factor, self.y, self.sweeps)
        size, shape = len(self.y), (len(self.y), self.num_particles)
        scale = np.sqrt(DEGREES / rng.chisquare(DEGREES, self.num_particles))
        e = scale * rng.normal(size=shape)
        v = center[:, None] + solve_triangular(root, e, lower=True, trans="T", check_finite=False)
        log_q = log_student(np.sum(e**2, axis=0), size) + np.sum(np.log(np.diag(root)))
        log_prior = -0.5 * np.sum(v**2, axis=0) - 0.5 * size * np.log(2 * np.pi)
        return log_bernoulli(self.y[:, None], factor @ v) + log_prior - log_q


def covariance(x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return s^2 (C + 1e-3 I)."""
    scaled = x / np.exp(theta[:-1])
    square = np.sum(scaled**2, axis=1)
    distance = square[:, None] + square - 2 * scaled @ scaled.T
    return np.exp(2 * theta[-1]) * (np.exp(-0.5 * distance) + RIDGE * np.eye(len(x)))


def log_student(square: np.ndarray, dimension: int) -> np.ndarray:
    """Return the log density of the standard t in `dimension` dimensions at |e|^2 = square."""
    half = 0.5 * (DEGREES + dimension)
    constant = gammaln(half) - gammaln(0.5 * DEGREES) - 0.5 * dimension * np.log(np.pi * DEGREES)
    return constant - half * np.log1p(square / DEGREES)


def log_bernoulli(y: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Return the log likelihood of classes with logits f, summed over the first axis."""
    return -np.sum(np.logaddexp(0.0, np.where(y > 0, -f, f)), axis=0)


def gaussian(factor: np.ndarray, y: np.ndarray, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of v, and the Cholesky factor of its precision I + L' diag(t) L.

    Every sweep replaces all sites exp(-t f^2 / 2 + n f) at once by those that give the tilted
    distributions (cavity times likelihood) their mean and variance. As the likelihood is
    log-concave with a curvature of at most 1/4, t is between 0 and 1/4, whatever the quadrature
    says. An estimate is unbiased wherever this ends.
    """
    mean, root = laplace(factor, y)
    f = factor @ mean
    p = expit(f)
    t, n = p * (1 - p), p * (1 - p) * f + y - p
    for _ in range(sweeps):
        half = solve_triangular(root, factor.T, lower=True, check_finite=False)
        variance = np.sum(half**2, axis=0)
        precision = 1 / variance - t
        cavity = ((factor @ mean) / variance - n) / precision
        tilted, spread = tilted_moments(y, cavity, 1 / precision)
        t = np.clip(1 / spread - precision, 0.0, CURVATURE)
        n = tilted * (precision + t) - cavity * precision
        root = np.linalg.cholesky(np.eye(len(y)) + factor.T @ (t[:, None] * factor))
        mean = solve(root, factor.T @ n)
    return mean, root


def tilted_moments(
    y: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return means and variances of N(f; mean, variance) Bernoulli(y; f), by quadrature."""
    f = mean[:, None] + np.sqrt(variance)[:, None] * NODES
    log_mass = np.log(WEIGHTS) - np.logaddexp(0.0, np.where(y[:, None] > 0, -f, f))
    mass = np.exp(log_mass - log_mass.max(axis=1, keepdims=True))
    mass /= mass.sum(axis=1, keepdims=True)
    first = np.sum(mass * f, axis=1)
    second = np.sum(mass * (f - first[:, None]) ** 2, axis=1)
    return first, np.maximum(second, 1 / (1 / variance + CURVATURE))


def solve(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (R R')^-1 b of a lower triangular R."""
    half = solve_triangular(root, b, lower=True, check_finite=False)
    return solve_triangular(root, half, lower=True, trans="T", check_finite=False)


def laplace(factor: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mode of v, and the Cholesky factor of I + L' W L there.

    Newton's method: (I + L' W L) v <- L' (W f + y - p), W = p (1 - p). An estimate is unbiased
    wherever this ends.
    """
    v = np.zeros(len(y))
    value = log_bernoulli(y, factor @ v)
    for _ in range(MAX_NEWTON):
        root, aim = newton(factor, y, v)
        v, better = line_search(factor, y, v, aim, value)
        if better - value < TOLERANCE:
            break
        value = better
    return v, root


def newton(factor: np.ndarray, y: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Cholesky factor of I + L' W L at v, and where Newton's method goes."""
    f = factor @ v
    p = expit(f)
    w = p * (1 - p)
    root = np.linalg.cholesky(np.eye(len(y)) + factor.T @ (w[:, None] * factor))
    return root, solve(root, factor.T @ (w * f + y - p))


def line_search(
    factor: np.ndarray, y: np.ndarray, v: np.ndarray, aim: np.ndarray, value: float
) -> tuple[np.ndarray, float]:
    """Return a point on the way to the aim at which the posterior is not less, and its value."""
    for power in range(10):
        new = v + 0.5**power * (aim - v)
        found = log_bernoulli(y, factor @ new) - 0.5 * new @ new
        if found >= value:
            return new, found
    return v, value


def log_prior(theta: np.ndarray) -> float:
    """Return the log prior density of theta, up to a constant."""
    means = np.r_[np.full(len(theta) - 1, LENGTH_PRIOR[0]), AMPLITUDE_PRIOR[0]]
    scales = np.r_[np.full(len(theta) - 1, LENGTH_PRIOR[1]), AMPLITUDE_PRIOR[1]]
    return float(-0.5 * np.sum(((theta - means) / scales) ** 2))


def hyper_parameters(num_inputs: int) -> Array:
    """Sample theta from its prior."""
    lengths = dist.Normal(*LENGTH_PRIOR).expand([num_inputs]).to_event(1)
    log_length = numpyro.sample("log_length", lengths)
    log_amplitude = numpyro.sample("log_amplitude", dist.Normal(*AMPLITUDE_PRIOR))
    return jnp.append(log_length, log_amplitude)


def pseudo_marginal(evidence: Evidence) -> None:
    """The posterior of theta with the estimate in place of the evidence."""
    theta = hyper_parameters(evidence.x.shape[1])
    value = black_box("evidence", evidence, theta, out=(), key=numpyro.prng_key())
    numpyro.factor("y", value)


def joint(x: Array, y: Array) -> None:
    """The same posterior with the whitened latent function, for NUTS."""
    theta = hyper_parameters(x.shape[1])
    v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    difference = (x[:, None] - x) / jnp.exp(theta[:-1])
    correlation = jnp.exp(-0.5 * jnp.sum(difference**2, axis=-1))
    factor = jnp.linalg.cholesky(correlation + RIDGE * jnp.eye(len(y)))
    f = jnp.exp(theta[-1]) * factor @ v
    numpyro.sample("y", dist.Bernoulli(logits=f).to_event(1), obs=y)


def load(name: str, data: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised inputs `(N, d)` and classes `(N,)`; at most 150 rows, drawn once.

    Raises:
        ValueError: when the name is unknown, or needs `data`.
    """
    if name not in (*BUNDLED, *UCI):
        raise ValueError(f"`name` must be one of {(*BUNDLED, *UCI)}; got {name!r}.")
    x, y = bundled(name) if name in BUNDLED else thresholded(name, data)
    chosen = np.sort(np.random.default_rng(0).permutation(len(y))[:ROWS])
    x, y = x[chosen].astype(float), y[chosen].astype(float)
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def bundled(name: str) -> tuple[Any, Any]:
    """Return inputs and classes of a data set of scikit-learn."""
    from sklearn import datasets

    if name == "iris":  # versicolor against virginica
        x, y = datasets.load_iris(return_X_y=True)
        return x[y > 0], y[y > 0] == 2
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return x[:, COLUMNS], y


def thresholded(name: str, data: Path | None) -> tuple[Any, Any]:
    """Return inputs of a regression data set, and whether its target is above the median."""
    if data is None:
        raise ValueError(f"`data` must name the folder of uci/ to run {name!r}; got None.")
    table = np.loadtxt(data / "uci" / UCI[name])
    return table[:, :-1], table[:, -1] > np.median(table[:, -1])
