"""How far a long MCMC run has come: its state, its draws, what the bar shows, who stopped it.

State, iteration and draws change together, by one assignment after a block is finished and saved.
A block that is cut off leaves no trace and is computed again, with the same bits.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from implicitppl.infer._long.blocks import Blocks, Thinning
from implicitppl.infer._long.store import Store


class Progress(NamedTuple):
    """What is finished."""

    iteration: int
    num_draws: int
    state: Any


class Run:
    """One run: fixed settings, and its progress."""

    def __init__(self, blocks: Blocks, plan: Thinning, store: Store | None) -> None:
        self.blocks = blocks
        self.plan = plan
        self._store = store
        self._arrays: Any = None  # (chain, all draws, ...), filled from the front
        self.progress = Progress(0, 0, None)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.progress.iteration >= self.plan.upper

    def begin(self, keys: Array, init_params: Any, state: Any) -> None:
        """Take up a stored run, or start one, at `state` if it is not None."""
        if self._store is not None and self._store.found():
            self._take_up(keys, init_params)
            return
        if self._store is not None:
            self._store.begin()
        if state is None:
            state = self.blocks.start(keys, init_params)
        else:
            self.blocks.set_up_once(keys, init_params)
        self.progress = Progress(0, 0, state)

    def advance(self, stop: int) -> None:
        """Run one block, save it, and count it as finished."""
        iteration, num_draws, state = self.progress
        state, kept = self.blocks.run(state, self.plan, iteration, stop)
        new = Progress(stop, self.plan.num_draws(stop), state)
        if kept is not None:
            self._write(num_draws, kept)
        if self._store is not None:
            self._store.save(*new, first=num_draws, kept=kept)
        self.progress = new

    def would_exceed(self, budget: int | None, stop: int) -> bool:
        """Whether going on until iteration `stop` needs more evaluations than `budget`.

        An iteration is taken to need as many as those so far; the first ones, one of each chain.

        Raises:
            ValueError: if there is a budget, and the kernel's state counts no evaluations.
        """
        if budget is None:
            return False
        counts = _field(self.progress.state, "num_evaluations")
        if counts is None:
            raise ValueError("`max_evaluations` needs a kernel that counts `num_evaluations`.")
        spent, done = int(np.sum(counts)), self.progress.iteration
        rate = max(np.size(counts), (spent - np.size(counts)) / max(done, 1))
        return spent + rate * (stop - done) > budget

    def draws(self) -> Any:
        """Finished draws by field, (chain, draw, ...); None if there are none."""
        num = self.progress.num_draws
        return jax.tree.map(lambda x: x[:, :num], self._arrays) if num else None

    def _take_up(self, keys: Array, init_params: Any) -> None:
        assert self._store is not None
        like, draw = self.blocks.abstract(keys, init_params)
        self.progress = Progress(*self._store.load_state(like, keys))
        self._store.load_draws(self.progress.num_draws, draw, self._write)
        if not self.finished:
            self.blocks.set_up_once(keys, init_params)

    def _write(self, first: int, kept: Any) -> None:
        if self._arrays is None:
            num = self.plan.num_draws(self.plan.upper)
            self._arrays = jax.tree.map(
                lambda x: np.empty((x.shape[0], num, *x.shape[2:]), x.dtype), kept
            )

        def put(array: np.ndarray, block: np.ndarray) -> None:
            array[:, first : first + block.shape[1]] = block

        jax.tree.map(put, self._arrays, kept)


def progress_text(kernel: Any, state: Any) -> str:
    """What the bar shows: the kernel's own text, or means over the chains where it has none."""
    with contextlib.suppress(TypeError, ValueError):  # most kernels format one chain only
        text = kernel.get_diagnostics_str(state)
        if text:
            return text
    parts = []
    for names, how, form in _SHOWN:
        value = next((v for v in (_field(state, name) for name in names) if v is not None), None)
        if value is not None:
            parts.append(form.format(how(np.asarray(value))))
    return ", ".join(parts)


_SHOWN: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("num_evaluations",), np.sum, "{} evaluations"),
    (("step_size",), np.mean, "step size {:.2e}"),
    (("mean_accept_prob", "accept_prob"), np.mean, "acc. prob={:.2f}"),
)


def _field(state: Any, name: str) -> Any:
    """A field of a state, or of a state inside it."""
    if hasattr(state, name):
        return getattr(state, name)
    inner = (_field(getattr(state, field), name) for field in getattr(state, "_fields", ()))
    return next((value for value in inner if value is not None), None)


class Interrupts:
    """Whether SIGINT came; it raises KeyboardInterrupt as ever.

    Inside a host function JAX makes another exception of that, so the signal itself is noted.
    """

    seen = False

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note the signal inside the block, where Python's own handler would be called."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.seen = True
        signal.default_int_handler(number, frame)
