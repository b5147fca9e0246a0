"""The worst R-hat and effective sample sizes of all scalars; a standing chain is no success.

Rank-normalised split R-hat, bulk and tail effective sample size (Vehtari, Gelman, Simpson,
Carpenter, Bürkner 2021, Bayesian Analysis 16). ArviZ gives a constant chain as many effective draws
as it has draws; here it has none.

Shapes: `(C, N, P)` for chains, draws, scalars.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from implicitppl.diagnostics._arviz.versions import import_arviz


class Mixing(NamedTuple):
    """The worst scalar of each: value and label. R-hat is NaN for a single chain."""

    r_hat: float
    r_hat_at: str
    ess_bulk: float
    ess_bulk_at: str
    ess_tail: float
    ess_tail_at: str


def mixing(labels: Sequence[str], draws: Float[np.ndarray, "C N P"]) -> Mixing:
    """Mixing of the worst scalar; R-hat infinite and no effective draws where a chain stands.

    A chain stands in a scalar that has one value in all of its draws, or is not finite.
    """
    stands = np.any((np.ptp(draws, axis=1) == 0) | ~np.isfinite(draws).all(axis=1), axis=0)
    one_chain = draws.shape[0] == 1
    r_hat = np.full(len(labels), np.nan if one_chain else np.inf)
    bulk, tail = np.zeros(len(labels)), np.zeros(len(labels))
    if not stands.all():
        arviz, _ = import_arviz()
        data = _dataset(draws[:, :, ~stands])
        bulk[~stands] = arviz.ess(data, method="bulk")["x"]
        tail[~stands] = arviz.ess(data, method="tail")["x"]
        if not one_chain:
            r_hat[~stands] = arviz.rhat(data)["x"]
    i, j, k = int(np.argmax(r_hat)), int(np.argmin(bulk)), int(np.argmin(tail))
    sizes = float(bulk[j]), labels[j], float(tail[k]), labels[k]
    return Mixing(float(r_hat[i]), labels[i], *sizes)


def _dataset(draws: np.ndarray) -> Any:
    import xarray

    return xarray.Dataset({"x": (("chain", "draw", "scalar"), draws.astype(float))})
