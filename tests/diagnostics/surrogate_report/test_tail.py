"""Pareto k-hat of a surrogate from draws of the target, against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.diagnostics import pareto_smooth
from implicitppl.diagnostics._surrogate_report.parts import have_moved
from implicitppl.diagnostics._surrogate_report.tail import pareto_shape, surrogate_tail


def gap_of(x, scale):
    """Target N(0, 1), surrogate N(0, scale^2)."""
    return x**2 / 2 - x**2 / 2 / scale**2


def exponential_chains(seed, rate, method):
    """Target Exp(rate), surrogate Exp(1): w ~ e^((1 - rate) x), so k = 1 - rate, exactly Pareto."""
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(4, 1000)) / rate
    if method == "independent":
        return x
    state = x[:, 0]
    for t in range(x.shape[1]):
        if method == "surrogate":
            new = rng.exponential(size=4)
            log_ratio = (1 - rate) * (new - state)
        else:  # a random walk, reflected at 0
            new = np.abs(state + 2 / rate * rng.normal(size=4))
            log_ratio = rate * (state - new)
        state = np.where(np.log(rng.uniform(size=4)) < log_ratio, new, state)
        x[:, t] = state
    return x


def tail_of(x, rate):
    return surrogate_tail(-(1 - rate) * x, have_moved(x[:, :, None]))


@pytest.mark.parametrize("method", ["independent", "surrogate", "walk"])
@pytest.mark.parametrize("rate", [0.7, 0.5, 0.3])
def test_k_hat_is_the_closed_form_whatever_made_the_chain(method, rate):
    chains = [exponential_chains(s, rate, method) for s in range(25)]
    tails = [tail_of(x, rate) for x in chains]
    k = np.array([tail.k_hat for tail in tails])
    # the weak prior draws k towards .5 by 10 / (n + 10), for n effective states in the tail
    n = ((1 + k) / [tail.error for tail in tails]) ** 2
    bias = np.mean(10 * np.abs(0.5 - k) / (n + 10))
    assert abs(k.mean() - (1 - rate)) < 4 * k.std(ddof=1) / 5 + bias + 0.02
    if method == "independent":
        assert k.std() < 1.5 * np.mean([tail.error for tail in tails])
    wrong = rate  # power: the assertion rejects another value
    if abs(wrong - (1 - rate)) > 0.3:
        assert abs(k.mean() - wrong) > 4 * k.std(ddof=1) / 5 + bias + 0.02


def test_fit_to_the_draws_themselves_does_not_see_that_a_chain_sticks():
    """Why k is estimated under the surrogate: `k_pi = 2.3` by draws that never repeat."""
    rate = 0.3
    naive = [
        float(pareto_smooth(jnp.asarray((1 - rate) * exponential_chains(s, rate, kind)).ravel())[0])
        for kind in ("independent", "surrogate")
        for s in range(8)
    ]
    assert np.mean(naive[:8]) == pytest.approx((1 - rate) / rate, abs=0.3)
    assert np.median(naive[8:]) < 1


def test_gaussian_tails():
    """Surrogate N(0, s^2), target N(0, 1): k = 1 - s^2 below s = 1, none above."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 20_000))
    for scale in (0.5, 0.7):
        tail = surrogate_tail(gap_of(x, scale), have_moved(x[:, :, None]))
        # P(w > t) ~ t^(-1/k) / sqrt(log t): the root makes it a little lighter than its limit
        assert -4 * tail.error - 0.1 < tail.k_hat - (1 - scale**2) < 4 * tail.error
    assert surrogate_tail(gap_of(x, 1.3), have_moved(x[:, :, None])).k_hat < 0


def test_equal_shares_give_the_unweighted_fit():
    rng = np.random.default_rng(0)
    log_weights = np.sort(0.8 * rng.exponential(size=3000))
    m = int(np.ceil(3 * np.sqrt(3000)))
    excess = np.exp(log_weights[-m:]) - np.exp(log_weights[-m - 1])
    k, num = pareto_shape(excess, np.ones(m))
    assert num == pytest.approx(m)
    assert k == pytest.approx(float(pareto_smooth(jnp.asarray(log_weights)).k_hat), abs=0.01)


def test_overlap_and_degenerate_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5000))
    moved = have_moved(x[:, :, None])
    # q = N(0, 1.2^2): E_q[w] = 1, E_q[w^2] = s^2 / sqrt(2 s^2 - 1)
    exact = np.sqrt(2 * 1.44 - 1) / 1.44
    assert surrogate_tail(gap_of(x, 1.2), moved).overlap == pytest.approx(exact, abs=0.01)
    assert tuple(surrogate_tail(np.full(x.shape, 3.0), moved)[:2]) == (0, 0)
    none = surrogate_tail(np.full(x.shape, np.nan), moved)
    assert np.isnan(none.k_hat) and np.isnan(none.quantiles).all()
    few = surrogate_tail(gap_of(x, 1.2), np.zeros_like(moved))
    assert np.isnan(few.k_hat) and few.overlap > 0.5
