"""Pseudo-marginal `ScoreHMC`: hyper-parameters of Gaussian-process classification.

    python -m benchmarks.hmc.classification --seeds 5  (iris and breast cancer)
    python -m benchmarks.hmc.classification --data FOLDER --problems energy yacht --seeds 3
    python -m benchmarks.hmc.classification --quick    (iris, one seed, short runs)
    python -m benchmarks.hmc.classification --report   (the table, from the rows)

The likelihood of the hyper-parameters is an unbiased estimate by importance sampling
(hmc/gp_classification.py), a host function with a random key. Two samplers keep the estimate of
the current point until they leave it, as is needed for the exact posterior (Andrieu and Roberts
2009): `ScoreHMC`, and a random walk with pooled adaptive covariance. The truth is a long NUTS run
on the joint posterior of hyper-parameters and latent function, cached. Errors, effective sample
sizes and their names are those of hmc/run.py; `noise` is the standard deviation of the log
estimate at the posterior mean. Chains start at draws of the prior.

Iris costs 0.5 CPU hours on one thread with 5 seeds and 256 particles, and its NUTS reference about
15 CPU minutes, once; `--quick` takes 2 CPU minutes. breast_cancer has not been run in full.
Estimates are sampled around expectation propagation; `--sweeps 0` around Laplace's approximation,
0.25 CPU hours. Each row has its `cpu_seconds`, compilation included. Rows that the result file has
are skipped.
"""

import argparse
import functools
import itertools
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS, init_to_median

from benchmarks.accuracy.references import check_converged
from benchmarks.common.paths import CACHE, RESULTS
from benchmarks.common.rows import append, read
from benchmarks.hmc.gp_classification import (
    AMPLITUDE_PRIOR,
    BUNDLED,
    LENGTH_PRIOR,
    SWEEPS,
    UCI,
    Evidence,
    joint,
    load,
    log_prior,
    pseudo_marginal,
)
from benchmarks.hmc.rows import measured, table
from benchmarks.hmc.runs import Run
from benchmarks.hmc.targets import Truth, from_draws
from implicitppl.infer import ScoreHMC

CHAINS, ACCEPTANCE, WINDOW = 4, 0.234, 25
SIZES = {"score_hmc": (500, 4000), "random_walk": (1500, 4500)}
QUICK_SIZES = {"score_hmc": (100, 150), "random_walk": (150, 300)}
REFERENCE = (10, 500, 1500)  # chains, warm-up, draws
NUM_ESTIMATES = 200
KEY = ("problem", "method", "sweeps", "particles", "seed")
Sizes = tuple[int, int]


def starts(rng: np.random.Generator, num_inputs: int) -> np.ndarray:
    """Return draws `(C, d + 1)` of the prior."""
    lengths = rng.normal(*LENGTH_PRIOR, size=(CHAINS, num_inputs))
    return np.column_stack([lengths, rng.normal(*AMPLITUDE_PRIOR, size=CHAINS)])


def score_hmc(evidence: Evidence, seed: int, sizes: Sizes) -> Run:
    """Return draws of vectorized chains."""
    first = jnp.asarray(starts(np.random.default_rng(seed), evidence.x.shape[1]))
    mcmc = MCMC(
        ScoreHMC(pseudo_marginal),
        num_warmup=sizes[0],
        num_samples=sizes[1],
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    init = {"log_length": first[:, :-1], "log_amplitude": first[:, -1]}
    mcmc.run(jax.random.key(seed), evidence, init_params=init)
    found = mcmc.get_samples(group_by_chain=True)
    draws = np.concatenate([found["log_length"], found["log_amplitude"][..., None]], axis=-1)
    return finished(draws, evidence)


def finished(draws: np.ndarray, evidence: Evidence) -> Run:
    """Return the run of draws `(C, N, D)` after the calls that the host counted."""
    sampling = draws.shape[0] * draws.shape[1]
    return Run(draws, evidence.calls - sampling, sampling)


def random_walk(evidence: Evidence, seed: int, sizes: Sizes) -> Run:
    """Return draws of an adaptive random walk that keeps the estimate of its current point.

    In the warm-up the covariance is that of the later half of all chains so far, and its scale that
    of an acceptance of 0.234 (Haario et al. 2001, Andrieu and Thoms 2008).
    """
    rng = np.random.default_rng(seed)
    x = starts(rng, evidence.x.shape[1])
    estimate = functools.partial(log_posterior, evidence, rng)
    value = np.array([estimate(point) for point in x])
    scale, factor, path = 2.38 / x.shape[1] ** 0.5, 0.5 * np.eye(x.shape[1]), []
    for i in range(sum(sizes)):
        proposal = x + scale * rng.normal(size=x.shape) @ factor.T
        x, value, accept = pseudo_marginal_step(rng, estimate, x, value, proposal)
        path.append(x)
        if i < sizes[0]:
            scale *= np.exp((accept - ACCEPTANCE) / (i + 1) ** 0.5)
            factor = learned(path) if i % WINDOW == WINDOW - 1 else factor
    return finished(np.stack(path[sizes[0] :], axis=1), evidence)


def log_posterior(evidence: Evidence, rng: np.random.Generator, theta: np.ndarray) -> float:
    """Return an estimate of the log posterior."""
    return evidence(rng, theta) + log_prior(theta)


def pseudo_marginal_step(
    rng: np.random.Generator,
    estimate: Callable[[np.ndarray], float],
    x: np.ndarray,
    value: np.ndarray,
    proposal: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return points, their estimates, and the mean acceptance; only proposals are estimated."""
    proposed = np.array([estimate(point) for point in proposal])
    chance = np.exp(np.minimum(proposed - value, 0.0))
    taken = rng.random(len(x)) < chance
    new = np.where(taken[:, None], proposal, x), np.where(taken, proposed, value)
    return *new, float(np.mean(chance))


def learned(path: list[np.ndarray]) -> np.ndarray:
    """Return the Cholesky factor of the covariance of the later half of the path."""
    found = np.cov(np.concatenate(path[len(path) // 2 :]), rowvar=False)
    return np.linalg.cholesky(found + 1e-6 * np.eye(len(found)))


METHODS = {"score_hmc": score_hmc, "random_walk": random_walk}
HEADS = {"score_hmc": "ScoreHMC", "random_walk": "random walk"}


def truth(name: str, x: np.ndarray, y: np.ndarray, cache: Path, sizes: tuple = REFERENCE) -> Truth:
    """Return moments and quantiles of a long NUTS run on the joint posterior, from the cache.

    Raises:
        ValueError: when the run did not converge.
    """
    identity = zlib.crc32(np.r_[x.ravel(), y, sizes].tobytes())
    file = cache / f"classification-{name}-{identity:08x}.npz"
    if not file.exists():
        draws = run_nuts(x, y, *sizes)
        if sizes == REFERENCE:
            check_converged(name, draws)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, draws=draws)
    names = [*(f"log_length[{i + 1}]" for i in range(x.shape[1])), "log_amplitude"]
    return from_draws(names, np.load(file)["draws"], "NUTS")


def run_nuts(x: np.ndarray, y: np.ndarray, chains: int, warmup: int, num: int) -> np.ndarray:
    """Return draws `(chains, num, D)` of the hyper-parameters."""
    mcmc = MCMC(
        NUTS(joint, target_accept_prob=0.9, init_strategy=init_to_median()),
        num_warmup=warmup,
        num_samples=num,
        num_chains=chains,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), jnp.asarray(x), jnp.asarray(y))
    found = mcmc.get_samples(group_by_chain=True)
    return np.concatenate([found["log_length"], found["log_amplitude"][..., None]], axis=-1)


def row_of(
    key: tuple[str, str, int, int, int], x: np.ndarray, y: np.ndarray, true: Truth, sizes: Sizes
) -> dict[str, Any]:
    """Return the row of one run."""
    _, method, sweeps, particles, seed = key
    evidence = Evidence(x, y, particles, sweeps)
    start = time.process_time()
    run = METHODS[method](evidence, seed, sizes)
    seconds = time.process_time() - start
    return {
        **dict(zip(KEY, key, strict=True)),
        "noise": noise(evidence, true.mean),
        **measured(run, true, sizes, seconds),
    }


def noise(evidence: Evidence, theta: np.ndarray) -> float:
    """Return the standard deviation of the log estimate at theta."""
    rng = np.random.default_rng(0)
    return float(np.std([evidence(rng, theta) for _ in range(NUM_ESTIMATES)]))


KEYS = {"problem": "problem", "method": "method", "sweeps": "EP sweeps", "particles": "K"}
NOISE = {"noise": lambda r: f"{r['noise']:.2f}"}


def report(rows: list[dict[str, Any]]) -> str:
    """Return medians over seeds for each problem, method and number of particles."""
    return table(rows, KEYS, HEADS, NOISE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds uci/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--problems", nargs="+", choices=[*BUNDLED, *UCI], help="default: bundled")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--particles", type=int, nargs="+", default=[256])
    parser.add_argument("--sweeps", type=int, nargs="+", default=[SWEEPS], help="0: Laplace")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of NUTS references")
    parser.add_argument("--quick", action="store_true", help="iris, short runs and reference")
    parser.add_argument("--report", action="store_true", help="print the table of the rows")
    args = parser.parse_args()
    name = "hmc-classification-quick.jsonl" if args.quick else "hmc-classification.jsonl"
    args.out = args.out or RESULTS / name
    args.problems = args.problems or (["iris"] if args.quick else list(BUNDLED))
    return args


def main() -> None:
    args = parse()
    if args.report:
        return print(report(read(args.out)))
    sizes, reference = (QUICK_SIZES, (2, 200, 200)) if args.quick else (SIZES, REFERENCE)
    done = {tuple(row[k] for k in KEY) for row in read(args.out)}
    for name in args.problems:
        x, y = load(name, args.data)
        true = truth(name, x, y, args.cache, reference)
        settings = itertools.product(args.methods, args.sweeps, args.particles, range(args.seeds))
        for key in ((name, *setting) for setting in settings):
            if key not in done:
                row = row_of(key, x, y, true, sizes[key[1]])
                append(args.out, row)
                print(report([row]).splitlines()[-1], flush=True)
    print(report(read(args.out)))


if __name__ == "__main__":
    main()
