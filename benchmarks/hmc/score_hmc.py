"""`ScoreHMC` with the whole potential opaque, for hmc/run.py."""

import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC

from benchmarks.hmc.runs import Run
from benchmarks.hmc.targets import Target
from implicitppl import score
from implicitppl.infer import ScoreHMC

# Of the iterations that the budget offers, warm-up takes this share: the point is to need few
# evaluations. Shares of 1, 0.5, 0.25 give 600, 300, 150 iterations; beyond 20 dimensions 2,000, ...
USED, LARGE_USED, DRAWS = 0.24, 0.08, 1500


def score_hmc(
    target: Target,
    key: Array,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    *,
    full: bool = False,
    **options: Any,
) -> Run:
    """Return draws of vectorized chains.

    `full` takes the whole budget; `force` may be the name of a score estimator.
    """
    if not full:
        used = USED if target.dimension <= 20 else LARGE_USED
        num_warmup, num_samples = round(used * num_warmup), min(num_samples, DRAWS)
    if isinstance(options.get("force"), str):
        options["force"] = getattr(score, options["force"])()
    start_key, _, run_key = jax.random.split(key, 3)  # starts as those of the other methods
    mcmc = MCMC(
        ScoreHMC(potential_fn=lambda x: -target.log_density(x), **options),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    began = time.process_time()
    starts = target.starts(start_key, num_chains)
    mcmc.run(run_key, init_params=starts, extra_fields=("num_evaluations",))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True))
    total = int(np.sum(mcmc.get_extra_fields(group_by_chain=True)["num_evaluations"][:, -1]))
    sampling = num_chains * num_samples
    seconds = time.process_time() - began
    return Run(draws, total - sampling, sampling, cpu_seconds=seconds)
