"""What a block of code costs: CPU seconds of compiling and of the rest, and the programs compiled.

JAX announces the beginning of every tracing, lowering and compilation as a scalar and its end as a
duration. The CPU clock of the process is read at both, so that nested events are counted once, and
so that other work on the machine does not count.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_PREFIX = "/jax/core/compile"
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass
class Costs:
    """CPU seconds of a block; `programs` counts what XLA compiled in it, by name."""

    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    programs: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> float:
        """Compiling and the rest."""
        return self.compile_seconds + self.run_seconds

    def as_row(self) -> dict[str, Any]:
        """Numbers for a result file."""
        return {
            "seconds": self.total,
            "compile_seconds": self.compile_seconds,
            "run_seconds": self.run_seconds,
            "programs": sum(self.programs.values()),
        }


@contextlib.contextmanager
def costs(since: float | None = None) -> Iterator[Costs]:
    """Measure a block.

    Args:
        since: `time.process_time()` from which the block counts; default its beginning. 0 counts
            the start of the interpreter and the imports, as a part of running.
    """
    import jax

    out = Costs()
    open_events: list[tuple[str, float]] = []

    def begin(event: str, value: float, **info: Any) -> None:
        del value, info
        if event.startswith(_PREFIX):
            open_events.append((event, time.process_time()))

    def end(event: str, duration_secs: float, **info: Any) -> None:
        del duration_secs
        if not open_events or open_events[-1][0] != event:
            return
        began = open_events.pop()[1]
        if event == _COMPILED:
            out.programs[str(info.get("fun_name", "unnamed"))] += 1
        if not open_events:
            out.compile_seconds += time.process_time() - began

    jax.monitoring.register_scalar_listener(begin)
    jax.monitoring.register_event_duration_secs_listener(end)
    start = time.process_time() if since is None else since
    try:
        yield out
    finally:
        out.run_seconds = time.process_time() - start - out.compile_seconds
        jax.monitoring.unregister_scalar_listener(begin)
        jax.monitoring.unregister_event_duration_listener(end)
