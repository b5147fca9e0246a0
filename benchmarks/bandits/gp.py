"""Thompson sampling from Gaussian processes: exact, one for each arm, hyperparameters shared.

The kernel is Matern-3/2 of variance 1 plus linear of variance 1/D, independent over arms, with a
noise of sd .3, for rewards that are centred and scaled anew at every draw by those seen so far. The
lengthscale is the median distance of the first contexts, two for each arm. `refits` are numbers of
contexts after which all of it is fitted by the evidence, with a lengthscale for each input, on at
most 400 contexts.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial.distance import pdist

import implicitppl as ip
from benchmarks.bandits.agents import PULLS, Agent
from implicitppl.kernels import RBF, Kernel, Linear, Matern32

REFITS, MOST_ROWS, NUM_STEPS, RATE = (100, 400, 1000), 400, 100, 0.1
NOISE_SD, LEAST_NOISE, LEAST_SCALE = 0.3, 1e-2, 1e-6


@dataclass
class Arm:
    """Rows of one arm and the inverse W of the Cholesky factor of their covariance.

    `inverse` is (capacity, capacity), of which the leading square counts; `ones` and `rewards` are
    W 1 and W y, so that a change of the rewards' centre and scale costs O(n).
    """

    rows: np.ndarray
    inverse: np.ndarray
    ones: np.ndarray
    rewards: np.ndarray

    def project(self, cross: np.ndarray) -> np.ndarray:
        """Return W k (n,) for covariances with the whole history. O(n^2)."""
        n = len(self.rows)
        return self.inverse[:n, :n] @ cross[self.rows]

    def moments(
        self, cross: np.ndarray, prior: float, centre: float, scale: float
    ) -> tuple[float, float]:
        """Return mean and variance of the reward function, in units of `scale`."""
        v = self.project(cross)
        mean = v @ (self.rewards - centre * self.ones) / scale
        return float(mean), max(prior - float(v @ v), 0.0)

    def add(self, row: int, reward: float, cross: np.ndarray, diagonal: float) -> "Arm":
        """Return the arm with one more row, whose covariance with itself is `diagonal`. O(n^2)."""
        n, v = len(self.rows), self.project(cross)
        d = np.sqrt(diagonal - v @ v)
        inverse = self.inverse
        if n == len(inverse):
            inverse = np.zeros((2 * n, 2 * n))
            inverse[:n, :n] = self.inverse
        inverse[n, :n] = -(v @ inverse[:n, :n]) / d
        inverse[n, n] = 1 / d
        return Arm(
            np.append(self.rows, row),
            inverse,
            np.append(self.ones, (1 - v @ self.ones) / d),
            np.append(self.rewards, (reward - v @ self.rewards) / d),
        )


def empty() -> Arm:
    return Arm(np.zeros(0, int), np.zeros((8, 8)), np.zeros(0), np.zeros(0))


def arm_of(rows: np.ndarray, gram: np.ndarray, rewards: np.ndarray, noise: float) -> Arm:
    """Return the arm of these rows of the history, from scratch. O(n^3)."""
    n = len(rows)
    factor = np.linalg.cholesky(gram[np.ix_(rows, rows)] + noise**2 * np.eye(n))
    inverse = np.zeros((max(8, n), max(8, n)))
    inverse[:n, :n] = solve_triangular(factor, np.eye(n), lower=True)
    return Arm(rows, inverse, inverse[:n, :n].sum(axis=1), inverse[:n, :n] @ rewards[rows])


@dataclass
class Processes:
    """The history, padded to the horizon, and the posteriors of the arms."""

    contexts: np.ndarray
    choices: np.ndarray
    rewards: np.ndarray
    count: int
    arms: list[Arm]
    kernel: Kernel
    noise: float
    rng: np.random.Generator
    least_scale: float

    def scaling(self) -> tuple[float, float]:
        """Return centre and scale of the rewards seen."""
        seen = self.rewards[: self.count]
        return float(seen.mean()), max(float(seen.std()), self.least_scale)


def kernel_of(contexts: np.ndarray) -> Kernel:
    """Return the kernel whose lengthscale is the median distance of these contexts."""
    length, num_inputs = np.median(pdist(contexts)), contexts.shape[1]
    return Matern32(jnp.full(num_inputs, length)) + Linear(1 / num_inputs)


@eqx.filter_jit
def covariances(kernel: Kernel, history: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return covariances of one context with the history (T,), and with itself."""
    return kernel.gram(history, x[None])[:, 0], kernel(x, x)


@eqx.filter_jit
def gram(kernel: Kernel, history: jax.Array) -> jax.Array:
    return kernel.gram(history)


def gaussian_process(refits: tuple[int, ...] = (), least_scale: float = LEAST_SCALE) -> Agent:
    """Return Thompson sampling from one draw of every arm's function at the context.

    Rewards are divided by their standard deviation so far, or by `least_scale` if that is more.
    """

    def init(num_arms: int, num_inputs: int, horizon: int, seed: int) -> Processes:
        history = np.zeros((horizon, num_inputs)), np.zeros(horizon, int), np.zeros(horizon)
        arms = [empty() for _ in range(num_arms)]
        rng = np.random.default_rng(seed)
        kernel = kernel_of(rng.standard_normal((100, num_inputs)))  # until contexts are known
        return Processes(*history, 0, arms, kernel, NOISE_SD, rng, least_scale)

    def act(state: Processes, context: np.ndarray) -> int:
        cross, prior = (np.asarray(a) for a in covariances(state.kernel, state.contexts, context))
        scaling = state.scaling()
        found = np.array([arm.moments(cross, float(prior), *scaling) for arm in state.arms])
        noise = state.rng.standard_normal(len(found))
        return int(np.argmax(found[:, 0] + np.sqrt(found[:, 1]) * noise))

    def update(state: Processes, context: np.ndarray, arm: int, reward: float) -> Processes:
        cross, prior = (np.asarray(a) for a in covariances(state.kernel, state.contexts, context))
        row, state.count = state.count, state.count + 1
        state.contexts[row], state.choices[row], state.rewards[row] = context, arm, reward
        diagonal = float(prior) + state.noise**2
        state.arms[arm] = state.arms[arm].add(row, reward, cross, diagonal)
        if state.count == PULLS * len(state.arms):
            state.kernel = kernel_of(state.contexts[: state.count])
            return rebuilt(state)
        return rebuilt(refitted(state)) if state.count in refits else state

    return Agent(init, act, update)


def rebuilt(state: Processes) -> Processes:
    """Return the state whose arms are those of its kernel and noise. O(T^2 + sum of n^3)."""
    covariance = np.asarray(gram(state.kernel, state.contexts))
    chosen = state.choices[: state.count]
    state.arms = [
        arm_of(np.flatnonzero(chosen == arm), covariance, state.rewards, state.noise)
        for arm in range(len(state.arms))
    ]
    return state


def refitted(state: Processes) -> Processes:
    """Return the state with kernel and noise of the highest evidence, over all arms together."""
    num_inputs, size = state.contexts.shape[1], min(MOST_ROWS, len(state.contexts))
    rows = state.rng.permutation(state.count)[:size]
    centre, scale = state.scaling()
    x, y = np.zeros((size, num_inputs + 1)), np.zeros(size)
    x[: len(rows)] = np.column_stack([state.contexts[rows], state.choices[rows]])
    y[: len(rows)] = (state.rewards[rows] - centre) / scale
    # A lengthscale far below 1 over the number of the arm: independent between arms.
    same_arm = RBF(1e-3).on([num_inputs])
    process = ip.gp.GaussianProcess(state.kernel.on(list(range(num_inputs))) * same_arm)
    held = [name for name in ip.kernels.parameters(process) if name.startswith("kernel.second")]
    found = ip.gp.fit(
        process,
        x,
        y,
        max(state.noise, LEAST_NOISE),
        observed=np.arange(size) < len(rows),
        num_steps=NUM_STEPS,
        learning_rate=RATE,
        fixed=held,
    )
    state.kernel = found.process.kernel.first.kernel
    state.noise = max(float(found.noise_scale), LEAST_NOISE)
    return state
