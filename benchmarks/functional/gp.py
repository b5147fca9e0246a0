"""The exact process of the functional benchmark, and what a method of it returns.

A zero-mean RBF-ARD process of the highest evidence is fitted once; where its noise is below the
least noise it is conditioned with that in its place. It is the prior of functional inference too.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import implicitppl as ip
from benchmarks.gp.data import Split
from benchmarks.gp.methods import NOISE_VARIANCE, Settings, rbf

WIDTH = 50
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "sin": jnp.sin}
NOISE_PRIOR = (float(np.log(0.1)), 1.5)
NUM_DRAWS = 500


class Prediction(NamedTuple):
    """A predictive mixture of S Gaussians at the test inputs, in standardised units.

    Attributes:
        mean: (S, T), function values of the particles.
        noise_sd: (S, 1) standard deviations around them; (1, T) for the process.
        info: CPU seconds of training, compilation included where the method is new to the shape,
            and what the method says about its fit.
    """

    mean: np.ndarray
    noise_sd: np.ndarray
    info: dict[str, Any]


Method = Callable[[Split, Any, Sequence[float]], dict[float, Prediction]]


def scores(split: Split, found: Prediction) -> dict[str, float]:
    """Return RMSE of the mixture's mean and its mean test log density, in the data's units."""
    from scipy.special import logsumexp
    from scipy.stats import norm

    logs = norm.logpdf(split.y_test, found.mean, found.noise_sd)
    density = logsumexp(logs, axis=0) - np.log(len(logs))
    error = found.mean.mean(axis=0) - split.y_test
    return {
        "rmse": float(split.scale * np.sqrt(np.mean(error**2))),
        "ll": float(np.mean(density) - np.log(split.scale)),
    }


def adam(num_steps: int, rate: jax.Array) -> optax.GradientTransformation:
    """Return Adam whose rate falls as a cosine to 0."""
    return optax.adam(optax.cosine_decay_schedule(rate, num_steps))


def fit_process(split: Split, settings: Settings) -> Any:
    """Return the fit of highest evidence: its process, its noise and its log evidence."""
    process = ip.gp.GaussianProcess(rbf(split)[0])
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    return ip.gp.fit(process, x, y, NOISE_VARIANCE**0.5, **settings._asdict())


def exact_gp(split: Split, settings: Settings, floors: Sequence[float]) -> dict[float, Prediction]:
    """Return predictions of a zero-mean RBF-ARD process of the highest evidence."""
    x, y, x_test = (jnp.asarray(a) for a in (split.x, split.y, split.x_test))
    begin = time.process_time()
    fit = fit_process(split, settings)
    noise = float(fit.noise_scale)
    info = {
        "train_seconds": time.process_time() - begin,
        "log_evidence": float(fit.log_evidence),
        "fitted_noise_sd": noise,
    }
    found = {}
    for floor in floors:
        scale = max(noise, floor)
        values = fit.process.condition(x, y, scale)(x_test, noise_scale=scale)
        mean, sd = np.asarray(values.mean)[None], np.sqrt(np.asarray(values.variance))[None]
        found[floor] = Prediction(mean, sd, info | {"noise_sd": scale})
    return found
