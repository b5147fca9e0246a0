"""The rows of a report, check by check: value, range, verdict, blind spot.

Ranges are two-sided 99% over all coordinates of a row together (Bonferroni). Verdicts:

    ok        inside the range, and the range is narrow enough to mean something
    small     outside the range, so a real difference, but below the tolerance
    bad       outside the range and beyond the tolerance
    unclear   inside the range, but the range is wider than the tolerance: use more draws
    info      no range belongs to this number

Shapes: guide draws `(S, D)`, unconstrained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array

from implicitppl.diagnostics._draws import as_draws, columns
from implicitppl.diagnostics._guide_draws import GuideDraws
from implicitppl.diagnostics._guide_report.compare import compare
from implicitppl.diagnostics._statistics.drift import nuts_drift
from implicitppl.diagnostics._statistics.ksd import kernel_stein_discrepancy
from implicitppl.diagnostics._statistics.psis import k_hat_limit, pareto_smooth
from implicitppl.diagnostics._statistics.restarts import restart_spread
from implicitppl.diagnostics._statistics.slopes import score_slope, stein_slopes
from implicitppl.metrics._distances import sliced_wasserstein
from implicitppl.models._target import Target

_LEVEL = 0.01
_MODES = "separated modes and their weights"
_MILD_ESS = 0.95  # share of the draws: heavier tails than that of the guide, but in few draws
_DROPPED = 0.01  # share of the draws
_GAPS = (0.05, 0.5)  # nats: `ok` and `small`


@dataclass(frozen=True)
class Row:
    """One line of a report. `value` is the number, `where` the coordinate it belongs to."""

    quantity: str
    value: float
    expected: str
    verdict: str
    cannot_see: str
    where: str = ""


def _range(num: int) -> float:
    """Half-width, in standard errors, of the joint 99% range of `num` numbers."""
    return NormalDist().inv_cdf(1 - _LEVEL / (2 * num))


def _verdict(deviation: float, half: float, tolerance: float) -> str:
    if not np.isfinite(deviation) or not np.isfinite(half):
        return "unclear"
    if abs(deviation) <= half:
        return "ok" if half <= tolerance else "unclear"
    return "small" if abs(deviation) <= tolerance else "bad"


def _worst_row(
    quantity: str,
    values: Any,
    errors: Any,
    centre: float,
    tolerance: float,
    names: Sequence[str],
    cannot_see: str,
) -> Row:
    """The row of the coordinate with the gravest verdict, and of those the largest deviation."""
    values, errors = np.atleast_1d(np.asarray(values)), np.atleast_1d(np.asarray(errors))
    half = _range(len(values)) * errors
    verdicts = [
        _verdict(float(v) - centre, float(h), tolerance) for v, h in zip(values, half, strict=True)
    ]
    gravity = [("ok", "unclear", "small", "bad").index(v) for v in verdicts]
    i = int(np.lexsort((np.abs(values - centre), gravity))[-1])
    expected = f"{centre:g} +- {half[i]:.2g}"
    return Row(quantity, float(values[i]), expected, verdicts[i], cannot_see, names[i])


def dropped_rows(share: float) -> list[Row]:
    """A row for draws at which the model has no finite value; none without such draws."""
    if share == 0:
        return []
    verdict = "small" if share <= _DROPPED else "bad"
    see = "what the other rows would say of them"
    return [Row("draws without a finite score", share, "0", verdict, see)]


def ksd_rows(key: Array, scores: Any, samples: Any) -> list[Row]:
    out = kernel_stein_discrepancy(scores, samples, key=key)
    p = float(out.p_value)
    verdict = "ok" if p > 0.05 else "small" if p > _LEVEL else "bad"
    return [
        Row(
            "KSD^2 (U-statistic)",
            float(out.u_statistic),
            f"< {float(out.null_quantile):.2g} (p = {p:.3f})",
            verdict,
            f"{_MODES}; how large the error is",
        )
    ]


def slope_rows(target: Target, scores: Any, samples: Any) -> list[Row]:
    out = stein_slopes(scores, samples)
    d = target.dim
    rows = [
        _worst_row(
            "Stein slope", out.slope, out.slope_se, 1.0, 0.2, target.names, _MODES + "; shape"
        ),
        _worst_row("mean score, whitened", out.mean, out.mean_se, 0.0, 0.1, [""] * d, _MODES),
    ]
    if d > 1:
        slopes = jnp.stack([out.low_slope, out.high_slope])
        errors = jnp.stack([out.low_se, out.high_se])
        names = ["direction too narrow", "direction too wide"]
        rows.append(
            _worst_row(
                "Stein slope, worst direction", slopes, errors, 1.0, 0.3, names, _MODES + "; shape"
            )
        )
    return rows


def score_rows(estimator: Any, fresh: Any, scores: Any, samples: Any) -> list[Row]:
    fitted = estimator.fit(fresh)
    out = score_slope(jax.vmap(fitted)(samples), scores, samples)
    see = "whether the estimate or the guide is off"
    # the estimator's own shrinkage is part of the number: no verdict of the guide hangs on it
    value, se = float(out.slope), float(out.se)
    return [Row("fitted score on target score", value, f"1 +- {_range(1) * se:.2g}", "info", see)]


def psis_rows(target: Target, draws: GuideDraws) -> list[Row]:
    """Pareto k-hat, effective sample size, and the gap of density bounds where there are any."""
    see = "modes that no draw has reached"
    if draws.log_density is None and draws.upper is None:
        return [Row("Pareto k-hat", float("nan"), "needs a density", "info", see)]
    log_q = draws.upper if draws.log_density is None else draws.log_density
    log_weights = np.asarray(target.log_densities(draws.samples)) - np.asarray(log_q)
    out = pareto_smooth(jnp.asarray(log_weights.clip(-1e30)))
    size = log_weights.shape[0]
    k, limit, share = float(out.k_hat), k_hat_limit(size), float(out.ess) / size
    mild = k <= 0.7 or share >= _MILD_ESS
    verdict = "ok" if k <= limit else "small" if mild else "bad"
    rows = [
        Row("Pareto k-hat", k, f"< {limit:.2f}", verdict, see),
        Row("importance ESS / draws", share, "1", "info", see),
    ]
    if draws.log_density is None:
        rows.append(_gap_row(float(np.mean(np.asarray(draws.upper - draws.lower)))))
    return rows


def _gap_row(gap: float) -> Row:
    """The bounds meet where the sampler is one-to-one; a folded one has no single density."""
    close, wide = _GAPS
    verdict = "ok" if gap <= close else "small" if gap <= wide else "bad"
    see = "what is wrong: a folded sampler, or few inner samples"
    return Row("density bound gap (nats)", gap, f"< {close:g}", verdict, see)


def drift_rows(
    key: Array, target: Target, samples: Any, num_chains: int, num_steps: int
) -> list[Row]:
    samples = np.asarray(samples)  # slices of it are no programs
    start, rest = jnp.asarray(samples[:num_chains]), jnp.asarray(samples[num_chains:])
    baseline = rest if rest.shape[0] >= 2 * start.shape[0] else None
    out = nuts_drift(key, target.log_density, start, baseline=baseline, num_steps=num_steps)
    see = "separated modes"
    rows = [
        _worst_row(
            "NUTS drift of mean (sd)", out.mean_drift, out.mean_se, 0.0, 0.1, target.names, see
        ),
        _worst_row(
            "NUTS drift of sd (ratio)", out.sd_ratio, out.sd_se, 1.0, 0.1, target.names, see
        ),
        Row("NUTS distance moved", float(out.moved), "about 1", "info", "low: drift not yet seen"),
    ]
    divergent = float(out.divergent)
    verdict = "ok" if divergent <= 0.01 else "small" if divergent <= 0.05 else "bad"
    rows.append(Row("NUTS divergent share", divergent, "0", verdict, "regions NUTS cannot enter"))
    return rows


def reference_rows(key: Array, reference: Any, draws: Any) -> list[Row]:
    table = compare(reference, draws, key=key)
    worst = table.worst
    see = "errors of the reference"
    limits = {"mean_shift": 0.1, "q05_shift": 0.15, "q95_shift": 0.15, "corr_diff": 0.1}
    rows = []
    for name, limit in limits.items():
        where = table.names[int(np.argmax(np.abs(getattr(table, name))))]
        verdict = "ok" if worst[name] <= limit else "bad"
        rows.append(Row(f"reference: {name}", worst[name], f"< {limit:g}", verdict, see, where))
    ratio = worst["sd_ratio"]
    where = table.names[int(np.argmin(np.abs(table.sd_ratio - ratio)))]
    verdict = "ok" if 0.9 <= ratio <= 1.1 else "bad"
    rows.append(Row("reference: sd_ratio", ratio, "0.9 to 1.1", verdict, see, where))
    noise = _split_distance(key, reference, draws)
    value = worst["sliced_wasserstein"]
    rows.append(Row("reference: sliced Wasserstein", value, f"{noise:.2g} by chance", "info", see))
    return rows


def _split_distance(key: Array, reference: Any, draws: Any) -> float:
    """Distance of two random samples of the reference, as large as the guide's if possible."""
    names = [k for k in as_draws("reference", reference) if k in draws]
    _, table = columns(as_draws("reference", reference, names))
    size = min(next(iter(draws.values())).shape[0], table.shape[0] // 2)
    order = np.asarray(random.permutation(key, table.shape[0]))
    first, second = table[order[:size]], table[order[size : 2 * size]]
    return float(sliced_wasserstein(jnp.asarray(first), jnp.asarray(second), key))


def restart_rows(fits: Any) -> list[Row]:
    names = [k for k in fits[0] if all(k in f for f in fits)]
    out = restart_spread(fits, var_names=names)
    see = "what every restart misses"
    # sd of R means of S draws: below mean_noise sqrt(chi2_99(R - 1) / (R - 1)), 2.6 at R = 2
    half = 2.6 * out.mean_noise
    i = int(np.argmax(out.mean_spread))
    spread = float(out.mean_spread[i])
    rows = [
        Row(
            "restarts: spread of mean (sd)",
            spread,
            f"< {half:.2g}",
            _verdict(spread, half, 0.1),
            see,
            out.names[i],
        )
    ]
    j = int(np.argmax(out.sd_range))
    ratio = float(out.sd_range[j])
    verdict = "ok" if ratio <= 1.1 else "small" if ratio <= 1.2 else "bad"
    rows.append(Row("restarts: largest / smallest sd", ratio, "< 1.1", verdict, see, out.names[j]))
    sw, noise = out.sliced_wasserstein, out.sliced_wasserstein_noise
    rows.append(Row("restarts: sliced Wasserstein", sw, f"{noise:.2g} by chance", "info", see))
    return rows
