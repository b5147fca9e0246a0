"""What a run of `ScoreHMC` should not be trusted for, in words, each with its remedy.

R-hat 1.01, 400 effective draws, bulk and tail: Vehtari et al. 2021, Bayesian Analysis 16.
k-hat `min(1 - 1 / log10(S), .7)`: Vehtari et al. 2024, arXiv 1507.02646; not where the overlap is
95% or more, as such states are too few to matter.
A run of rejections: with independent acceptance one as long, in any chain, has a probability below
1%, see `run_limit`.
Acceptance in a group below a quarter of that overall: the time spent there is given, so a stay is
four times as long, and what is known of it comes from a quarter of the visits.
Half of the acceptance lost to the surrogate: every second evaluation is wasted.
35% lost to the integrator: the optimum of HMC accepts 65% (Beskos et al. 2013, Bernoulli 19).
25% refused: a third more evaluations for the same number of moves.
1% divergences: they are rejected, so no bias, but near them only random walks move.
Variance of the log likelihood's noise above 2: standard deviations of 1 to 1.7 balance the cost of
estimates and of time in pseudo-marginal chains (Doucet et al. 2015, Biometrika 102).
Any failure of the host: the target is then the posterior given success.
"""

import math
from typing import Any

import numpy as np

from implicitppl.diagnostics._statistics.mixing import Mixing
from implicitppl.diagnostics._surrogate_report.parts import Groups, Proposals, Runs
from implicitppl.diagnostics._surrogate_report.tail import SurrogateTail

MAX_R_HAT, MIN_ESS, MILD_OVERLAP = 1.01, 400, 0.95
MAX_NOISE = 2.0
LOW_GROUP = 0.25
MAX_SURROGATE, MAX_INTEGRATOR, MAX_REFUSED, MAX_DIVERGING = 0.5, 0.35, 0.25, 0.01
LONGER = (
    "Make the warm-up longer, or give `mcmc.last_state.evaluations` to the next run "
    "(`evaluations=`)."
)


def mixing_warnings(mixing: Mixing, runs: Runs) -> list[str]:
    """Chains that stand, R-hat, effective draws."""
    out = []
    standing = [i for i, n in enumerate(runs.distinct) if n < 2]
    if standing:
        out.append(
            f"Chain(s) {standing} never moved. Nothing here holds for them: start elsewhere "
            "(`init_strategy=init_to_median`) or make the warm-up longer."
        )
    if math.isnan(mixing.r_hat):
        out.append("One chain: R-hat is unknown, and modes it misses are too. Run four.")
    elif mixing.r_hat > MAX_R_HAT:
        out.append(
            f"R-hat of {mixing.r_hat_at} is {mixing.r_hat:.3f}, above {MAX_R_HAT}: chains differ. "
            "Draw more; if it stays, chains are in different modes or stick, see below."
        )
    few = [
        f"{kind} {value:.0f} ({where})"
        for kind, value, where in (
            ("bulk", mixing.ess_bulk, mixing.ess_bulk_at),
            ("tail", mixing.ess_tail, mixing.ess_tail_at),
        )
        if not value >= MIN_ESS
    ]
    if few:
        out.append(
            f"Effective draws: {', '.join(few)}, below {MIN_ESS}: intervals and R-hat itself are "
            "unreliable. Draw more."
        )
    return out


def tail_warnings(tail: SurrogateTail) -> list[str]:
    """Whether the surrogate's tails are lighter than the target's."""
    if math.isnan(tail.overlap):
        return [
            "The surrogate has no potential to compare: none was fitted, and all moves were random "
            "walks (make the warm-up longer), or its force is a score estimate (`force=`)."
        ]
    if math.isnan(tail.k_hat):
        return ["Fewer than 25 distinct states: Pareto k-hat is unknown. Draw more."]
    if not tail.k_hat > tail.limit or tail.overlap >= MILD_OVERLAP:
        return []
    return [
        f"Pareto k-hat is {tail.k_hat:.2f} +- {tail.error:.2f}, above {tail.limit:.2f}: the tails "
        "of the surrogate are lighter than those of the target, and chains stick there. " + LONGER
    ]


def place_warnings(quantity: str, groups: Groups, overall: float) -> list[str]:
    """Groups whose acceptance is a quarter of that overall or less."""
    low = np.flatnonzero(groups.acceptance < LOW_GROUP * overall)
    if not low.size:
        return []
    i = int(low[np.argmin(groups.acceptance[low])])
    size = len(groups.num_moves)
    return [
        f"Acceptance in group {i + 1} of {size} by {quantity} is {groups.acceptance[i]:.3f}, below "
        f"a quarter of the overall {overall:.3f}: it is known from few visits. " + LONGER
    ]


def run_warnings(runs: Runs) -> list[str]:
    """Chains that stayed for far longer than independent acceptance explains."""
    far = (runs.longest >= runs.limit) & (runs.distinct >= 2)
    if not far.any():
        return []
    i = int(np.argmax(np.where(far, runs.longest / runs.limit, 0)))
    return [
        f"Chain {i} did not move for {runs.longest[i]} iterations ({int(far.sum())} chain(s) of "
        f"this kind); {runs.limit[i]} would be rare at its acceptance of {runs.acceptance[i]:.2f}. "
        "The surrogate is too high there. " + LONGER
    ]


def proposal_warnings(fate: Proposals) -> list[str]:
    """What too many trajectories are lost to."""
    out = []
    if fate.surrogate > MAX_SURROGATE:
        out.append(
            f"{fate.surrogate:.0%} of trajectories are lost to errors of the surrogate (mean "
            f"{fate.mean_error:.2g}). " + LONGER
        )
    if fate.integrator > MAX_INTEGRATOR:
        out.append(
            f"{fate.integrator:.0%} of trajectories are lost to the integrator: the step size fits "
            "the bulk, not the tails. Make the warm-up longer, or reparametrise the model."
        )
    if fate.refused > MAX_REFUSED:
        out.append(
            f"{fate.refused:.0%} of trajectories were refused: they leave what the evaluations "
            "cover. " + LONGER
        )
    return out


def failure_warnings(diverging: float, failures: Any) -> list[str]:
    """Divergences and failures of the host."""
    out = []
    if diverging > MAX_DIVERGING:
        out.append(
            f"{diverging:.1%} of iterations diverged under the surrogate. Look where "
            "(`diverging`); reparametrise, or make the warm-up longer."
        )
    if np.sum(failures):
        kinds = zip(failures, ("exception", "NaN", "time-out"), strict=True)
        text = ", ".join(f"{n} by {kind}" for n, kind in kinds if n)
        out.append(
            f"{int(np.sum(failures))} evaluations failed after warm-up ({text}): the draws are of "
            "the posterior given success. Repair the host function, or exclude such inputs in the "
            "prior."
        )
    return out


def noise_warnings(variance: float) -> list[str]:
    """A random target that is too noisy."""
    if not variance > MAX_NOISE:
        return []
    return [
        f"The log likelihood's estimates have variance {variance:.2g}, above {MAX_NOISE:g}: chains "
        "stay at overestimates. Use more particles or samples for each estimate, or correlated "
        "noise (`noise_correlation=`), for which this limit is too strict."
    ]
