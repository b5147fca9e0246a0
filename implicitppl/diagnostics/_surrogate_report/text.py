"""A surrogate report as text: aligned tables, then the warnings."""

import textwrap
from typing import Any

import numpy as np

from implicitppl.diagnostics._surrogate_report.warnings import (
    MAX_DIVERGING,
    MAX_INTEGRATOR,
    MAX_NOISE,
    MAX_R_HAT,
    MAX_REFUSED,
    MAX_SURROGATE,
    MIN_ESS,
)

_WIDTH, _MAX_CHAINS = 100, 10
SHARED = (
    "The chains share their evaluations: R-hat cannot see a mode that all of them miss. Run once "
    "with chain_method='sequential', where each chain learns alone, and compare."
)
ALONE = "Each chain learned alone: R-hat also compares what the surrogates know."


def text_of(report: Any) -> str:
    """The text of a `SurrogateReport`."""
    shared = report.shared_evaluations
    learning = "all learn from the same" if shared else "each learns from its own"
    after, total = report.num_evaluations
    head = (
        f"ScoreHMC: {report.num_chains} chain(s) of {report.num_draws} draws; {total:,} "
        f"evaluations, {after:,} of them after warm-up; {learning}"
    )
    blocks = [
        [head],
        _table(_mixing_rows(report)),
        _table(_tail_rows(report.tail)),
        _table(_fate_rows(report)),
        _table(_move_rows(report.moves)),
        _groups("energy before the move", report.energy),
        _groups("distance before the move", report.distance),
        _runs(report.runs),
        _verdict(report),
    ]
    rule = "-" * _WIDTH
    return f"\n{rule}\n".join("\n".join(block) for block in blocks)


def _mixing_rows(report: Any) -> list[tuple[str, ...]]:
    m, (after, total) = report.mixing, report.ess_rates
    return [
        ("mixing, worst scalar", "value", "wanted", "of"),
        ("R-hat", f"{m.r_hat:.3f}", f"<= {MAX_R_HAT}", m.r_hat_at),
        ("bulk effective draws", f"{m.ess_bulk:.0f}", f">= {MIN_ESS}", m.ess_bulk_at),
        ("tail effective draws", f"{m.ess_tail:.0f}", f">= {MIN_ESS}", m.ess_tail_at),
        ("bulk, per 1,000 evaluations", f"{after:.1f}", "", "after warm-up"),
        ("", f"{total:.1f}", "", "warm-up included"),
    ]


def _tail_rows(t: Any) -> list[tuple[str, ...]]:
    names = ("1%", "5%", "50%", "95%", "99%")
    gaps = ", ".join(f"{n} {q:+.2f}" for n, q in zip(names, t.quantiles, strict=True))
    return [
        ("weights target / surrogate", "value", "wanted", "meaning"),
        (
            "Pareto k-hat",
            f"{t.k_hat:.2f}",
            f"<= {t.limit:.2f}",
            f"+- {t.error:.2f}, {t.num_states} states; above .5 the mean stay is infinite",
        ),
        ("overlap", f"{t.overlap:.2f}", "", "effective share of the surrogate's draws"),
        (
            "weight above 10 medians",
            f"{t.sticking:.2%}",
            "",
            "of draws: surrogate too high",
        ),
        ("weight below a tenth", f"{t.avoided:.2%}", "", "of draws: surrogate too low"),
        ("U - U~ minus its median", "", "", gaps),
    ]


def _noise_rows(variance: float) -> list[tuple[str, ...]]:
    if np.isnan(variance):
        return []
    text = "of the log likelihood, at the end of warm-up"
    return [("variance of the noise", f"{variance:.2f}", f"<= {MAX_NOISE:g}", text)]


def _fate_rows(report: Any) -> list[tuple[str, ...]]:
    p, size = report.proposals, report.num_chains * report.num_draws
    kinds = zip(report.failures, ("exception", "NaN", "time-out"), strict=True)
    return [
        ("of trajectories", "share", "wanted", "meaning"),
        ("accepted", f"{p.accepted:.1%}", "", ""),
        (
            "lost to the surrogate",
            f"{p.surrogate:.1%}",
            f"<= {MAX_SURROGATE:.0%}",
            f"mean |change of U - U~| {p.mean_error:.2g}",
        ),
        (
            "lost to the integrator",
            f"{p.integrator:.1%}",
            f"<= {MAX_INTEGRATOR:.0%}",
            "would be with an exact surrogate too",
        ),
        ("refused", f"{p.refused:.1%}", f"<= {MAX_REFUSED:.0%}", "diverged, or left what is known"),
        ("outside", f"{p.outside:.1%}", "", "target zero, or its evaluation failed"),
        ("diverged", f"{report.diverging:.1%}", f"<= {MAX_DIVERGING:.0%}", "of all iterations"),
        (
            "failed evaluations",
            f"{int(np.sum(report.failures))}",
            "0",
            f"of {size:,} after warm-up: " + ", ".join(f"{n} {kind}" for n, kind in kinds),
        ),
        *_noise_rows(report.noise_variance),
    ]


def _move_rows(moves: Any) -> list[tuple[str, ...]]:
    rows = zip(moves.names, moves.share, moves.acceptance, strict=True)
    return [
        ("kind of move", "share", "acceptance", ""),
        *((name, f"{s:.1%}", f"{a:.2f}", "") for name, s, a in rows if s > 0),
    ]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of four columns: label, value (to the right), wanted, remark."""
    return [f"{a:<28}{b:>9}  {c:<11}{d}".rstrip() for a, b, c, d in rows]


def _line(label: str, cells: list[str]) -> str:
    return f"{label:<28}" + "".join(f"{cell:>7}" for cell in cells)


def _groups(quantity: str, groups: Any) -> list[str]:
    size = len(groups.num_moves)
    return [
        _line(quantity, [f"{i + 1}/{size}" for i in range(size)]),
        _line("  up to", [_short(x) for x in groups.upper]),
        _line("  acceptance", ["-" if np.isnan(x) else f"{x:.2f}" for x in groups.acceptance]),
        _line("  moves", [str(n) for n in groups.num_moves]),
    ]


def _short(x: float) -> str:
    """At most six characters."""
    return f"{x:.1f}" if 10 <= abs(x) < 1000 else f"{x:.2f}" if abs(x) < 10 else f"{x:.0e}"


def _runs(runs: Any) -> list[str]:
    """The chains with the longest runs for their limits, in order of number."""
    worst = np.argsort(-(runs.longest / runs.limit), kind="stable")[:_MAX_CHAINS]
    shown = sorted(int(i) for i in worst)
    title = "longest run of rejections" if len(shown) == len(runs.longest) else "longest runs"
    return [
        _line(f"{title}, chain", [str(i) for i in shown]),
        _line("  iterations", [str(runs.longest[i]) for i in shown]),
        _line("  expected", [f"{runs.expected[i]:.1f}" for i in shown]),
        _line("  1% limit", [str(runs.limit[i]) for i in shown]),
        _line("  acceptance", [f"{runs.acceptance[i]:.2f}" for i in shown]),
        _line("  distinct draws", [str(runs.distinct[i]) for i in shown]),
    ]


def _verdict(report: Any) -> list[str]:
    lines = []
    if report.num_chains > 1:
        lines += textwrap.wrap(SHARED if report.shared_evaluations else ALONE, _WIDTH)
    if not report.warnings:
        return [*lines, "Warnings: nothing suspicious."]
    lines.append(f"Warnings: {len(report.warnings)}")
    for warning in report.warnings:
        lines += textwrap.wrap(
            warning, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines
