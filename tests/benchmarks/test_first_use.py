"""What first results cost: compiling and the rest are told apart, and tables come from rows."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import read
from benchmarks.first_use import tables
from benchmarks.first_use.costs import costs


def test_compiling_is_counted_by_program_and_apart_from_running():
    x = jnp.arange(7.0)

    @jax.jit
    def inner(x: Any) -> Any:
        return jnp.sin(x)

    @jax.jit
    def outer(x: Any) -> Any:
        return inner(x) + inner(2 * x)

    with costs() as first:
        outer(x).block_until_ready()
    with costs() as again:
        outer(x).block_until_ready()
    (name,) = first.programs
    assert "outer" in name and first.programs[name] == 1 and not again.programs
    assert first.compile_seconds > again.compile_seconds == 0.0
    assert first.total == first.compile_seconds + first.run_seconds


def test_medians_and_ratios_are_those_of_the_rows():
    def row(entry: str, seconds: float, label: str) -> dict[str, Any]:
        return {
            **{"entry": entry, "problem": "p", "stage": "first", "label": label, "cached": False},
            **{"seconds": seconds, "compile_seconds": 1.0, "run_seconds": 2.0, "programs": 3},
        }

    rows = [row(tables.OURS, s, "after") for s in (30.0, 10.0, 20.0)]
    rows += [row(tables.FULL_RANK, 16.0, "after"), row(tables.REPORT, 5.0, "after")]
    assert "| p | after | 1.25 | - | 0.25 |" in tables.ratios(rows)
    assert "| p | AutoImplicit | first | - | - | 20.0 (1.0 + 2.0) | 3 |" in tables.guides(rows)


def test_the_page_is_that_of_the_result_file():
    text = tables.tables(read(RESULTS / "first-use.jsonl"))
    assert text in tables.PAGE.read_text()
