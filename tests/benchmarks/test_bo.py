"""Bayesian optimisation: the functions, and a short run."""

import jax
import numpy as np
import pytest

from benchmarks.gp.bo import KERNELS, NUM_RANDOM, PROBLEMS, optimise, table


@pytest.mark.parametrize(
    "name, point, value",
    [
        ("styblinski_tang", np.full(10, -2.903534), -391.66166),
        ("styblinski_tang", np.zeros(10), 0.0),
        # sin(pi/2) sin(2 (pi/2)^2 / pi)^20 = sin(pi/2)^20 = 1 in the second coordinate alone.
        ("michalewicz", np.array([0.0, np.pi / 2]), -1.0),
    ],
)
def test_functions_have_the_values_of_the_literature(name, point, value):
    assert PROBLEMS[name].function(point) == pytest.approx(value, abs=1e-4)


def test_a_short_run_evaluates_what_it_says_and_never_gets_worse():
    with jax.enable_x64(True):
        best = optimise(PROBLEMS["styblinski_tang"], KERNELS["rbf"], seed=0, steps=3)
    assert len(best) == NUM_RANDOM + 3
    assert np.all(np.diff(best) <= 0)


def test_the_table_shows_what_is_left_to_the_minimum():
    rows = [
        {"problem": "styblinski_tang", "kernel": "nkn", "best": [-300.0 + d] * 10, "cpu_seconds": 2}
        for d in (0.0, 2.0)
    ]
    assert "| styblinski_tang | NKN | 92.7 (1) | 2 |" in table(rows)
