"""What several test files share: counting compilations."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the names of everything XLA compiles inside the block, eager operations included.

    Example: `with compilations() as names: f(x)`, then `assert names == []`.
    """
    names: list[str] = []

    def record(event: str, duration_secs: float, **info: Any) -> None:
        del duration_secs
        if event == _COMPILED:
            names.append(str(info.get("fun_name", "unnamed")))

    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


def assert_compiles_once(fn: Callable[..., Any], first: tuple, second: tuple) -> None:
    """Fails if `fn(*second)` compiles anything after `fn(*first)`; build all arrays beforehand."""
    with compilations() as names:
        jax.block_until_ready(fn(*first))
    assert names, "the first call compiled nothing: this check would see no retrace either"
    with compilations() as names:
        jax.block_until_ready(fn(*second))
    assert names == [], f"the second call of equal shapes compiled {names}"
