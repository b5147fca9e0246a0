"""Reports on `ScoreHMC`: chains that stick are flagged and sound ones are not, limits are kept."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import implicitppl as ip
from implicitppl.diagnostics import SurrogateReport, plot_surrogate, surrogate_report
from implicitppl.diagnostics._statistics.mixing import mixing
from implicitppl.diagnostics._surrogate_report.parts import have_moved
from implicitppl.diagnostics._surrogate_report.report import surrogate_checks

MOVES = ip.infer.ScoreHMC.moves
LONG = [kind.name for kind in MOVES].index("long")


def independence_chains(seed: int, scale: float, num_draws: int = 1000) -> tuple[Any, dict]:
    """Four chains on N(0, 1) with proposals from N(0, scale^2), which is the surrogate."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=4)
    rows = []
    for _ in range(num_draws):
        new = scale * rng.normal(size=4)
        error = gap_of(new, scale) - gap_of(x, scale)
        accept = np.exp(-np.maximum(error, 0))
        x = np.where(rng.uniform(size=4) < accept, new, x)
        rows.append((x, accept, error))
    x, accept, error = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return x, fields_of(x, accept, error, gap_of(x, scale))


def gap_of(x, scale):
    return x**2 / 2 - x**2 / 2 / scale**2


def fields_of(x, accept, error, gap):
    zero = np.zeros(x.shape)
    return {
        "accept_prob": accept,
        "diverging": zero > 0,
        "num_evaluations": 251 + np.arange(x.shape[1]) + zero.astype(int),
        "num_failures": np.zeros((*x.shape, 3), int),
        "surrogate_error": error,
        "integration_error": zero,
        "surrogate_gap": gap,
        "evaluation_distance": np.abs(x),
        "move": zero.astype(int) + LONG,
        "potential_energy": x**2 / 2,
    }


def check(x: Any, fields: dict, **options: Any) -> SurrogateReport:
    return surrogate_checks({"x": x}, fields, moves=MOVES, **options)


@pytest.fixture(scope="module")
def sound() -> SurrogateReport:
    return check(*independence_chains(0, 1.1))


@pytest.fixture(scope="module")
def sticking() -> SurrogateReport:
    return check(*independence_chains(0, 0.45), shared_evaluations=True)


@pytest.mark.smoke
def test_a_sound_run_has_no_warnings(sound):
    assert sound.ok and sound.warnings == ()
    assert sound.tail.k_hat < 0.2 and sound.tail.overlap > 0.95
    assert sound.mixing.r_hat < 1.01 and sound.mixing.r_hat_at == "x"
    assert sound.num_evaluations == (4000, 5000)
    assert sound.ess_rates[0] == pytest.approx(1.25 * sound.ess_rates[1])
    text = str(sound)
    assert "nothing suspicious" in text
    assert "Each chain learned alone" in text and "sequential" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_chain_that_sticks_in_the_tail_is_flagged(sticking):
    """The surrogate's sd is .45 of the target's: k = 1 - .45^2 = .8."""
    assert not sticking.ok
    text = " ".join(str(sticking).split())
    for part in (
        "R-hat cannot see a mode that all of them miss",
        "chain_method='sequential'",
        "tails of the surrogate are lighter",
        "did not move for",
        "of 10 by energy is 0.0",
        "Acceptance in group 5 of 5 by distance from the evaluations",
        "give `mcmc.last_state.evaluations` to the next run",
    ):
        assert part in text
    assert "nothing suspicious" not in text
    assert sticking.tail.sticking > 0.02 and sticking.tail.quantiles[0] < -3
    acceptance = sticking.energy.acceptance
    assert np.nanmin(acceptance) < 0.25 * sticking.acceptance < acceptance[0]


def test_sound_runs_are_rarely_flagged():
    """Over 20 runs: surrogates that are as wide as the target or wider by a half."""
    alarms = [check(*independence_chains(s, 1.0 + s / 40, 2000)).warnings for s in range(20)]
    assert sum(map(bool, alarms)) <= 1, alarms


def test_a_standing_chain_has_no_effective_draws(sound):
    x, fields = independence_chains(0, 1.1)
    x = x.copy()
    x[2] = 0.3
    found = mixing(["x"], x[:, :, None])
    assert found.ess_bulk == found.ess_tail == 0 and found.r_hat == np.inf
    still = {"potential_energy": np.where(np.arange(4)[:, None] == 2, 1.0, x)}
    still["surrogate_gap"] = still["potential_energy"]
    report = check(x, fields | still)
    assert "Chain(s) [2] never moved" in str(report) and report.ess_rates == (0, 0)
    one = mixing(["x"], x[:1, :, None])
    assert np.isnan(one.r_hat) and one.ess_bulk > 500
    single = {k: v[:1] for k, v in fields.items()}
    assert "One chain: R-hat is unknown" in str(check(x[:1], single))


def test_other_warnings():
    x, fields = independence_chains(0, 1.1)
    failures = np.zeros((*x.shape, 3), int)
    failures[1, 500:, 2] = 7
    bad = fields | {
        "num_failures": failures,
        "diverging": np.arange(1000) % 50 + np.zeros(x.shape) == 0,
        "surrogate_error": np.where(np.arange(1000) % 3 == 0, np.nan, fields["surrogate_error"]),
    }
    text = " ".join(str(check(x, bad)).split())
    for part in (
        "7 evaluations failed",
        "7 by time-out",
        "given success",
        "2.0% of iterations",
        "33% of trajectories were refused",
    ):
        assert part in text
    lost = fields | {"accept_prob": np.full(x.shape, 0.2), "surrogate_error": np.ones(x.shape)}
    assert "lost to errors of the surrogate" in str(check(x, lost))
    steps = fields | {"accept_prob": np.full(x.shape, 0.2), "integration_error": 2 + 0 * x}
    assert "lost to the integrator" in str(check(x, steps))
    unfitted = fields | {"surrogate_gap": np.full(x.shape, np.nan)}
    assert "no potential to compare: none was fitted" in str(check(x, unfitted))


def test_noise_of_a_random_target_is_shown_and_judged(sound):
    assert np.isnan(sound.noise_variance) and "variance of the noise" not in str(sound)
    x, fields = independence_chains(0, 1.1)
    for variance, told in ((1.2, False), (3.7, True)):
        found = check(x, fields | {"noise_variance": np.full(x.shape, variance)})
        assert found.noise_variance == pytest.approx(variance)
        assert f"{variance:.2f}" in str(found)
        assert any("overestimates" in w for w in found.warnings) == told


def test_picture_and_dict(sound, sticking):
    for report in (sound, sticking):
        assert len(plot_surrogate(report, title="t").axes) == 4
        found = json.loads(json.dumps(report.to_dict()))
        assert found["ok"] is report.ok and len(found["energy"]["num_moves"]) == 10
        assert "gap" not in found


def test_bad_input():
    x, fields = independence_chains(0, 1.1, 30)
    short = {k: v for k, v in fields.items() if k not in ("move", "surrogate_gap")}
    match = r"\['surrogate_gap', 'move'\].*extra_fields=ip.infer.ScoreHMC.diagnostic_fields"
    with pytest.raises(ValueError, match=match):
        check(x, short)
    with pytest.raises(ValueError, match=r"`fields\['move'\]` must have shape \(4, 30\); got \(4,"):
        check(x, fields | {"move": fields["move"][:, 1:]})
    with pytest.raises(ValueError, match="at least 25; got 10"):
        check(x[:, :10], fields)
    with pytest.raises(ValueError, match=r"shapes \(C, N, ...\)"):
        check(x[0], fields)
    with pytest.raises(TypeError, match="`ScoreHMC` kernel; got NUTS"):
        surrogate_report(MCMC(NUTS(lambda: None), num_warmup=1, num_samples=1))
    kernel = ip.infer.ScoreHMC(lambda: None)
    with pytest.raises(ValueError, match="must have run"):
        surrogate_report(MCMC(kernel, num_warmup=1, num_samples=1))
    thinned = SimpleNamespace(sampler=kernel, last_state=object(), thinning=2)
    with pytest.raises(ValueError, match="keep every draw; got `thinning=2`"):
        surrogate_report(thinned)


def run_of(x: Any, fields: dict, shape: tuple[int, ...] = (50, 1)) -> SimpleNamespace:
    """What the report reads of a run, with evaluations of the given shape."""
    evaluations = SimpleNamespace(z=np.zeros(shape))
    return SimpleNamespace(
        sampler=ip.infer.ScoreHMC(lambda: None),
        thinning=1,
        num_chains=4,
        last_state=SimpleNamespace(z={"x": 0}, evaluations=evaluations),
        get_samples=lambda group_by_chain: {"x": x, "constant": np.zeros(x.shape)},
        get_extra_fields=lambda group_by_chain: fields,
    )


@pytest.mark.parametrize("shape", [(50, 1), (4, 50, 1)])
def test_report_of_a_run_takes_latent_sites_and_sees_who_shares(shape):
    x, fields = independence_chains(0, 1.1)
    mcmc = run_of(x, fields, shape)
    report = surrogate_report(mcmc)
    assert report.ok and report.mixing.ess_bulk_at == "x"
    assert report.shared_evaluations == (len(shape) == 2)
    mcmc.get_samples = lambda group_by_chain: (x, x**2)  # of a potential function
    assert surrogate_report(mcmc).mixing.ess_bulk_at == "z[0]"


def test_the_names_of_moves_are_only_printed(monkeypatch):
    """The report knows by flags what an exact surrogate would make of a move."""
    x, fields = independence_chains(0, 1.1)
    kinds = np.arange(x.size).reshape(x.shape) % len(MOVES)
    fields = fields | {"move": kinds, "integration_error": 0.3 * np.abs(x)}
    mcmc = run_of(x, fields)
    report = surrogate_report(mcmc)
    renamed = tuple(kind._replace(name=f"kind {i}") for i, kind in enumerate(MOVES))
    monkeypatch.setattr(ip.infer.ScoreHMC, "moves", renamed)
    other = surrogate_report(mcmc)
    assert other.moves.names == tuple(kind.name for kind in renamed)
    found, expected = other.to_dict(), report.to_dict()
    for figures in (found, expected):
        figures["moves"].pop("names")
    assert json.dumps(found) == json.dumps(expected)
    # The flags do matter: a walk that is said to follow the surrogate changes what is lost to it.
    wrong = (MOVES[0]._replace(follows_surrogate=True), *MOVES[1:])
    monkeypatch.setattr(ip.infer.ScoreHMC, "moves", wrong)
    assert surrogate_report(mcmc).proposals != report.proposals


@pytest.mark.slow
def test_a_run_of_score_hmc():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.deterministic("constant", jnp.zeros(()))
        y = ip.models.black_box("square", lambda x: x**2, x, out=(2,))
        numpyro.sample("y", dist.Normal(x + 0.1 * y, 1.0).to_event(1), obs=jnp.ones(2))

    kernel = ip.infer.ScoreHMC(model)
    sizes = {"num_warmup": 80, "num_samples": 300, "num_chains": 2}
    mcmc = MCMC(kernel, chain_method="vectorized", progress_bar=False, **sizes)
    mcmc.run(jax.random.key(0), extra_fields=kernel.diagnostic_fields)
    report = surrogate_report(mcmc)
    assert report.shared_evaluations
    assert report.mixing.r_hat_at in ("x[0]", "x[1]")  # not the constant, not the box
    assert report.num_evaluations[0] == 600
    assert report.num_evaluations[1] == int(mcmc.last_state.num_evaluations.sum())
    assert report.tail.k_hat < 0.7 and not report.failures.any()
    assert sum(report.proposals[:5]) == pytest.approx(1)
    assert report.ess_rates[0] > 100 and "ScoreHMC: 2 chain(s)" in str(report)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    exact_of_accept_probability(fields, kernel.moves)
    # the kernel's own change of the gap where a proposal was taken
    change = np.diff(fields["surrogate_gap"], axis=1)
    moved = have_moved(np.asarray(mcmc.get_samples(group_by_chain=True)["x"]))
    error = np.asarray(fields["surrogate_error"])[:, 1:]
    assert np.median(np.abs(change - error)[moved]) < 1e-3


def exact_of_accept_probability(fields, moves):
    """Flags say how a move is accepted: what `fate_of_proposals` relies on."""
    move, accept = np.asarray(fields["move"]), np.asarray(fields["accept_prob"])
    surrogate, integration = (
        np.asarray(fields[k]) for k in ("surrogate_error", "integration_error")
    )
    for number, kind in enumerate(moves):
        here = (move == number) & np.isfinite(surrogate)
        if not kind.follows_surrogate:
            continue
        error = surrogate[here] + (0 if kind.is_corrected else integration[here])
        np.testing.assert_allclose(accept[here], np.exp(-np.maximum(error, 0)), atol=1e-3)
