"""The benchmarks of series and textures: figures by hand, and the small form end to end."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks.series import run as bench_series
from benchmarks.series import tables as series_tables
from benchmarks.series import texture as bench_texture
from benchmarks.series.problems import (
    co2,
    cut,
    figures,
    hand_made,
    kernels,
    moved,
    series,
    sunspots,
)
from implicitppl.kernels import parameters


def test_figures_are_those_of_scipy():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance, mean, y = root @ root.T + np.eye(6), rng.normal(size=6), rng.normal(size=6) * 3
    deviation = np.sqrt(np.diagonal(covariance))
    found = figures(y, mean, covariance)
    alone = stats.norm(mean, deviation).logpdf(y)
    assert found["log_density"] == pytest.approx(np.mean(alone))
    together = stats.multivariate_normal(mean, covariance).logpdf(y)
    assert found["joint"] == pytest.approx(together / 6)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((y - mean) ** 2)))
    low, high = stats.norm(mean, deviation).interval(0.95)
    assert found["coverage"] == np.mean((low < y) & (y < high))


def test_nothing_of_the_last_part_enters_the_standardisation():
    years, values = np.arange(1900.0, 2000.0), np.random.default_rng(0).normal(size=100)
    values[3] = np.nan
    s, other = (series(years, v, "") for v in (values, np.where(years < 1975, values, 1e6)))
    assert s.num_fitted == 69
    np.testing.assert_array_equal(s.y[:69], other.y[:69])
    np.testing.assert_allclose([s.y[:69].mean(), s.y[:69].std()], [0, 1], atol=1e-12)
    np.testing.assert_allclose(s.years, np.delete(years, 3))
    np.testing.assert_allclose(s.values, np.delete(values, 3))


def test_series_are_those_described():
    assert (len(co2().y), len(sunspots().y)) == (521, 309)
    assert (co2().years[0], co2().years[-1]) == pytest.approx((1958.2, 2002), abs=0.1)
    assert cut(sunspots(), 60).num_fitted == 42


def test_restarts_move_everything_but_the_periods():
    start = hand_made("sunspots", 0.02)
    old, new = parameters(start), parameters(moved(start, jax.random.key(0)))
    for name, parameter in old.items():
        same = np.allclose(parameter.value, new[name].value, rtol=1e-5)
        assert same == (parameter.kind == "period"), name


def test_starts_use_the_fitted_part_only():
    s = cut(sunspots(), 60)
    other = s._replace(y=np.where(np.arange(60) < s.num_fitted, s.y, 7.0))
    key = jax.random.key(1)
    for method, start in kernels("sunspots", s).items():
        pair = (
            jax.tree.leaves(start(key, False)),
            jax.tree.leaves(kernels("sunspots", other)[method](key, False)),
        )
        assert all(bool(jnp.array_equal(a, b)) for a, b in zip(*pair, strict=True)), method


def test_profiles_do_not_see_the_hole():
    grey = np.random.default_rng(0).uniform(size=(12, 15))
    hole = (slice(4, 8), slice(5, 9))
    other = grey.copy()
    other[hole] = 9.0
    one, two = (bench_texture.texture(picture, hole) for picture in (grey, other))
    np.testing.assert_array_equal(one.y[one.seen], two.y[two.seen])
    np.testing.assert_array_equal(one.profiles[0], two.profiles[0])


@pytest.mark.slow
def test_the_small_forms_run(tmp_path, monkeypatch):
    series_file, texture_file = tmp_path / "series.jsonl", tmp_path / "texture.jsonl"
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--out", str(series_file)])
    bench_series.main()
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--out", str(texture_file)])
    bench_texture.main()
    rows = [json.loads(line) for line in series_file.read_text().splitlines()]
    assert [row["method"] for row in rows] == list(kernels("sunspots", cut(sunspots(), 60)))
    for row in rows:
        assert len(row["mean"]) == len(row["deviation"]) == 18
        assert np.isfinite(row["log_density"]) and row["log_evidence"] == max(row["evidences"])
    textures = [json.loads(line) for line in texture_file.read_text().splitlines()]
    assert [row["texture"] for row in textures] == ["roof"] * 4
    monkeypatch.setattr(series_tables, "RESULTS", tmp_path)
    assert set(series_tables.parts()) == {"series", "formulas", "texture"}


def test_tables_show_means_and_ranges():
    rows = [
        {"series": "co2", "method": "NKN", "rmse": value, "cpu_seconds": 2.0}
        for value in (0.1, 0.3)
    ]
    text = series_tables.table(rows, "series", {"rmse": "RMSE", "cpu_seconds": "CPU s"})
    assert text.splitlines()[-1] == "| co2 | NKN | 0.200 (0.100, 0.300) | 2 |"


def test_markers_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="series:begin"):
        series_tables.insert("no markers", "series", "text")
