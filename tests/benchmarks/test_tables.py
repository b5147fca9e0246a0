"""The published tables: figures beyond a limit are marked, pages change between markers only."""

import pytest

from benchmarks.accuracy import tables

ROW = {
    "posterior": "p",
    "method": "AutoMultivariateNormal",
    "seed": 0,
    "gaussian": False,
    "reference": "exact draws",
    "mean_shift": 0.05,
    "quantile_shift": 0.2,
    "sd_ratio_low": 0.95,
    "sd_ratio_high": 1.02,
    "correlation": 0.01,
    "excess": 0.1,
    "floor": 0.03,
    "seconds": 1.0,
    "passes": {"mean_shift": True, "quantile_shift": False},
    "date": "2026-01-01",
    "versions": {"jax": "0.10"},
}
OURS = ROW | {"method": "AutoImplicit", "excess": 0.04, "quantile_shift": 0.1}


def line(rows: list[dict], method: str) -> str:
    (found,) = [x for x in tables.detail_table(rows, lambda r: True) if f"| {method} |" in x]
    return found


def test_figures_beyond_their_limit_are_in_italics() -> None:
    assert "*0.200*" in line([ROW, OURS], "AutoMultivariateNormal")
    assert "*" not in line([ROW, OURS], "AutoImplicit")


def test_distance_must_be_below_half_of_that_of_the_gaussian_guide() -> None:
    assert "*0.0600*" in line([ROW, OURS | {"excess": 0.06}], "AutoImplicit")


def test_the_worst_seed_counts() -> None:
    assert "*0.300*" in line([ROW, OURS, OURS | {"seed": 1, "mean_shift": 0.3}], "AutoImplicit")


def test_the_smallest_distance_is_bold_and_an_error_is_a_line() -> None:
    assert "**0.0400**" in tables.distance_table([ROW, OURS])[-1]
    failed = {**OURS, "error": "FloatingPointError: no"}
    assert "FloatingPointError" in line([ROW, failed], "AutoImplicit")


def test_losses_are_shown_above_the_smallest_one() -> None:
    rows = [ROW | {"loss": 3.5}, OURS | {"loss": 3.25}, OURS | {"method": "NUTS"}]
    assert tables.loss_table(rows)[-1] == "| p | 3.2500 | 0.2500 | **0.0000** |"


def test_the_summary_counts_runs_within_limits_and_best_guides() -> None:
    passed = OURS | {"loss": 3.0, "passes": {"mean_shift": True}}
    nuts = {**passed, "method": "NUTS", "excess": -1.0}
    real = {**passed, "reference": "posteriordb", "posterior": "r", "seed": 1}
    gaussian, ours, reference = tables.summary_table([ROW | {"loss": 2.0}, passed, nuts, real])[2:]
    assert gaussian.startswith("| AutoMultivariateNormal | 0/0 | 0/1 | 0 of 2 | 1 of 2 |")
    assert ours.startswith("| AutoImplicit | 1/1 | 1/1 | 2 of 2 | 1 of 2 |")
    assert reference.startswith("| NUTS | 0/0 | 1/1 |  |  |")


def test_only_the_text_between_the_markers_changes() -> None:
    page = f"a\n{tables.BEGIN}\nold\n{tables.END}\nb"
    once = tables.insert(page, "new")
    assert once == f"a\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nb"
    assert tables.insert(once, "new") == once
    with pytest.raises(ValueError, match="the page must contain"):
        tables.insert("a", "new")
