"""One report on a fitted guide, density or not: numbers, what to expect of them, what they miss.

Every row is a quantity with a known value if the guide were the posterior, its value here, the
range that sampling noise leaves, a verdict, and its blind spot. Ranges are two-sided 99% over all
coordinates of a row together (Bonferroni). Verdicts:

    ok        inside the range, and the range is narrow enough to mean something
    small     outside the range, so a real difference, but below the tolerance
    bad       outside the range and beyond the tolerance
    unclear   inside the range, but the range is wider than the tolerance: use more draws
    info      no range belongs to this number

Shapes: guide draws `(S, D)`, unconstrained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array

from implicitppl.diagnostics._checks import at_least
from implicitppl.diagnostics._compare import compare
from implicitppl.diagnostics._distances import sliced_wasserstein
from implicitppl.diagnostics._draws import as_draws, columns
from implicitppl.diagnostics._drift import nuts_drift
from implicitppl.diagnostics._ksd import kernel_stein_discrepancy
from implicitppl.diagnostics._psis import k_hat_limit, pareto_smooth
from implicitppl.diagnostics._restarts import restart_spread
from implicitppl.diagnostics._slopes import score_slope, stein_slopes
from implicitppl.diagnostics._unconstrained import (
    GuideDraws,
    Target,
    guide_draws,
    params_of,
    posterior_target,
)

CHECKS = ("ksd", "slopes", "psis", "drift")
_LEVEL = 0.01
_MODES = "separated modes and their weights"


@dataclass(frozen=True)
class Row:
    """One line of a report. `value` is the number, `where` the coordinate it belongs to."""

    quantity: str
    value: float
    expected: str
    verdict: str
    cannot_see: str
    where: str = ""


@dataclass(frozen=True)
class Report:
    """Rows of checks on one guide; `print` it, or take `.to_dict()`.

    `dropped` counts guide draws whose value or score was not finite; they are left out, and more
    than a few are themselves a finding.
    """

    rows: tuple[Row, ...]
    num_samples: int
    dim: int
    dropped: int

    @property
    def ok(self) -> bool:
        """Whether no row is bad. Not a proof: read the last column."""
        return all(row.verdict != "bad" for row in self.rows)

    def __getitem__(self, quantity: str) -> Row:
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise KeyError(f"no row {quantity!r}; rows are {[row.quantity for row in self.rows]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "ok": self.ok}

    def __str__(self) -> str:
        head = ("quantity", "value", "if exact", "verdict", "cannot see")
        table = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=False))
            + f"  {line[4]}"
            for line in table
        ]
        rule = "-" * max(map(len, lines))
        note = f"{self.num_samples} guide draws in {self.dim} unconstrained dimensions"
        if self.dropped:
            note += f"; {self.dropped} draws without finite value or score were left out"
        foot = "ok / small / bad: within noise / real but below tolerance / beyond it"
        return "\n".join([note, rule, lines[0], rule, *lines[1:], rule, foot])

    @staticmethod
    def _cells(row: Row) -> tuple[str, ...]:
        where = f" ({row.where})" if row.where else ""
        return row.quantity, f"{row.value:.4g}{where}", row.expected, row.verdict, row.cannot_see


def report(
    rng_key: Array,
    model: Callable,
    guide: Any,
    result: Any,
    *,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 2000,
    checks: Sequence[str] = CHECKS,
    score_estimator: Any = None,
    reference: Any = None,
    restarts: Sequence[Any] | None = None,
    num_chains: int = 256,
    num_steps: int = 24,
    num_inner: int = 100,
) -> Report:
    """Table of checks on a fitted guide, with sampling ranges, verdicts and blind spots.

    Needs draws of the guide and gradients of the model. All checks start from guide draws, so none
    of them can find probability mass that no draw is near: a multimodal posterior needs a
    `reference` or domain knowledge.

    Args:
        rng_key: random key.
        model: NumPyro model with continuous latent sites.
        guide: any guide of it.
        result: its fit (anything with `.params`, or the dict).
        model_args: arguments of the model, data included.
        model_kwargs: its keyword arguments.
        num_samples: guide draws; differences of a few hundredths of an sd need about 4000.
        checks: any of `"ksd"`, `"slopes"`, `"psis"`, `"drift"`. `"drift"` is the only expensive
        one.
        score_estimator: an estimator with `.fit(samples)` (e.g. `implicitppl.score.SSGE()`): adds
            the slope of the guide's fitted score on the target score, fitted and evaluated on
            separate draws.
        reference: draws to trust, e.g. of NUTS (dict or ArviZ object): adds the worst marginal
            differences, on the constrained scale.
        restarts: draws of fits from other seeds (dicts): adds their spread, with this fit among
        them.
        num_chains: starting points of the drift check; the other draws are its baseline.
        num_steps: NUTS transitions of the drift check.
        num_inner: inner samples of a semi-implicit guide's density bounds.

    Returns:
        `Report`.

    Raises:
        ValueError: an unknown check, a model with discrete latent sites, too few finite draws.

    Reference:
        One per check; see `kernel_stein_discrepancy`, `stein_slopes`, `pareto_smooth`,
        `nuts_drift`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.autoguide import AutoDiagonalNormal
        >>> from implicitppl.diagnostics import report
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(0, 1))
        >>> guide = AutoDiagonalNormal(model)
        >>> loss, optimiser = numpyro.infer.Trace_ELBO(), numpyro.optim.Adam(0.1)
        >>> svi = numpyro.infer.SVI(model, guide, optimiser, loss)
        >>> _ = svi.init(jax.random.key(0))
        >>> fit = {"auto_loc": jnp.zeros(1), "auto_scale": 0.5 * jnp.ones(1)}    # too narrow
        >>> table = report(jax.random.key(1), model, guide, fit, checks=["slopes"])
        >>> table["Stein slope"].verdict
        'bad'
    """
    unknown = sorted(set(checks) - set(CHECKS))
    if unknown:
        raise ValueError(f"`checks` must be among {CHECKS}; got {unknown}.")
    at_least("num_samples", num_samples, 25)
    keys = random.split(rng_key, 6)
    params = params_of(result)
    target = posterior_target(model, model_args, model_kwargs, params=params, rng_key=keys[0])
    draw = partial(
        guide_draws,
        guide=guide,
        params=params,
        target=target,
        num_samples=num_samples,
        model_args=model_args,
        model_kwargs=model_kwargs,
        num_inner=num_inner,
    )
    draws = draw(keys[1])
    draws, scores = _with_finite_scores(draws, target)
    rows: list[Row] = []
    if "ksd" in checks:
        rows += _ksd_rows(keys[2], scores, draws.samples)
    if "slopes" in checks:
        rows += _slope_rows(target, scores, draws.samples)
    if score_estimator is not None:
        rows += _score_rows(score_estimator, draw(keys[3]).samples, scores, draws.samples)
    if "psis" in checks:
        rows += _psis_rows(target, draws)
    if "drift" in checks:
        rows += _drift_rows(keys[4], target, draws.samples, num_chains, num_steps)
    if reference is not None:
        rows += _reference_rows(keys[5], reference, target.constrain(draws.samples))
    if restarts:
        rows += _restart_rows([target.constrain(draws.samples), *restarts])
    return Report(tuple(rows), num_samples, target.dim, draws.dropped)


def _with_finite_scores(draws: GuideDraws, target: Target) -> tuple[GuideDraws, Any]:
    scores = target.scores(draws.samples)
    keep = np.isfinite(np.asarray(scores)).all(1)
    if keep.sum() < max(25, 0.5 * keep.size):
        raise ValueError(
            "`model` must have a finite score at most guide draws; "
            f"got {int(keep.sum())} of {keep.size}."
        )
    return draws.where(keep), scores if keep.all() else scores[keep]


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


def _ksd_rows(key: Array, scores: Any, samples: Any) -> list[Row]:
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


def _slope_rows(target: Target, scores: Any, samples: Any) -> list[Row]:
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


def _score_rows(estimator: Any, bank: Any, scores: Any, samples: Any) -> list[Row]:
    fitted = estimator.fit(bank)
    out = score_slope(jax.vmap(fitted)(samples), scores, samples)
    see = "whether the estimate or the guide is off"
    # the estimator's own shrinkage is part of the number: no verdict of the guide hangs on it
    value, se = float(out.slope), float(out.se)
    return [Row("fitted score on target score", value, f"1 +- {_range(1) * se:.2g}", "info", see)]


def _psis_rows(target: Target, draws: Any) -> list[Row]:
    see = "modes that no draw has reached"
    if draws.log_density is None and draws.upper is None:
        return [Row("Pareto k-hat", float("nan"), "needs a density", "info", see)]
    log_q = draws.upper if draws.log_density is None else draws.log_density
    log_weights = target.log_densities(draws.samples) - log_q
    out = pareto_smooth(jnp.nan_to_num(log_weights, nan=-jnp.inf).clip(-1e30))
    size = log_weights.shape[0]
    k, limit = float(out.k_hat), k_hat_limit(size)
    verdict = "ok" if k <= limit else "small" if k <= 0.7 else "bad"
    rows = [
        Row("Pareto k-hat", k, f"< {limit:.2f}", verdict, see),
        Row("importance ESS / draws", float(out.ess) / size, "1", "info", see),
    ]
    if draws.log_density is None:
        gap = float(jnp.mean(draws.upper - draws.lower))
        rows.append(
            Row("density bound gap (nats)", gap, "> 0, small", "info", "bias of both bounds")
        )
    return rows


def _drift_rows(
    key: Array, target: Target, samples: Any, num_chains: int, num_steps: int
) -> list[Row]:
    start, rest = samples[:num_chains], samples[num_chains:]
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


def _reference_rows(key: Array, reference: Any, draws: Any) -> list[Row]:
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


def _restart_rows(fits: Any) -> list[Row]:
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
