"""What a run of a sampler is, and how its evaluations are counted."""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array

from benchmarks.hmc.targets import LogDensity, Target


@dataclass(frozen=True)
class Run:
    """Draws `(chains, draws, D)` after warm-up, and what they cost."""

    draws: np.ndarray
    evaluations_warmup: int
    evaluations_sampling: int
    gradients: bool = False
    cpu_seconds: float = 0.0
    necessary_warmup: int | None = None  # where less than `evaluations_warmup`
    necessary_sampling: int | None = None


class Runner(Protocol):
    def __call__(
        self,
        target: Target,
        key: Array,
        num_warmup: int,
        num_samples: int,
        num_chains: int,
        **options: Any,
    ) -> Run: ...


class Counter:
    """Counts the evaluations of a function on the host, under jit, vmap, loops and gradients.

    A batched call counts as many evaluations as the batch has points, those whose result a loop
    under vmap throws away included.
    """

    def __init__(self) -> None:
        self.count = 0

    def wrap(self, log_density: LogDensity) -> LogDensity:
        """Return the function, counting."""
        return lambda x: log_density(self._tick(1)(x))

    def read(self) -> int:
        """Return the count so far and set it to zero."""
        jax.effects_barrier()
        count, self.count = self.count, 0
        return count

    def add(self, count: Any) -> None:
        self.count += int(count)

    def _tick(self, points: int) -> Callable[[Array], Array]:
        @jax.custom_batching.custom_vmap
        def tick(x: Array) -> Array:
            jax.debug.callback(lambda: self.add(points))
            return x

        @tick.def_vmap
        def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
            return self._tick(points * axis_size)(x), in_batched[0]

        differentiable = jax.custom_jvp(tick)
        differentiable.defjvp(lambda primal, tangent: (differentiable(*primal), tangent[0]))
        return differentiable


def timed(run: Callable[..., Run]) -> Runner:
    """Return the runner with its CPU seconds, compilation included."""

    @functools.wraps(run)
    def wrapped(*args: Any, **options: Any) -> Run:
        start = time.process_time()
        result = run(*args, **options)
        return dataclasses.replace(result, cpu_seconds=time.process_time() - start)

    return wrapped
