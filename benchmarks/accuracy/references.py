"""Reference draws of a posterior: published, exact, or from a long checked NUTS run.

Every reference is `(10, n, P)`: ten runs, whose two halves serve as independent references of
equal size; n is 1,000, and 10,000 where draws are exact. NUTS references run ten vectorised
chains, thinned by 5, and are refused when a rank-normalised R-hat exceeds 1.01 or a bulk effective
sample size is below 4,000. They are kept in a cache folder, named by posterior.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, init_to_median

from benchmarks.accuracy.posteriors import Posterior

CHAINS, LENGTH, THINNING, WARMUP = 10, 1000, 5, 2000
EXACT_LENGTH = 10_000
MAX_RHAT, MIN_ESS = 1.01, 4000.0


@dataclass(frozen=True)
class Reference:
    """Draws `(10, n, P)` of the named scalars, and how they were made."""

    names: list[str]
    draws: np.ndarray
    source: str


def reference(posterior: Posterior, cache: Path, seed: int = 0) -> Reference:
    """Return the reference draws of a posterior, from the cache where it has them.

    Raises:
        ValueError: when a NUTS run did not converge.
    """
    if posterior.exact is not None:
        columns = posterior.exact(np.random.default_rng(seed), CHAINS * EXACT_LENGTH)
        return Reference(list(columns), _stack(columns), "exact draws")
    if posterior.draws_file is not None:
        stored = np.load(posterior.draws_file)
        return Reference([str(n) for n in stored["names"]], stored["draws"], "posteriordb")
    file = cache / f"{posterior.name}-{seed}.npz"
    if not file.exists():
        columns = run_nuts(posterior, seed)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, names=np.array(list(columns)), draws=_stack(columns))
    stored = np.load(file)
    return Reference([str(n) for n in stored["names"]], stored["draws"], "NUTS")


def run_nuts(posterior: Posterior, seed: int, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Return checked draws of the scalars, `(10 * length,)` each, chain after chain."""
    model = posterior.reference_model or posterior.model
    to_reference = posterior.reference_to_reference or posterior.to_reference
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.95, init_strategy=init_to_median()),
        num_warmup=WARMUP,
        num_samples=length * THINNING,
        thinning=THINNING,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), *posterior.args, **posterior.kwargs)
    columns = {k: np.asarray(v) for k, v in to_reference(mcmc.get_samples()).items()}
    check_converged(posterior.name, _stack(columns))
    return columns


def check_converged(name: str, draws: np.ndarray) -> None:
    """Raise unless the chains `(C, N, P)` agree and hold enough effective draws."""
    import arviz as az

    data = az.convert_to_dataset({"scalar": draws})
    rhat = float(np.max(np.asarray(az.rhat(data)["scalar"])))
    ess = float(np.min(np.asarray(az.ess(data)["scalar"])))
    if not (rhat < MAX_RHAT and ess > MIN_ESS):
        raise ValueError(f"`{name}`: NUTS reference not converged; R-hat {rhat}, ESS {ess}.")


def _stack(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return `(CHAINS, n, P)` from P vectors of equal length."""
    stacked = np.stack(list(columns.values()), axis=-1)
    return stacked.reshape(CHAINS, -1, stacked.shape[-1])
