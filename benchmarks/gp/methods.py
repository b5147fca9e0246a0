"""What the regression benchmark compares: kernels of ours under `ip.gp.fit`, and RBF-ARD of peers.

All start from v = 1, noise variance .1 and lengthscales at the median distance times sqrt(D), take
as many steps of Adam with the same decaying rate, and predict noisy outputs.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import implicitppl as ip
from benchmarks.gp.data import Split, median_lengthscales
from benchmarks.gp.peers import Peer
from implicitppl.kernels import RBF, Kernel, SpectralMixture, nkn_regression

NOISE_VARIANCE = 0.1
NUM_COMPONENTS = 4
NKN_VARIANCES = (1.0, 10.0)
"""Mean prior variances from which the network starts: the higher evidence is kept."""
MOST_EXACT, NUM_INDUCING = 2000, 200
"""Beyond so many rows: inducing points, started at as many k-means centres and learned."""


class Settings(NamedTuple):
    """How long, and how, a fit runs."""

    num_steps: int
    learning_rate: float


class Run(NamedTuple):
    """What a method found.

    Attributes:
        mean, variance: of noisy outputs at the test inputs, standardised.
        info: log evidence, noise, and CPU seconds of training and of a first and a second
            prediction; `train_seconds` includes compilation where `is_first` is true.
    """

    mean: np.ndarray
    variance: np.ndarray
    info: dict[str, Any]


def rbf(split: Split) -> list[Kernel]:
    return [RBF(jnp.asarray(median_lengthscales(split.x)))]


def spectral_mixture(split: Split) -> list[Kernel]:
    return [SpectralMixture.from_data(split.x, split.y, NUM_COMPONENTS)]


def nkn(split: Split) -> list[Kernel]:
    x, key = jnp.asarray(split.x), jax.random.key(split.seed)
    return [nkn_regression(x, key=key, variance=variance) for variance in NKN_VARIANCES]


KERNELS: dict[str, Callable[[Split], list[Kernel]]] = {
    "RBF-ARD": rbf,
    "SM": spectral_mixture,
    "NKN": nkn,
}
"""Where a method starts: the fit of the highest evidence is its result."""


def run_ours(name: str, split: Split, settings: Settings) -> Run:
    """Return the run of one of `KERNELS`, exact or through inducing points."""
    processes = [ip.gp.GaussianProcess(kernel) for kernel in KERNELS[name](split)]
    if len(split.y) <= MOST_EXACT:
        return run_processes(processes, split, settings)
    found = run_processes([sparse(p, split) for p in processes], split, settings)
    return found._replace(info=found.info | {"num_inducing": NUM_INDUCING})


def sparse(process: ip.gp.GaussianProcess, split: Split) -> ip.gp.SparseGaussianProcess:
    """Return the process through inducing points at k-means centres of the inputs."""
    return ip.gp.SparseGaussianProcess(process, jnp.asarray(centres(split)))


def centres(split: Split) -> np.ndarray:
    """Return `NUM_INDUCING` k-means centres of the inputs."""
    from sklearn.cluster import KMeans

    return KMeans(NUM_INDUCING, n_init=1, random_state=split.seed).fit(split.x).cluster_centers_


def run_processes(starts: list[Any], split: Split, settings: Settings) -> Run:
    """Return the best run of any processes with `log_evidence` and `condition`."""
    x, y, x_test = (jnp.asarray(a) for a in (split.x, split.y, split.x_test))
    begin = time.process_time()
    found, evidence = ip.gp.best_fit(starts, x, y, NOISE_VARIANCE**0.5, **settings._asdict())
    jax.block_until_ready(found)
    info = {"train_seconds": time.process_time() - begin}
    begin = time.process_time()
    posterior = found.process.condition(x, y, found.noise_scale)
    for key in ("predict_first_seconds", "predict_seconds"):
        values = posterior(x_test, noise_scale=found.noise_scale)
        mean, variance = np.asarray(values.mean), np.asarray(values.variance)
        info[key] = time.process_time() - begin
        begin = time.process_time()
    info |= {
        "log_evidence": float(found.log_evidence),
        "noise_sd": float(found.noise_scale),
        "failed_steps": int(found.num_skipped),
        "evidences": [round(float(e), 3) for e in evidence],
    }
    return Run(mean, variance, info)


def run_peer(peer: Peer, split: Split, settings: Settings) -> Run:
    """Return the run of a peer's RBF-ARD, exact or through inducing points."""
    start_peer(peer, split, settings)
    train = peer.ask(do="train", num_steps=settings.num_steps)["seconds"]
    first = peer.predict()[2]
    mean, variance, second = peer.predict()
    info = {
        "train_seconds": train,
        "predict_first_seconds": first,
        "predict_seconds": second,
        "log_evidence": peer.ask(do="log_evidence")["value"],
    }
    if len(split.y) > MOST_EXACT:
        info["num_inducing"] = NUM_INDUCING
    return Run(mean, variance, info)


def start_peer(peer: Peer, split: Split, settings: Settings) -> None:
    """Give a peer the data of a split and the lengthscales to start at."""
    arrays = {
        "x": split.x,
        "y": split.y,
        "x_test": split.x_test,
        "lengthscale": median_lengthscales(split.x),
    }
    if len(split.y) > MOST_EXACT:
        arrays["inducing"] = centres(split)
    peer.start(arrays, *settings)
