"""Errors on standard densities against measured figures, and the memory of a large fit.

Baselines: mean squared error for each coordinate, 1000 fresh queries, mean of three data sets, of
SSGE as published, with 99% of the mass: normal N(0, I); banana x1 ~ N(0, 100),
x2 += 0.03 (x1^2 - 100); mixture of N(+-2 e1, I).
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score import SSGE, Gaussian, Stein, select

Draw = tuple[np.ndarray, np.ndarray]


def _normal(rng: np.random.Generator, num: int, dimension: int) -> Draw:
    x = rng.normal(size=(num, dimension))
    return x, -x


def _banana(rng: np.random.Generator, num: int, dimension: int) -> Draw:
    z = rng.normal(size=(num, dimension))
    x = z.copy()
    x[:, 0] = 10 * z[:, 0]
    x[:, 1] = z[:, 1] + 0.03 * (x[:, 0] ** 2 - 100)
    score = -z
    score[:, 0] = -x[:, 0] / 100 + z[:, 1] * 0.06 * x[:, 0]
    return x, score


def _mixture(rng: np.random.Generator, num: int, dimension: int) -> Draw:
    x = rng.normal(size=(num, dimension))
    x[:, 0] += 2 * rng.choice([-1, 1], size=num)
    score = -x
    score[:, 0] += 2 * np.tanh(2 * x[:, 0])
    return x, score


TARGETS = {"normal": _normal, "banana": _banana, "mixture": _mixture}


def _errors(estimator, target: str, num: int, dimension: int, *factors: float) -> np.ndarray:
    """Return the errors (3,) of the scores, or of the scores times each factor (F, 3)."""
    values = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, _ = TARGETS[target](rng, num, dimension)
        queries, truth = TARGETS[target](rng, 1000, dimension)
        scores = np.asarray(estimator.fit(jnp.asarray(x, jnp.float32))(queries))
        errors = [np.mean((factor * scores - truth) ** 2) for factor in factors or (1.0,)]
        values.append(errors if factors else errors[0])
    return np.array(values).T


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("target", "num", "dimension", "baseline"),
    [
        ("normal", 100, 2, 0.135),
        ("banana", 100, 2, 0.659),
        ("mixture", 100, 2, 0.159),
        ("normal", 500, 10, 0.208),
        ("banana", 500, 10, 0.132),
        ("mixture", 500, 10, 0.202),
    ],
)
def test_ssge_reaches_the_published_estimator(target, num, dimension, baseline):
    # Three data sets of a heavy-tailed error: 30% or 3 standard errors, whichever is larger.
    errors = _errors(SSGE(), target, num, dimension)
    tolerance = max(0.3 * baseline, 3 * errors.std(ddof=1) / np.sqrt(3))
    assert errors.mean() < baseline + tolerance
    if target == "normal":  # power: the same bound rejects an estimate that has the wrong sign
        assert _errors(SSGE(), target, num, dimension, -1.0).mean() > baseline + tolerance


@pytest.mark.statistical
def test_slope_on_fresh_points_with_a_gaussian_reference():
    # Normal, M = 500, D = 10: relative L2 error below 0.1 and slope within 0.1 of 1 for the
    # smoother estimators; an estimate shrunk by half fails both.
    rng = np.random.default_rng(0)
    x, _ = _normal(rng, 500, 10)
    queries, truth = _normal(rng, 2000, 10)
    for estimator in (
        Gaussian(),
        Stein(reference="gaussian", ridge=10.0),
        SSGE(reference="gaussian", explained=0.8, lengthscale_factor=2.0),
    ):
        scores = np.asarray(estimator.fit(jnp.asarray(x, jnp.float32))(queries))
        for factor, passes in ((1.0, True), (0.5, False)):
            slope = factor * np.sum(scores * truth) / np.sum(truth**2)
            error = np.sum((factor * scores - truth) ** 2) / np.sum(truth**2)
            assert (abs(slope - 1) < 0.1) == passes
            assert (error < 0.1) == passes


@pytest.mark.statistical
def test_error_falls_with_the_number_of_samples():
    for target in TARGETS:
        errors = [_errors(SSGE(), target, num, 10).mean() for num in (100, 500, 1200)]
        assert errors[0] > errors[1] > errors[2], target


class _Select:
    """`select` with the face of an estimator."""

    def fit(self, samples):
        return select(samples, key=jax.random.key(0))


SELECT_LIMITS = [
    ("normal", 500, 10, 0.03),
    ("banana", 500, 2, 0.07),
    ("banana", 500, 10, 0.08),
    ("mixture", 500, 2, 0.07),
    ("mixture", 500, 10, 0.07),
    ("normal", 2000, 10, 0.008),
    ("banana", 2000, 10, 0.04),
    ("mixture", 2000, 10, 0.045),
]
MORE_SAMPLES = {("normal", 2000), ("mixture", 2000)}
"""Cells that say little beside the others."""


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("target", "num", "dimension", "limit"),
    [
        pytest.param(*cell, marks=[pytest.mark.exhaustive] if cell[:2] in MORE_SAMPLES else [])
        for cell in SELECT_LIMITS
    ],
)
def test_select_is_within_the_limits(target, num, dimension, limit):
    # Limits of the best published or tuned figures; banana (500, 2) varies from .03 to .06 between
    # data sets. An estimate that is shrunk by half fails every one of them.
    right, halved = _errors(_Select(), target, num, dimension, 1.0, 0.5)
    assert right.mean() < limit
    assert halved.mean() > limit


@pytest.mark.statistical
def test_select_off_the_samples_and_ssge_on_them():
    # Slope <s_hat, s> / <s, s> on a normal sample (100, 10): the light rule is nearly unbiased on
    # its own particles and half as large again elsewhere; the held-out choice is right elsewhere.
    # A guide trained with the first on fresh points would inflate by that half.
    on: dict[str, list[float]] = {"ssge": [], "select": []}
    off: dict[str, list[float]] = {"ssge": [], "select": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, truth = _normal(rng, 100, 10)
        queries, fresh = _normal(rng, 1000, 10)
        for name, estimator in (("ssge", SSGE()), ("select", _Select())):
            fitted = estimator.fit(jnp.asarray(x, jnp.float32))
            on[name].append(np.sum(np.asarray(fitted(x)) * truth) / np.sum(truth**2))
            off[name].append(np.sum(np.asarray(fitted(queries)) * fresh) / np.sum(fresh**2))
    assert abs(np.mean(on["ssge"]) - 1) < 0.1
    assert np.mean(off["ssge"]) > 1.25
    assert abs(np.mean(off["select"]) - 1) < 0.1


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [_Select(), SSGE(reference="gaussian", ridge=1.0)])
def test_float32_is_as_accurate_as_float64(estimator):
    for target in TARGETS:
        single: list[float] = []
        double: list[float] = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            x, _ = TARGETS[target](rng, 200, 3)
            queries, truth = TARGETS[target](rng, 1000, 3)
            for found, precise in ((single, False), (double, True)):
                with jax.enable_x64(precise):
                    dtype = jnp.float64 if precise else jnp.float32
                    scores = estimator.fit(jnp.asarray(x, dtype))(jnp.asarray(queries, dtype))
                    found.append(np.mean((np.asarray(scores) - truth) ** 2))
        assert np.mean(single) < 1.05 * np.mean(double), target


# VmHWM, not resource.getrusage: a child inherits the peak that getrusage reports for its parent.
_MEMORY = """
import jax, jax.numpy as jnp
from implicitppl.score import SSGE

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


x = jax.random.normal(jax.random.key(0), (5000, 20)).block_until_ready()
idle = peak()
fitted = SSGE().fit(x)
jax.block_until_ready(fitted.parts[-1].coefficients)
used = peak() - idle
queries = jax.random.normal(jax.random.key(1), (1000, 20))
print(used / 1e6, float(jnp.mean((fitted(queries) + queries) ** 2)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_fit_with_5000_samples():
    output = subprocess.run(
        [sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True, timeout=300
    )
    gigabytes, error = map(float, output.stdout.split())
    assert 0.05 < gigabytes < 1.5  # the Gram matrix alone is 0.1: the measurement sees it
    assert error < 0.05


def test_lengthscale_uses_samples_only():
    x, _ = _normal(np.random.default_rng(0), 50, 2)
    fitted = SSGE().fit(jnp.asarray(x, jnp.float32))
    before = fitted(np.zeros((1, 2)))
    fitted(np.full((100, 2), 50.0))
    np.testing.assert_array_equal(fitted(np.zeros((1, 2))), before)
    expected = float(jax.jit(median_lengthscale)(jnp.asarray(x, jnp.float32)))
    assert float(fitted.info.lengthscale) == pytest.approx(expected, rel=1e-5)
