"""Samplers to compare: gradient-free ones, and NUTS with the gradients that the others lack.

| name | what, and its settings |
|---|---|
| adaptive_metropolis | random walk, pooled covariance by doubling windows, acceptance .234 |
| sa | `numpyro.infer.SA` (Zhu 2019), defaults: 2 D points |
| sa_large | the same with 10 D points |
| aies | `numpyro.infer.AIES` (Goodman and Weare 2010), defaults: differential evolution |
| ess | `numpyro.infer.ESS` (Karamanis and Beutler 2021), defaults; NaN counts as no density |
| blackjax_random_walk | `blackjax.additive_step_random_walk`, warm-up as adaptive_metropolis |
| blackjax_slice | `blackjax.slice_sampling`: hit and run; whitened, stepping out, width 2 |
| blackjax_coordinate_slice | `blackjax.coordinate_slice`, one sweep a draw; same settings |
| kmc_lite | kernel HMC (Strathmann et al. 2015) on 500 points, 1-10 leapfrogs, acceptance .7 |
| kmc_finite | the same with 500 random features fitted to 2,000 points |
| nuts, nuts_dense | `numpyro.infer.NUTS`, defaults; with a dense mass matrix |

Kernel HMC starts as adaptive_metropolis for half of its warm-up, works in whitened coordinates, and
chooses width and ridge by the score-matching loss of held-out points.

Every method is `run(target, key, num_warmup, num_samples, num_chains, **options) -> Run`. What is
learned in the warm-up is frozen afterwards, except in `sa` and the ensembles, which have no need
to. An evaluation is one call of the log density at one point; of a gradient for NUTS. Ensembles
compute all walkers until the slowest is done, and AIES computes current values again: `evaluations`
are what was computed, `necessary` what an implementation without that waste would have.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.hmc.blackjax_kernels import (
    blackjax_coordinate_slice,
    blackjax_random_walk,
    blackjax_slice,
)
from benchmarks.hmc.kernel import kmc_finite, kmc_lite
from benchmarks.hmc.numpyro_kernels import aies, ess, nuts, sa
from benchmarks.hmc.runs import Runner
from benchmarks.hmc.walk import adaptive_metropolis

NUM_CHAINS, MIN_WALKERS = 4, 20
ESS_COST, SLICE_COST = 12.0, 5.0  # measured; only the lengths of runs depend on them


@dataclass(frozen=True)
class Method:
    """A runner with what is needed to give it a budget of evaluations.

    Attributes:
        run: the runner.
        cost: expected evaluations of one chain in one iteration after the warm-up, given D.
        warmup_cost: the same in the warm-up; None: equal.
        chains: number of chains, given D.
        draws: numbers of warm-up iterations and of draws, in place of a budget.
    """

    run: Runner
    cost: Callable[[int], float] = lambda d: 1.0
    warmup_cost: Callable[[int], float] | None = None
    chains: Callable[[int], int] = lambda d: NUM_CHAINS
    draws: tuple[int, int] | None = None

    def sizes(
        self, dimension: int, warmup: int, sampling: int, share: float = 1.0
    ) -> tuple[int, int, int]:
        """Return warm-up iterations, draws and chains for so many evaluations of all chains.

        Only a share of the warm-up is used.
        """
        chains = self.chains(dimension)
        if self.draws is not None:
            return round(share * self.draws[0]), self.draws[1], chains
        first = (self.warmup_cost or self.cost)(dimension)
        return (
            max(1, round(share * warmup / (chains * first))),
            max(4, round(sampling / (chains * self.cost(dimension)))),  # ArviZ needs four
            chains,
        )


def ensemble(dimension: int) -> int:
    """Return a multiple of four walkers, more than 2 D: half of them must span the space."""
    return max(MIN_WALKERS, 4 * (dimension // 2 + 1))


METHODS = {
    "adaptive_metropolis": Method(adaptive_metropolis),
    "sa": Method(sa),
    "sa_large": Method(functools.partial(sa, points_per_dimension=10)),
    "aies": Method(aies, lambda d: 2.0, chains=ensemble),
    "ess": Method(ess, lambda d: ESS_COST, chains=ensemble),
    "blackjax_random_walk": Method(blackjax_random_walk),
    "blackjax_slice": Method(blackjax_slice, lambda d: SLICE_COST, lambda d: 1.0),
    "blackjax_coordinate_slice": Method(
        blackjax_coordinate_slice, lambda d: SLICE_COST * d, lambda d: 1.0
    ),
    "kmc_lite": Method(kmc_lite),
    "kmc_finite": Method(kmc_finite),
    "nuts": Method(nuts, draws=(1000, 1000)),
    "nuts_dense": Method(functools.partial(nuts, dense_mass=True), draws=(1000, 1000)),
}
