"""The regression benchmark: its protocol, a quick run end to end, and what its tables say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import read
from benchmarks.gp import run as bench_gp
from benchmarks.gp import tables as gp_tables
from benchmarks.gp.data import median_lengthscales, scores, split
from benchmarks.gp.methods import KERNELS

pytest.importorskip("sklearn")


def test_a_split_is_standardised_by_its_training_rows() -> None:
    found, other = split("diabetes", 1), split("diabetes", 2)
    assert len(found.y_test) == 45
    np.testing.assert_allclose(found.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.x.std(axis=0), 1)
    np.testing.assert_allclose([found.y.mean(), found.y.std()], [0, 1], atol=1e-12)
    assert abs(found.y_test.mean()) > 1e-3
    assert not np.array_equal(found.y, other.y)


def test_scores_are_in_the_units_of_the_data() -> None:
    found = split("diabetes", 1)
    mean, variance = np.full(45, 0.3), np.full(45, 0.5)
    shift = found.scale * found.y_test
    expected = norm.logpdf(shift, 0.3 * found.scale, np.sqrt(0.5) * found.scale).mean()
    got = scores(found, mean, variance)
    np.testing.assert_allclose(got["ll"], expected)
    np.testing.assert_allclose(got["rmse"], np.sqrt(np.mean((shift - 0.3 * found.scale) ** 2)))
    # A prediction 1e3 standard deviations off has a finite log likelihood.
    assert np.isfinite(scores(found, mean + 1e3, variance)["ll"])


def test_median_lengthscales_leave_columns_of_one_value_alone() -> None:
    x = np.array([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(median_lengthscales(x), [2 * np.sqrt(2), 1.0])


@pytest.mark.slow
def test_quick_tier_runs_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--quick", "--out", str(out), "--steps", "8"]
    bench_gp.main(arguments)
    rows = read(out)
    assert [r["method"] for r in rows] == [m for m in KERNELS for _ in range(2)]
    assert not any("error" in r for r in rows)
    # The standard deviation of the outputs is 77: every kernel learns something.
    assert all(40 < r["rmse"] < 70 and -6 < r["ll"] < -5 for r in rows)
    bench_gp.main(arguments)
    assert len(read(out)) == len(rows), "rows that are there are not run again"
    text = gp_tables.tables(rows, [])
    assert "| diabetes | 2 |" in text


def test_tables_of_the_page_are_those_of_the_result_files() -> None:
    gp_tables.main(["--check"])


def row(method: str, seed: int, rmse: float, **more: Any) -> dict[str, Any]:
    return {
        "data": "yacht",
        "split": seed,
        "method": method,
        "num_train": 277,
        "num_steps": 1000,
        "learning_rate": 0.05,
        "is_first": seed == 1,
        "rmse": rmse,
        "ll": -rmse,
        "log_evidence": 10 * seed - rmse,
        "train_seconds": 5.0 if seed == 1 else 2.0,
        "predict_seconds": 0.001,
        "cpu_seconds": 3.0,
        "date": "2026-01-01",
        "versions": {"jax": "0.10"},
        **more,
    }


def test_differences_are_paired() -> None:
    # Splits differ by 1, methods by .1 and .2: paired errors are .05, unpaired ones .5.
    rows = [row("RBF-ARD", s, s) for s in (1, 2)]
    rows += [row("NKN", 1, 0.9), row("NKN", 2, 1.8), row("NKN", 3, 9.0)]
    assert gp_tables.paired(rows[2:], rows[:2], "rmse") == pytest.approx((-0.15, 0.05))
    text = gp_tables.differences(rows)
    assert "| yacht | NKN | 2 | -0.150 (0.050) | -3.0 | +0.150 (0.050) | +3.0 |" in text
    assert "| yacht | 277 | NKN | 1,000 | 0.05 | 2.0 | 3.0 |" in gp_tables.cost(rows)


def test_the_comparison_with_the_logs_has_the_errors_of_both() -> None:
    rows = [row("NKN", s, rmse) for s, rmse in ((1, 0.3), (2, 0.5))]
    error = np.hypot(0.1, gp_tables.PUBLISHED["yacht"]["rmse"][1])
    assert f"+0.063 ({error:.3f}) | +0.5 |" in gp_tables.against_logs(rows)


def test_peers_are_compared_split_by_split() -> None:
    rows = [row("RBF-ARD", s, 1.0) for s in (1, 2)]
    rows += [row("GPJax", 1, 1.0), row("GPJax", 2, 1.02)]
    text = gp_tables.agreement(rows)
    assert text.startswith("GPJax's log evidence is within 0.02 nats of ours")
    assert "within 2%, in 2 fits" in text


def test_result_rows_are_those_of_the_protocol() -> None:
    rows = [json.loads(line) for line in (RESULTS / "gp.jsonl").read_text().splitlines()]
    keys = [tuple(r[k] for k in bench_gp.KEY) for r in rows]
    assert len(set(keys)) == len(keys)
    assert all(r["num_steps"] <= gp_tables.PUBLISHED_STEPS / 10 for r in rows)
