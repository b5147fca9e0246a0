"""The full-rank Gaussian of lowest KL(q || p), by natural gradients in the Gaussian's own frame.

With z = m + L u, u ~ N(0, I), and g = L^T grad log p(z) the score in local coordinates, let

    d = mean(g + u),   B = sym mean((g + u) u^T).

By Stein's lemma E g u^T = L^T E[Hess log p] L, so B = I - Lambda with Lambda the expected precision
of p in units of q's. Where q is right, d = 0 and B = 0 without noise if p is Gaussian. A step of
size rho moves the precision from I towards Lambda and the mean by a Newton step,

    I - rho B = V diag(c) V^T,   m <- m + L V diag(c)^-1 V^T rho d,   L <- L V diag(c)^(-1/2) V^T,

which is natural-gradient descent in the mean and the precision (Khan and Lin 2017, section 4; Lin,
Schmidt and Khan 2020, section 4.1). Only gradients of log p are used, and every quantity lives in
local coordinates, so a linear change of the variables changes nothing: scales that are far apart
cost no more steps. c is kept above 1/2 (the scale grows by at most 1.4 in a step) and the move of
the mean inside a trust radius that grows while the loss falls.

Several starts are explored at a constant rho; the best is then settled with a falling one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

CHUNK = 25
CALM_CHUNKS = 4
SETTLE_STEPS = 300
RATE = 0.5
MIN_PRECISION = 0.5
TOLERANCE = 0.05
LOG_2PI = 1.8378770664093453

LogDensity = Callable[[Array, PRNGKeyArray], Array]


class GaussianFit(NamedTuple):
    """N(loc, scale_tril scale_tril^T), its loss in nats, and how it was found.

    `losses` (S,) are those of all starts; `converged` is whether the chosen one reached a plateau.
    """

    loc: Float[Array, " D"]
    scale_tril: Float[Array, "D D"]
    loss: Float[Array, ""]
    losses: Float[Array, " S"]
    converged: Bool[Array, ""]
    num_steps: Int[Array, ""]


class _State(NamedTuple):
    """The Gaussian, the one before it, that one's loss, and how far a step may go."""

    loc: Array
    tril: Array
    last_loc: Array
    last_tril: Array
    loss: Array
    radius: Array
    damping: Array


class _Explored(NamedTuple):
    state: _State
    mean: Array
    spread: Array
    calm: Array
    num_steps: Array


class _Best(NamedTuple):
    """The start of lowest loss so far, and where it led."""

    loss: Array
    explored: _Explored


def fit_gaussian(
    key: PRNGKeyArray,
    log_density: LogDensity,
    starts: Float[Array, "S D"],
    *,
    init_scale: float = 0.1,
    num_particles: int | None = None,
    max_steps: int = 1500,
) -> GaussianFit:
    """Return the Gaussian closest to a density that is known up to a constant.

    Args:
        key: random key.
        log_density: (z of shape (D,), key) -> scalar, differentiable in z; the key is for densities
            that are estimates (subsampled data) and may be ignored.
        starts: starting means. Each is explored; the one of lowest loss is kept.
        init_scale: starting standard deviation of every coordinate.
        num_particles: draws in each step. Default 64, or 2 D where that is more.
        max_steps: of the exploration, for each start.

    Returns:
        `GaussianFit`. `loss` is the negative ELBO, E log q - E log p, from 1,024 draws.

    Cost O(P) gradients and O(P D^2 + D^3) a step; some 50 to 300 steps, more for a start many
    posterior standard deviations away. Fails (`converged` False) where p has no finite moments or
    the gradients are not finite near the starts.

    Reference: Khan and Lin (2017), Lin, Schmidt and Khan (2020).
    """
    size = starts.shape[1]
    num_particles = max(64, 2 * size) if num_particles is None else num_particles
    explore_key, settle_key, loss_key = jax.random.split(key, 3)

    def step(state: _State, key: PRNGKeyArray, rate: Array) -> _State:
        return _step(log_density, state, key, rate, num_particles)

    def stage(best: _Best, given: tuple[Array, Array, PRNGKeyArray]) -> tuple[_Best, Any]:
        """Explores one start, or settles the best of them."""
        index, start, key = given
        settles = index == starts.shape[0]
        begin = _either(settles, best.explored.state, _initial(start, init_scale))
        end = _descend(step, begin, key, settles, max_steps)
        loss = jnp.where(jnp.isfinite(end.mean), end.mean, jnp.inf)
        better = ~settles & ((loss < best.loss) | (index == 0))
        return _either(better, _Best(loss, end), best), (loss, end.state)

    # One after the other, not a vmap: one start may need many more steps than another. Settling is
    # one stage more of the same loop, so that the density's gradient is compiled once.
    keys = jnp.concatenate([jax.random.split(explore_key, starts.shape[0]), settle_key[None]])
    places = jnp.concatenate([starts, starts[:1]])
    inf = jnp.asarray(jnp.inf, starts.dtype)
    nothing = _Best(inf, _unexplored(_initial(starts[0], init_scale)))
    best, (losses, states) = jax.lax.scan(stage, nothing, (jnp.arange(len(places)), places, keys))
    state = jax.tree.map(lambda leaf: leaf[-1], states)
    loss = _loss(log_density, state, loss_key)
    chosen = best.explored
    converged = (chosen.calm >= CALM_CHUNKS) & jnp.isfinite(loss)
    return GaussianFit(state.loc, state.tril, loss, losses[:-1], converged, chosen.num_steps)


def _either(first: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def _initial(start: Array, scale: float) -> _State:
    size = start.shape[0]
    tril = scale * jnp.eye(size, dtype=start.dtype)
    inf, one = jnp.asarray(jnp.inf, start.dtype), jnp.ones((), start.dtype)
    return _State(start, tril, start, 0.5 * tril, inf, 2.0 * size**0.5 * one, one)


def _unexplored(state: _State) -> _Explored:
    inf = jnp.asarray(jnp.inf, state.loc.dtype)
    return _Explored(state, inf, jnp.zeros_like(inf), jnp.array(0), jnp.array(0))


def _descend(
    step: Callable[..., _State], state: _State, key: Array, settles: Array, max_steps: int
) -> _Explored:
    """Runs chunks of steps.

    Exploring, at a constant rate until four chunks in a row bring no lower loss; settling, at a
    rate that falls as 1/t, for `SETTLE_STEPS`.
    """

    def chunk(explored: _Explored) -> _Explored:
        def one(state: _State, t: Array) -> tuple[_State, Array]:
            t = explored.num_steps + t
            rate = jnp.where(settles, RATE * 10.0 / (10.0 + t), RATE).astype(state.loc.dtype)
            new = step(state, jax.random.fold_in(key, t), rate)
            return new, new.loss

        state, losses = jax.lax.scan(one, explored.state, jnp.arange(CHUNK))
        mean, spread = jnp.mean(losses), jnp.std(losses) / CHUNK**0.5
        noise = 2.0 * jnp.sqrt(spread**2 + explored.spread**2)
        falls = ~(explored.mean - mean <= jnp.maximum(noise, TOLERANCE))
        calm = jnp.where(falls | ~jnp.isfinite(mean), 0, explored.calm + 1)
        return _Explored(state, mean, spread, calm, explored.num_steps + CHUNK)

    def keep_going(explored: _Explored) -> Array:
        moves = (explored.calm < CALM_CHUNKS) & (explored.num_steps < max_steps)
        return jnp.where(settles, explored.num_steps < SETTLE_STEPS, moves)

    return jax.lax.while_loop(keep_going, chunk, _unexplored(state))


def _step(
    log_density: LogDensity, state: _State, key: PRNGKeyArray, rate: Array, num_particles: int
) -> _State:
    """One natural-gradient step, or a step back where the loss has risen beyond its noise."""
    noise_key, density_key = jax.random.split(key)
    size = state.loc.shape[0]
    half = jax.random.normal(noise_key, (num_particles // 2, size), state.loc.dtype)
    u = jnp.concatenate([half, -half])  # antithetic: d is exact where p is Gaussian
    keys = jax.random.split(density_key, u.shape[0])
    values, slopes = jax.vmap(jax.value_and_grad(log_density))(state.loc + u @ state.tril.T, keys)
    finite = jnp.isfinite(values) & jnp.all(jnp.isfinite(slopes), axis=1)
    log_det = jnp.sum(jnp.log(jnp.diagonal(state.tril)))
    loss = -jnp.mean(values) - 0.5 * size * (1.0 + LOG_2PI) - log_det
    loss = jnp.where(jnp.all(finite), loss, jnp.inf).astype(u.dtype)
    rise = loss - state.loss
    worse = jnp.isinf(loss) | (rise > 5.0 + 3.0 * jnp.std(values) / num_particles**0.5)

    residual = jnp.where(finite[:, None], slopes @ state.tril + u, 0.0)
    shift = jnp.mean(residual, axis=0)
    bend = residual.T @ u / u.shape[0]
    identity = jnp.eye(size, dtype=u.dtype)
    rate = rate * state.damping
    symmetric = jnp.where(worse, identity, identity - 0.5 * rate * (bend + bend.T))
    precision, vectors = jnp.linalg.eigh(symmetric)
    precision = jnp.maximum(precision, MIN_PRECISION)
    move = vectors @ (vectors.T @ (rate * shift) / precision)
    length = jnp.linalg.norm(move)
    move = move * jnp.minimum(1.0, state.radius / jnp.where(length > 0, length, 1.0))
    tril = _lower(state.tril @ ((vectors / jnp.sqrt(precision)) @ vectors.T))

    grow = jnp.where(length > state.radius, 1.5, 1.0)
    forward = _State(
        state.loc + state.tril @ move,
        tril,
        state.loc,
        state.tril,
        loss,
        jnp.minimum(grow * state.radius, 1e4),
        jnp.minimum(1.2 * state.damping, 1.0),
    )
    # A state that is worse than its parent is dropped; the parent is shrunk a little, so that a
    # start whose surroundings are not finite closes in on its mean.
    back = _State(
        state.last_loc,
        0.9 * state.last_tril,
        state.last_loc,
        0.5 * state.last_tril,
        jnp.asarray(jnp.inf, u.dtype),
        jnp.maximum(0.25 * state.radius, 1e-3),
        0.25 * state.damping,
    )
    return jax.tree.map(lambda a, b: jnp.where(worse, a, b), back, forward)


def _lower(factor: Array) -> Array:
    """Return the lower triangular L, positive diagonal, with L L^T = factor factor^T."""
    upper = jnp.linalg.qr(factor.T, mode="r")
    signs = jnp.where(jnp.diagonal(upper) < 0, -1.0, 1.0).astype(upper.dtype)
    return (signs[:, None] * upper).T


def _loss(log_density: LogDensity, state: _State, key: PRNGKeyArray) -> Array:
    """Return the negative ELBO from 1,024 draws, in blocks."""
    size = state.loc.shape[0]

    def block(key: PRNGKeyArray) -> Array:
        noise_key, density_key = jax.random.split(key)
        u = jax.random.normal(noise_key, (64, size), state.loc.dtype)
        keys = jax.random.split(density_key, 64)
        values = jax.vmap(log_density)(state.loc + u @ state.tril.T, keys)
        log_q = -0.5 * (jnp.sum(u**2, axis=1) + size * LOG_2PI)
        return jnp.mean(log_q - values)

    blocks = jax.lax.map(block, jax.random.split(key, 16))
    return jnp.mean(blocks) - jnp.sum(jnp.log(jnp.diagonal(state.tril)))
