"""Toy problems of functional inference, and the exact posteriors that they are judged by.

A problem is data in standard units, a prior over functions, and a network to start from. Priors
that are Gaussian processes have an exact posterior in closed form; that of the piecewise constant
prior is a Markov jump process, for which forward-backward over levels is exact up to their spacing.

Protocols: Sun et al. (2019), arXiv 1903.05779, section 5.1 and the authors' code.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from examples.functional_priors import steps_posterior
from implicitppl.gp import GaussianProcess, fit
from implicitppl.kernels import RBF, Linear, Periodic
from implicitppl.processes import (
    BayesianNetwork,
    ParametricProcess,
    PiecewiseConstant,
    PiecewiseLinear,
    Process,
)

KERNEL_STEPS, GRID = 500, 161
UNITS, SHARP, SLOPE = 8, 120.0, 0.2
SPACING = 0.65
"""Of bumps, in units of their standard deviation."""
EARLY, WIDE, LINE = math.exp(-5), math.exp(-3), math.exp(-2)
"""Initial deviations of weights."""
RATE, PIECES_NOISE = 3.0, 0.02


class OnFeatures(ParametricProcess):
    """A process of features of the inputs, which do not learn."""

    process: ParametricProcess
    features: Callable[[Array], Array] = eqx.field(static=True)

    def function(self, key: PRNGKeyArray) -> Callable[[Array], Array]:
        """Return one function, asked at the features."""
        values = self.process.function(key)
        return lambda x: values(self.features(x))


class Problem(NamedTuple):
    """Data, prior and network of one fit.

    Attributes:
        x, y: (N,) data; y in the units of the fit.
        noise: standard deviation of y.
        prior: a process.
        network: from a key to the guide's process.
        low, high: where functions are compared besides the data, and drawn.
        inner: the range in which posteriors are held to the closer target.
        exact: (2, G) mean and deviation of f on `grid`, or None where they are not known.
        exact_draws: (S, G), or None.
        log_evidence: exact, or NaN.
        prior_deviation: of f at the ends.
    """

    x: np.ndarray
    y: np.ndarray
    noise: float
    prior: Any
    network: Callable[[PRNGKeyArray], Process]
    low: float
    high: float
    inner: float
    exact: np.ndarray | None = None
    exact_draws: np.ndarray | None = None
    log_evidence: float = math.nan
    prior_deviation: float = math.nan

    @property
    def grid(self) -> np.ndarray:
        """(G,) points from end to end."""
        return np.linspace(self.low, self.high, GRID)


def observed(
    problem: Problem, kernel: Any, steps: int, fixed: tuple[str, ...] = ("noise_scale",)
) -> tuple[Problem, Any]:
    """Return the problem with the fitted kernel as its prior, and the kernel."""
    start = GaussianProcess(kernel)
    found = fit(start, problem.x, problem.y, problem.noise, num_steps=steps, fixed=fixed)
    values = found.process.condition(problem.x, problem.y, found.noise_scale)(problem.grid)
    exact = np.stack([np.asarray(values.mean), np.sqrt(np.asarray(values.variance))])
    ends = jnp.asarray([problem.low, problem.high])[:, None]
    deviation = float(jnp.sqrt(jnp.mean(found.process.moments(ends)[1])))
    drawn = np.asarray(values.sample(jax.random.key(0), (300,)))
    told = problem._replace(
        prior=found.process,
        exact=exact,
        exact_draws=drawn,
        log_evidence=float(found.log_evidence),
        prior_deviation=deviation,
    )
    return told, found.process.kernel


def cubic(steps: int = KERNEL_STEPS) -> Problem:
    """x^3 with a gap: 10 points on either side, noise 3; y is divided by its deviation."""
    rng = np.random.default_rng(0)
    x = np.sort(np.concatenate([rng.uniform(-4, -1, 10), rng.uniform(1, 4, 10)]))
    y = x**3 + 3 * rng.normal(size=20)
    scale = y.std()

    start = Problem(x, y / scale, 3 / scale, None, step_network, -6, 6, 4)
    found, kernel = observed(start, Linear() + RBF(2.0), steps)

    def network(key: PRNGKeyArray) -> Process:
        line = BayesianNetwork(1, 1, 0, key=key, initial_scale=LINE)
        return line + bump_network(key, kernel.second, 8.0)

    return found._replace(network=network)


def sine(prior: str, steps: int = KERNEL_STEPS) -> Problem:
    """2 sin 4x with a gap, noise .2, under a periodic or an RBF prior of fitted parameters."""
    rng = np.random.default_rng(1)
    x = np.sort(np.concatenate([rng.uniform(-2, -0.5, 10), rng.uniform(0.5, 2, 10)]))
    y = 2 * np.sin(4 * x) + 0.2 * rng.normal(size=20)

    start = Problem(x, y, 0.2, None, step_network, -5, 5, 2)
    if prior == "rbf":
        found, kernel = observed(start, RBF(0.5), steps)
        return found._replace(network=partial(bump_network, kernel=kernel, reach=6.0))
    found, kernel = observed(start, Periodic(1.0, period=1.5), steps)
    period = float(kernel.period)

    def waves(x: Array) -> Array:
        phase = (2 * math.pi / period) * x
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)

    def network(key: PRNGKeyArray) -> ParametricProcess:
        return OnFeatures(
            BayesianNetwork(2, 50, 1, key=key, activation=jnp.tanh, initial_scale=EARLY), waves
        )

    return found._replace(network=network)


def pieces(prior: str, steps: int = KERNEL_STEPS) -> Problem:
    """20 points in [0, .2] at level .3 and 20 in [.8, 1] at .7, under three priors."""
    rng = np.random.default_rng(2)
    x = np.sort(np.concatenate([rng.uniform(0, 0.2, 20), rng.uniform(0.8, 1, 20)]))
    truth: Any = PiecewiseLinear() if prior == "linear" else PiecewiseConstant()
    y = np.where(x < 0.5, 0.3, 0.7) + PIECES_NOISE * rng.normal(size=x.size)
    start = Problem(x, y, PIECES_NOISE, truth, step_network, 0, 1, 1)
    if prior == "rbf":
        found, kernel = observed(start, RBF(0.3), steps)
        return found._replace(network=partial(bump_network, kernel=kernel, reach=1.3))
    if prior == "linear":
        return start._replace(prior_deviation=math.sqrt(1 / 12))
    levels = (0.0, 1.0)
    found = steps_posterior(x, y, start.noise, start.grid, RATE, levels, num_draws=300)
    exact = np.stack([found.mean, found.deviation])
    return start._replace(
        exact=exact,
        exact_draws=found.draws,
        log_evidence=found.log_evidence,
        prior_deviation=math.sqrt(1 / 12),
    )


def step_network(key: PRNGKeyArray) -> ParametricProcess:
    """Return a layer of a few tanh units spread over [0, 1], which can become sharp."""
    network = BayesianNetwork(1, UNITS, 1, key=key, activation=jnp.tanh, initial_scale=WIDE)
    return OnFeatures(_placed(network, SLOPE, SLOPE * SHARP * jnp.linspace(0, 1, UNITS)), _sharp)


def bump_network(key: PRNGKeyArray, kernel: RBF, reach: float) -> ParametricProcess:
    """Return a layer of Gaussian bumps spread over [-reach, reach].

    With independent weights it is the Gaussian process of the kernel, but for the spaces between
    the bumps. Closer bumps have weights that depend on each other given data, which these have not.
    """
    steep = math.sqrt(2) / float(kernel.lengthscale)
    width = math.ceil(2 * reach * steep / SPACING)
    spacing = 2 * reach * steep / (width - 1)
    network = BayesianNetwork(1, width, 1, key=key, activation=_bump, initial_scale=EARLY)
    network = _placed(network, 1.0, steep * jnp.linspace(-reach, reach, width))
    # The squares of bumps, `spacing` apart, add up to sqrt(pi) / spacing everywhere.
    scale = math.sqrt(float(kernel.variance) * spacing / math.sqrt(math.pi))
    scales = jnp.full((1, width), math.log(scale))
    network = eqx.tree_at(lambda n: n.layers[1].weight_log_scale, network, scales)
    return OnFeatures(network, lambda x: steep * x)


def _placed(network: BayesianNetwork, slope: float, places: Array) -> BayesianNetwork:
    """Return the network with hidden units of that slope, centred at places over the slope."""
    slopes = jnp.full_like(network.layers[0].weight, slope)
    return eqx.tree_at(lambda n: (n.layers[0].weight, n.layers[0].bias), network, (slopes, -places))


def _sharp(x: Array) -> Array:
    return SHARP * x


def _bump(u: Array) -> Array:
    return jnp.exp(-0.5 * u * u)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "cubic": cubic,
    "sine, periodic prior": lambda steps: sine("periodic", steps),
    "sine, RBF prior": lambda steps: sine("rbf", steps),
    "pieces, constant prior": lambda steps: pieces("constant", steps),
    "pieces, RBF prior": lambda steps: pieces("rbf", steps),
    "pieces, linear prior": lambda steps: pieces("linear", steps),
}
