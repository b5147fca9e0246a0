"""The benchmark of devices: what it compares, what it leaves out, what its page says."""

import jax
import numpy as np
import pytest

from benchmarks.gpu import run as bench_gpu
from benchmarks.gpu import tables as gpu_tables


def test_a_difference_is_relative_and_sees_every_floating_leaf() -> None:
    first = {"a": np.array([1.0, -200.0]), "b": np.array([3, 4])}
    assert bench_gpu.difference(first, first) == 0
    moved = {"a": np.array([2.0, -200.0]), "b": np.array([3, 5])}
    assert bench_gpu.difference(first, moved) == pytest.approx(1 / 200)
    lost = {"a": np.array([1.0, np.nan]), "b": np.array([3, 4])}
    assert np.isnan(bench_gpu.difference(first, lost))


def test_an_evidence_step_is_the_gradient_of_the_library() -> None:
    with jax.enable_x64(True):
        function, (raw, x, y) = bench_gpu.exact(20)
        step = jax.jit(function)
        value, slope = step(raw, x, y)
        leaves, tree = jax.tree.flatten(raw)
        moved = jax.tree.unflatten(tree, [np.asarray(leaf) + 1e-5 for leaf in leaves])
        back = jax.tree.unflatten(tree, [np.asarray(leaf) - 1e-5 for leaf in leaves])
        numeric = (step(moved, x, y)[0] - step(back, x, y)[0]) / 2e-5
        total = sum(float(np.sum(leaf)) for leaf in jax.tree.leaves(slope))
    assert np.isfinite(value) and total == pytest.approx(float(numeric), rel=1e-5)


def test_every_case_has_a_name_of_its_own_and_a_failure_is_a_row() -> None:
    cases = list(bench_gpu.cases(quick=False))
    assert len({(c.name, c.size, c.precision) for c in cases}) == len(cases)

    def broken() -> tuple[object, tuple[object, ...]]:
        raise MemoryError("too large")

    case = bench_gpu.Case("broken", 1, "float32", broken)  # type: ignore[arg-type]
    (row,) = bench_gpu.run(case, jax.devices("cpu")[:1], 1)
    assert row["error"] == "MemoryError: too large" and "seconds" not in row


def test_a_size_that_is_left_out_on_the_cpu_is_a_dash() -> None:
    common = {"case": "GP, RBF", "precision": "float64", "versions": {}, "date": "d"}
    rows = [
        {**common, "size": 10, "platform": "cpu", "device": "cpu", "seconds": 0.2},
        {**common, "size": 10, "platform": "gpu", "device": "card", "seconds": 0.001},
        {**common, "size": 99, "platform": "gpu", "device": "card", "error": "OOM"},
    ]
    text = gpu_tables.tables(rows)
    assert "| GP, RBF | 10 | float64 | 200 | 1.00 | 200 | - | - |" in text
    assert "| GP, RBF | 99 | float64 | - | OOM | - | - | - |" in text


def test_tables_of_the_page_are_those_of_the_result_file() -> None:
    gpu_tables.main(["--check"])
