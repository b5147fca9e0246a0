"""Functions drawn from a Gaussian process, by conditioning on what was asked before.

A Gaussian process has no finite set of weights that could be drawn once. A function is drawn point
by point instead: with L L' = K the covariance of all points asked so far, in the order asked,

    f = m + L u,   u_i ~ N(0, 1) from the key and i alone,

and new points extend L by rows. Values given before never change, and any split of the points into
calls gives the numbers of one call, up to rounding; where K is singular to rounding, the same law.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from implicitppl._core.points import as_points
from implicitppl.linalg._extended import extend_factor, with_noise


class _Memory(NamedTuple):
    """Points asked for, (n, D), whether each was new then, L, u (S, n) and the values (S, n)."""

    x: Array
    present: Array
    factor: Array
    noise: Array
    values: Array


class GaussianDraws:
    """S functions of a Gaussian process; `draws(x)` are their values at x, (S, N).

    Made by `process.draw(key, num_samples)`. The object remembers, in Python, the points asked
    for and the values given. It therefore belongs to where it was made: make it inside the
    function that `jit`, `vmap`, `grad` or `scan` transforms.

    A point asked for twice has the same value twice, also where the kernel holds `White` noise.

    Raises:
        ValueError: by a call under a transformation that the object was made outside of, or with
            points of another width than before.

    Cost of a call with M new points after n others: O(n^2 M + M^3) time, O((n + M)^2) memory; a
    new shape compiles anew. For many calls, a process with a weight space (`FeatureProcess` with
    `RandomFeatures`) is cheaper. A covariance that is singular gets the least jitter that works.
    """

    def __init__(self, process: Any, key: PRNGKeyArray, num_samples: int = 1) -> None:
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1; got {num_samples}.")
        self._process = process
        self._key = key
        self._num_samples = num_samples
        self._memory: _Memory | None = None
        self._num_asked = 0
        self._trace_state = get_opaque_trace_state()

    def __call__(self, x: ArrayLike) -> Float[Array, "S N"]:
        """Return the values of all functions at `x`, (N, D) or (N,)."""
        if get_opaque_trace_state() != self._trace_state:
            raise ValueError(
                "draws of a Gaussian process remember what was asked, so they cannot be called "
                "under a `jit`, `vmap`, `grad` or `scan` that they were made outside of: call "
                "`process.draw(key)` inside of it."
            )
        points = as_points("x", x)
        memory = self._memory or _start(self._process, points, self._num_samples)
        if points.shape[1] != memory.x.shape[1]:
            raise ValueError(
                f"`x` must have {memory.x.shape[1]} coordinates, as before; got {points.shape[1]}."
            )
        rows = self._num_asked + np.arange(points.shape[0])
        place: Array | np.ndarray = _first_equal(memory.x, points)
        own, kept = place, np.arange(points.shape[0])
        if not isinstance(place, jax.core.Tracer):
            place, kept = _without_repeats(memory.x.shape[0], np.asarray(place))
            own = memory.x.shape[0] + np.arange(kept.size)
        if kept.size:
            memory = _remember(
                self._process,
                memory,
                points[kept],
                jnp.asarray(own),
                jnp.asarray(rows[kept]),
                self._key,
            )
        self._memory, self._num_asked = memory, self._num_asked + points.shape[0]
        return memory.values[:, place]


def _start(process: Any, points: Array, num_samples: int) -> _Memory:
    """Return a memory of no points."""
    dtype = jax.eval_shape(process.mean_at, points).dtype
    return _Memory(
        points[:0],
        jnp.zeros((0,), bool),
        jnp.zeros((0, 0), dtype),
        jnp.zeros((num_samples, 0), dtype),
        jnp.zeros((num_samples, 0), dtype),
    )


def _first_equal(old: Float[Array, "n D"], new: Float[Array, "N D"]) -> Int[Array, " N"]:
    """Return, for each new point, the first of the old and new points that equals it."""
    everything = jnp.concatenate([old, new])
    return jnp.argmax(jnp.all(new[:, None] == everything[None], axis=-1), axis=1)


def _without_repeats(size: int, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each point is once repeats are dropped, and which points are new."""
    fresh = first == size + np.arange(first.size)
    place = np.concatenate([np.arange(size), size + np.cumsum(fresh) - 1])
    return place[first], np.flatnonzero(fresh)


@eqx.filter_jit
def _remember(
    process: Any,
    memory: _Memory,
    points: Float[Array, "N D"],
    first: Int[Array, " N"],
    rows: Int[Array, " N"],
    key: PRNGKeyArray,
) -> _Memory:
    """Return the memory with more points; those that were there before take no part in L."""
    size, dtype = memory.x.shape[0], memory.factor.dtype
    present: Bool[Array, " N"] = first == size + jnp.arange(points.shape[0])
    cross = jnp.zeros((0, points.shape[0]), dtype)
    if size:
        cross = process.covariance(memory.x, points).astype(dtype)
        cross = jnp.where(memory.present[:, None] & present[None, :], cross, 0)
    corner = with_noise(process.covariance(points), jnp.zeros(points.shape[:1], dtype), present)
    factor, _ = extend_factor(memory.factor, cross, corner)
    shape = (memory.noise.shape[0],)
    draw = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape, dtype))
    noise = jnp.concatenate([memory.noise, draw(rows).T], axis=1)
    spread = jnp.matmul(noise, factor[size:].T, precision="highest")
    return _Memory(
        jnp.concatenate([memory.x, points]),
        jnp.concatenate([memory.present, present]),
        factor,
        noise,
        jnp.concatenate([memory.values, process.mean_at(points) + spread], axis=1),
    )
