"""One report on a fitted guide, density or not: numbers, what to expect of them, what they miss.

Every row is a quantity with a known value if the guide were the posterior, its value here, the
range that sampling noise leaves, a verdict, and its blind spot
(`implicitppl.diagnostics._guide_report.rows`).

Shapes: guide draws `(S, D)`, unconstrained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jax import random
from jaxtyping import Array

from implicitppl._core.checks import check_count
from implicitppl.diagnostics._guide_draws import GuideDraws, guide_draws, params_of
from implicitppl.diagnostics._guide_report.rows import (
    Row,
    drift_rows,
    dropped_rows,
    ksd_rows,
    psis_rows,
    reference_rows,
    restart_rows,
    score_rows,
    slope_rows,
)
from implicitppl.models._target import Target, posterior_target

CHECKS = ("ksd", "slopes", "psis", "drift")


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
    num_inner: int = 16,
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
    check_count("num_samples", num_samples, 25)
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
    rows: list[Row] = dropped_rows(draws.dropped / num_samples)
    if "ksd" in checks:
        rows += ksd_rows(keys[2], scores, draws.samples)
    if "slopes" in checks:
        rows += slope_rows(target, scores, draws.samples)
    if score_estimator is not None:
        rows += score_rows(score_estimator, draw(keys[3]).samples, scores, draws.samples)
    if "psis" in checks:
        rows += psis_rows(target, draws)
    if "drift" in checks:
        rows += drift_rows(keys[4], target, draws.samples, num_chains, num_steps)
    if reference is not None:
        rows += reference_rows(keys[5], reference, target.constrain(draws.samples))
    if restarts:
        rows += restart_rows([target.constrain(draws.samples), *restarts])
    return Report(tuple(rows), num_samples, target.dim, draws.dropped)


def _with_finite_scores(draws: GuideDraws, target: Target) -> tuple[GuideDraws, Any]:
    values, scores = target.evaluate(draws.samples)
    keep = np.isfinite(np.asarray(scores)).all(1) & ~np.isnan(np.asarray(values))
    if keep.sum() < max(25, 0.5 * keep.size):
        raise ValueError(
            "`model` must have a finite log density and score at most guide draws; "
            f"got {int(keep.sum())} of {keep.size}."
        )
    return draws.where(keep), scores if keep.all() else scores[keep]
