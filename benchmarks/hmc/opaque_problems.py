"""Models in which one function of a few inputs is opaque, and that function for both kinds of user.

| name | latents | opaque, as a function of | truth |
|---|---|---|---|
| hares_lynxes | 8 | populations in 20 years, of four rates and two first populations | NUTS |
| cooling | 28 | the cooling curve of 24 bodies, of two coefficients | NUTS |
| saturation | 8 | a transformed predictor of 569 patients, of two parameters | NUTS |

Priors, transforms and likelihoods are the same for both; `host` is the opaque function in NumPy or
SciPy, `exact` the same function in JAX, for NUTS. Hares and lynxes are those of
examples/black_box.py (the solvers differ by less than 1e-5); the cooling data are simulated with a
fixed seed; patients are those of scikit-learn's breast cancer data.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from scipy.integrate import solve_ivp

from benchmarks.accuracy.posteriors import scalars
from benchmarks.hmc.lotka_volterra import lotka_volterra
from implicitppl.models import black_box

HARES = """30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6
           16.2 24.7"""
LYNXES = "4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6"
PELTS = np.array([HARES.split(), LYNXES.split()], float).T
YEARS = tuple(range(1, 21))

BODIES, TIMES, STEPS = 24, 10, 3
COOLING_TRUTH: dict[str, Any] = {"coefficients": np.log([0.15, 0.03]), "tau": 0.1, "sigma": 0.05}
PATIENT_COLUMNS = (1, 4, 8, 9)  # texture, smoothness, symmetry, fractal dimension
Curve = Callable[[Any], Array]


@dataclass(frozen=True)
class Problem:
    """A model of an opaque curve.

    Attributes:
        name: of the problem.
        model: `model(curve, *args)`, where `curve(inputs)` is the opaque function.
        host: that function without JAX; takes leading axes unless `sequential`.
        exact: the same in JAX.
        out: shape of its result.
        args: data.
        to_scalars: from draws of the sites to the named scalars that are compared.
        sequential: whether the host takes one point a call.
        reference_model: the same posterior in coordinates that suit NUTS, for the truth.
    """

    name: str
    model: Callable[..., None]
    host: Callable[[np.ndarray], np.ndarray]
    exact: Curve
    out: tuple[int, ...]
    args: tuple[Any, ...]
    to_scalars: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
    sequential: bool = False
    reference_model: Callable[..., None] | None = None


@dataclass
class Host:
    """The host function of a problem, counting the points it is asked for."""

    problem: Problem
    calls: int = field(default=0, compare=False)

    __hash__ = object.__hash__  # a black box is known by its function

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        self.calls += inputs.size // inputs.shape[-1]
        return self.problem.host(inputs.astype(float))

    def curve(self, inputs: Array) -> Array:
        """Return the black box at inputs of the model."""
        method = "sequential" if self.problem.sequential else "expand_dims"
        out = self.problem.out
        return black_box("curve", self, inputs, out=out, vmap_method=method, on_failure="reject")

    def model(self, *args: Any) -> None:
        """The problem's model with its curve opaque."""
        self.problem.model(self.curve, *args)


def hares_lynxes(curve: Curve, pelts: Array) -> None:
    """Populations follow Lotka and Volterra; pelts are populations with multiplicative noise."""
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=0.0).to_event(1))
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    first = jnp.log(z_init)
    log_z = jnp.concatenate([first[None], curve(jnp.concatenate([jnp.log(theta), first]))])
    numpyro.sample("pelts", dist.LogNormal(log_z, sigma).to_event(2), obs=pelts)


def populations(inputs: np.ndarray) -> np.ndarray:
    """Return log populations (20, 2), by LSODA, from logs of theta and z_init (6,)."""
    (a, b, c, d), start = np.exp(inputs[:4]).tolist(), inputs[4:]

    def change(_: float, x: np.ndarray) -> tuple[float, float]:
        return a - b * np.exp(x[1]), d * np.exp(x[0]) - c

    found = solve_ivp(change, (0, 20), start, "LSODA", YEARS, rtol=1e-6, atol=1e-6)
    if not found.success:
        raise RuntimeError(found.message)
    return found.y.T


def exact_populations(inputs: Array) -> Array:
    """Return the same by the fixed-step solver that JAX differentiates."""
    return lotka_volterra(jnp.exp(inputs[:4]), inputs[4:], YEARS)


def cooling(curve: Curve, y: Array, centred: bool = False) -> None:
    """Bodies cool alike, each with a level of its own: y_jt ~ N(log u(t) + tau z_j, sigma).

    The data say more about tau z_j than about z_j: centred, with tau z_j sampled, the posterior is
    the same and NUTS mixes better.
    """
    coefficients = numpyro.sample("coefficients", dist.Normal(-3.0, 1.0).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(0.3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.3))
    scale = tau if centred else 1.0
    z = numpyro.sample(
        "scaled" if centred else "z", dist.Normal(0.0, scale).expand([y.shape[0]]).to_event(1)
    )
    if centred:
        z = numpyro.deterministic("z", z / tau)
    mean = curve(coefficients) + tau * z[:, None]
    numpyro.sample("y", dist.Normal(mean, sigma).to_event(2), obs=y)


def slope(xp: ModuleType, x: Any, k: Any, r: Any) -> Any:
    """Return the derivative of x = log u: -k - r ((1 + u)^4 - 1) / u."""
    u = xp.exp(x)
    return -k - r * (4 + u * (6 + u * (4 + u)))


def step(xp: ModuleType, x: Any, k: Any, r: Any) -> Any:
    """Return log u a step later, by Runge and Kutta's method."""
    h = 1.0 / STEPS
    a = slope(xp, x, k, r)
    b = slope(xp, x + h / 2 * a, k, r)
    c = slope(xp, x + h / 2 * b, k, r)
    return x + h / 6 * (a + 2 * b + 2 * c + slope(xp, x + h * c, k, r))


def excess(inputs: np.ndarray) -> np.ndarray:
    """Return log u at times 1 to 10 `(..., 10)` from logs of k and r `(..., 2)`.

    u' = -k u - r ((1 + u)^4 - 1), u(0) = 1: convection and radiation, u the excess over the
    temperature of the room as a share of that; three steps for each time.
    """
    k, r = np.moveaxis(np.exp(np.minimum(inputs, 2.0)), -1, 0)
    path = [np.zeros_like(k)]
    for _ in range(TIMES * STEPS):
        path.append(step(np, path[-1], k, r))
    return np.stack(path[STEPS::STEPS], axis=-1)


def exact_excess(inputs: Array) -> Array:
    """Return the same in JAX, for one point."""
    k, r = jnp.exp(jnp.minimum(inputs, 2.0))

    def body(x: Array, _: None) -> tuple[Array, Array]:
        x = step(jnp, x, k, r)
        return x, x

    return jax.lax.scan(body, jnp.zeros_like(k), None, TIMES * STEPS)[1][STEPS - 1 :: STEPS]


def cooling_data() -> np.ndarray:
    """Return simulated logs of temperatures (24, 10)."""
    rng, truth = np.random.default_rng(0), COOLING_TRUTH
    level = truth["tau"] * rng.normal(size=(BODIES, 1))
    noise = truth["sigma"] * rng.normal(size=(BODIES, TIMES))
    return excess(truth["coefficients"]) + level + noise


def saturation(curve: Curve, x: Array, y: Array) -> None:
    """Logistic regression in which one predictor saturates, and four are linear."""
    shape = numpyro.sample("shape", dist.Normal(jnp.array([0.0, 1.5]), 0.5).to_event(1))
    level = numpyro.sample("level", dist.Normal(0.0, 5.0))
    effect = numpyro.sample("effect", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.5).expand([x.shape[1]]).to_event(1))
    logits = level + effect * (curve(shape) - 0.5) + x @ beta
    numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)


def hill(xp: ModuleType, log_dose: np.ndarray, inputs: Any) -> Any:
    """Return 1 / (1 + exp(-h (log dose - log c))), of log c and log h `(..., 2)`, for all doses."""
    power = xp.exp(xp.minimum(inputs[..., 1:], 4.0))
    return 0.5 + 0.5 * xp.tanh(0.5 * power * (log_dose - inputs[..., :1]))


@functools.cache
def patients() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log radius less its mean, the other predictors, standardised, and classes."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    radius, others = np.log(x[:, 0]), x[:, PATIENT_COLUMNS]
    others = (others - others.mean(axis=0)) / others.std(axis=0)
    return radius - radius.mean(), others, y.astype(float)


def problems() -> dict[str, Problem]:
    """Return the problems by name."""
    radius, others, classes = patients()
    found = (
        Problem(
            "hares_lynxes",
            hares_lynxes,
            populations,
            exact_populations,
            (20, 2),
            (jnp.asarray(PELTS),),
            scalars(theta=1, z_init=1, sigma=1),
            sequential=True,
        ),
        Problem(
            "cooling",
            cooling,
            excess,
            exact_excess,
            (TIMES,),
            (jnp.asarray(cooling_data()),),
            scalars(coefficients=1, tau=0, sigma=0, z=1),
            reference_model=functools.partial(cooling, centred=True),
        ),
        Problem(
            "saturation",
            saturation,
            functools.partial(hill, np, radius),
            functools.partial(hill, jnp, radius.astype(np.float32)),
            radius.shape,
            (jnp.asarray(others), jnp.asarray(classes)),
            scalars(shape=1, level=0, effect=0, beta=1),
        ),
    )
    return {problem.name: problem for problem in found}
