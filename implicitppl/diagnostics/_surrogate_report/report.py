"""Whether a run of `ScoreHMC` can be trusted: where its surrogate fails and what that did to it.

The accept step of `ScoreHMC` is exact, so a poor surrogate is no bias in the limit; in a finite run
it is a chain that sticks, or a region that is hardly visited. The numbers come from
the files `tail` and `parts` beside this one, the warnings and the reasons of their limits from
`warnings`.

Shapes: fields of the run `(C, N)` for chains and draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from implicitppl._core.checks import check_count
from implicitppl.diagnostics._statistics.mixing import Mixing, mixing
from implicitppl.diagnostics._surrogate_report.parts import (
    Groups,
    Kind,
    Moves,
    Proposals,
    Runs,
    acceptance_by,
    acceptance_by_move,
    fate_of_proposals,
    have_moved,
    longest_runs,
)
from implicitppl.diagnostics._surrogate_report.tail import SurrogateTail, surrogate_tail
from implicitppl.diagnostics._surrogate_report.text import text_of
from implicitppl.diagnostics._surrogate_report.warnings import (
    failure_warnings,
    mixing_warnings,
    noise_warnings,
    place_warnings,
    proposal_warnings,
    run_warnings,
    tail_warnings,
)
from implicitppl.models._sites import site_labels

FIELDS = (
    "accept_prob",
    "diverging",
    "num_evaluations",
    "num_failures",
    "surrogate_error",
    "integration_error",
    "surrogate_gap",
    "evaluation_distance",
    "move",
    "potential_energy",
)
_MIN_DRAWS = 25


@dataclass(frozen=True)
class SurrogateReport:
    """Numbers and warnings on a run of `ScoreHMC`; `print` it, or take `.to_dict()`.

    Attributes:
        num_chains: C.
        num_draws: N, of each chain.
        shared_evaluations: whether the chains learned from the same.
        mixing: worst R-hat and effective draws.
        num_evaluations: of the true target by all chains: after warm-up, and in all.
        ess_rates: bulk effective draws in 1,000 evaluations: after warm-up, and in all.
        tail: Pareto k-hat and quantiles of the importance weights.
        energy: acceptance by decile of the true potential before the move.
        distance: acceptance by fifth of the distance to the evaluations before the move.
        moves: share and acceptance by kind of move.
        runs: longest runs of rejections of each chain.
        proposals: what trajectories were accepted and lost to.
        acceptance: mean acceptance probability of all moves.
        diverging: share of iterations that diverged.
        noise_variance: of the log likelihood's estimates, a mean over chains; NaN for a target that
            is not random, or where the field was not collected.
        failures: (3,) evaluations after the first draw that failed by exception, NaN, time-out.
        warnings: in words, with remedies.
        gap: (C, N) true minus surrogate potential, for `plot_surrogate`.
    """

    num_chains: int
    num_draws: int
    shared_evaluations: bool
    mixing: Mixing
    num_evaluations: tuple[int, int]
    ess_rates: tuple[float, float]
    tail: SurrogateTail
    energy: Groups
    distance: Groups
    moves: Moves
    runs: Runs
    proposals: Proposals
    acceptance: float
    diverging: float
    noise_variance: float
    failures: Int[np.ndarray, "3"]
    warnings: tuple[str, ...]
    gap: Float[np.ndarray, "C N"]

    @property
    def ok(self) -> bool:
        """Whether there is no warning. Not a proof: no chain tells of a mode that all miss."""
        return not self.warnings

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON; without `gap`."""
        fields = {k: v for k, v in asdict(self).items() if k != "gap"}
        return {k: _plain(v) for k, v in fields.items()} | {"ok": self.ok}

    def __str__(self) -> str:
        return text_of(self)


def surrogate_report(mcmc: Any) -> SurrogateReport:
    """Report on a finished run of `ScoreHMC`: mixing, the surrogate's tails, where chains stick.

    It costs no evaluation of the target. All of it starts from the draws: of a mode that no chain
    has met nothing is seen, and chains that learn together miss modes together.

    Args:
        mcmc: `numpyro.infer.MCMC` with a `ScoreHMC` kernel, after `run` with
            `extra_fields=ScoreHMC.diagnostic_fields` and without thinning.

    Returns:
        `SurrogateReport`. R-hat and effective draws are those of latent sites.

    Raises:
        TypeError: another kernel.
        ValueError: a run that has not happened, was thinned, has fewer than 25 draws in a chain, or
            did not collect the fields.

    Reference:
        See `surrogate_checks`.

    Example:
        >>> import numpyro
        >>> from implicitppl.diagnostics import surrogate_report
        >>> nuts = numpyro.infer.NUTS(lambda: None)
        >>> surrogate_report(numpyro.infer.MCMC(nuts, num_warmup=1, num_samples=1))
        Traceback (most recent call last):
        TypeError: `mcmc` must have a `ScoreHMC` kernel; got NUTS.
    """
    kernel = mcmc.sampler
    # known by its attributes: diagnostics may not import what makes inference
    if not (hasattr(kernel, "diagnostic_fields") and hasattr(kernel, "moves")):
        raise TypeError(f"`mcmc` must have a `ScoreHMC` kernel; got {type(kernel).__name__}.")
    if mcmc.last_state is None:
        raise ValueError("`mcmc` must have run; got one without samples.")
    if mcmc.thinning != 1:
        raise ValueError(f"`mcmc` must keep every draw; got `thinning={mcmc.thinning}`.")
    draws = mcmc.get_samples(group_by_chain=True)
    names = mcmc.last_state.z  # latent sites; samples have deterministic ones too
    if isinstance(draws, Mapping) and isinstance(names, Mapping):
        draws = {k: v for k, v in draws.items() if k in names}
    fields = mcmc.get_extra_fields(group_by_chain=True)
    shared = mcmc.num_chains > 1 and mcmc.last_state.evaluations.z.ndim == 2
    return surrogate_checks(draws, fields, moves=kernel.moves, shared_evaluations=shared)


def surrogate_checks(
    draws: Any,
    fields: Mapping[str, Any],
    *,
    moves: Sequence[Kind],
    shared_evaluations: bool = False,
) -> SurrogateReport:
    """`surrogate_report` from arrays.

    Args:
        draws: dict of `(C, N, ...)` draws by site, or any PyTree of such arrays.
        fields: `accept_prob`, `diverging`, `num_evaluations`, `surrogate_error`,
            `integration_error`, `surrogate_gap`, `evaluation_distance`, `move` and
            `potential_energy`, `(C, N)`; `num_failures` `(C, N, 3)`; as the states of `ScoreHMC`
            have them. For random targets also `noise_variance` `(C, N)`; their `surrogate_gap`
            holds the noise, too.
        moves: what `move` counts, rows with a `name` and two flags, as `ScoreHMC.moves` has them:
            the target itself rejects moves without `follows_surrogate`, and those that have
            `is_corrected` correct the integrator within.
        shared_evaluations: whether chains learned from the same evaluations.

    Returns:
        `SurrogateReport`.

    Raises:
        ValueError: fields that are missing or of another shape, fewer than 25 draws in a chain.

    Reference:
        Vehtari et al. 2024 (arXiv 1507.02646) for k-hat; Vehtari et al. 2021 (Bayesian Analysis 16)
        for R-hat and effective draws; `run_limit` for runs.

    Example:
        >>> import numpy as np
        >>> import implicitppl as ip
        >>> from implicitppl.diagnostics._surrogate_report.report import surrogate_checks
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(4, 500))                         # N(0, 1), as if independent
        >>> zero = np.zeros((4, 500))
        >>> fields = {
        ...     "accept_prob": zero + 1, "diverging": zero > 0, "move": np.zeros((4, 500), int),
        ...     "num_evaluations": np.arange(500) + zero, "num_failures": np.zeros((4, 500, 3)),
        ...     "surrogate_error": zero, "integration_error": zero, "evaluation_distance": abs(x),
        ...     "potential_energy": x**2 / 2, "surrogate_gap": x**2 / 2 - x**2 / 2 / 0.3**2,
        ... }
        >>> found = surrogate_checks({"x": x}, fields, moves=ip.infer.ScoreHMC.moves)
        >>> found.ess_rates[0] > 900, found.tail.k_hat > 0.7       # the surrogate is N(0, .09)
        (True, True)
        >>> print(found.warnings[0])
        Pareto k-hat is 0...: the tails of the surrogate are lighter than those of the target...
    """
    labels, table = _columns(draws)
    values = _checked(fields, table.shape[:2])
    energy, gap = values["potential_energy"], values["surrogate_gap"]
    accept, moved = values["accept_prob"], have_moved(table, energy, gap)
    evaluations = values["num_evaluations"]
    total = int(evaluations[:, -1].sum())
    after = int((evaluations[:, -1] - evaluations[:, 0] + 1).sum())
    found = mixing(labels, table)
    runs = longest_runs(moved, accept[:, 1:])
    by_energy = acceptance_by(energy[:, :-1], accept[:, 1:], 10)
    by_distance = acceptance_by(values["evaluation_distance"][:, :-1], accept[:, 1:], 5)
    move = values["move"].astype(int)
    errors = values["surrogate_error"], values["integration_error"]
    fate = fate_of_proposals(move, accept, *errors, moves)
    tail = surrogate_tail(gap, moved)
    diverging, mean = float(values["diverging"].mean()), float(accept.mean())
    noise = float(np.mean(np.asarray(fields.get("noise_variance", np.nan))))
    failures = (values["num_failures"][:, -1] - values["num_failures"][:, 0]).sum(0).astype(int)
    warnings = (
        *mixing_warnings(found, runs),
        *tail_warnings(tail),
        *run_warnings(runs),
        *place_warnings("energy", by_energy, mean),
        *place_warnings("distance from the evaluations", by_distance, mean),
        *proposal_warnings(fate),
        *failure_warnings(diverging, failures),
        *noise_warnings(noise),
    )
    return SurrogateReport(
        num_chains=table.shape[0],
        num_draws=table.shape[1],
        shared_evaluations=shared_evaluations,
        mixing=found,
        num_evaluations=(after, total),
        ess_rates=(1000 * found.ess_bulk / after, 1000 * found.ess_bulk / total),
        tail=tail,
        energy=by_energy,
        distance=by_distance,
        moves=acceptance_by_move(move, accept, moves),
        runs=runs,
        proposals=fate,
        acceptance=mean,
        diverging=diverging,
        noise_variance=noise,
        failures=failures,
        warnings=warnings,
        gap=gap,
    )


def _columns(draws: Any) -> tuple[list[str], np.ndarray]:
    """Labels and draws `(C, N, P)`, one column for each scalar."""
    import jax

    if not isinstance(draws, Mapping):
        draws = {f"z[{i}]": leaf for i, leaf in enumerate(jax.tree.leaves(draws))}
    arrays = {k: np.asarray(v) for k, v in draws.items()}
    shapes = {v.shape[:2] for v in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"`draws` must have shapes (C, N, ...); got {sorted(shapes)}.")
    shape = next(iter(shapes))
    check_count("draws of a chain", shape[1], _MIN_DRAWS)
    labels = [label for k, v in arrays.items() for label in site_labels(k, v.shape[2:])]
    return labels, np.concatenate([v.reshape(*shape, -1) for v in arrays.values()], axis=2)


def _checked(fields: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The fields as arrays, each of the shape of the draws."""
    missing = [k for k in FIELDS if k not in fields]
    if missing:
        raise ValueError(
            f"the run must have collected {missing}. Pass "
            "`extra_fields=ip.infer.ScoreHMC.diagnostic_fields` to `mcmc.run`."
        )
    arrays = {k: np.asarray(fields[k]) for k in FIELDS}
    for k, v in arrays.items():
        expected = (*shape, 3) if k == "num_failures" else shape
        if v.shape != expected:
            raise ValueError(f"`fields[{k!r}]` must have shape {expected}; got {v.shape}.")
    return arrays


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
