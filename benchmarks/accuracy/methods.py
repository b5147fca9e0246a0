"""Ways to approximate a posterior, behind one call: table name -> runner.

A runner takes a `Posterior`, a seed and a `Budget` and returns draws of the latent sites and what
it cost. Guides are trained in chunks of compiled steps; compilation is timed apart. The budget is
in CPU seconds of running, so that a busy machine changes no result beyond rounding: a calibration
chunk fixes the number of steps, and the cosine schedule spans exactly those steps.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide

from benchmarks.accuracy.posteriors import Posterior
from benchmarks.accuracy.starts import starting_point

NUM_DRAWS = 100_000  # of a guide: so many that they add little to the noise of the reference
NUTS_DRAWS = 10_000
CHUNK = 50
MAX_STEPS = 100_000
CALIBRATION_SECONDS = 0.3
LOSS_WINDOW = 200  # steps at the end of a run, whose mean is the reported negative ELBO


@dataclass(frozen=True)
class Budget:
    """CPU seconds of running (compilation apart), or a number of steps where that is given."""

    seconds: float = 20.0
    steps: int | None = None


Info = dict[str, float]
Runner = Callable[[Posterior, int, Budget], tuple[dict[str, np.ndarray], Info]]


@dataclass(frozen=True)
class GuideSettings:
    """How a NumPyro guide is trained: Adam from `learning_rate` down a cosine to zero."""

    guide: Callable[..., autoguide.AutoContinuous]
    learning_rate: float = 5e-3
    num_particles: int = 16


GUIDES = {
    "AutoNormal": GuideSettings(autoguide.AutoNormal),
    "AutoMultivariateNormal": GuideSettings(autoguide.AutoMultivariateNormal),
    "AutoIAFNormal": GuideSettings(autoguide.AutoIAFNormal),
    "AutoBNAFNormal": GuideSettings(autoguide.AutoBNAFNormal),
}


def cosine_adam(learning_rate: float, num_steps: Any) -> numpyro.optim.Adam:
    """Return Adam whose step size falls to zero along half a cosine in `num_steps` steps."""
    return numpyro.optim.Adam(
        lambda i: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(i / num_steps, 1.0)))
    )


def train(settings: GuideSettings, posterior: Posterior, seed: int, budget: Budget) -> Any:
    """Return the trained guide, its parameters and the costs."""
    args, kwargs = posterior.args, posterior.kwargs
    guide = settings.guide(posterior.model, init_loc_fn=starting_point(posterior, seed))
    loss = Trace_ELBO(num_particles=settings.num_particles)
    svi = SVI(posterior.model, guide, cosine_adam(settings.learning_rate, 1.0), loss)
    start = time.process_time()
    state = svi.init(jax.random.key(seed), *args, **kwargs)

    @jax.jit
    def chunk(state: Any, num_steps: jax.Array) -> Any:
        annealed = copy.copy(svi)
        annealed.optim = cosine_adam(settings.learning_rate, num_steps)
        step = lambda carry, _: annealed.stable_update(carry, *args, **kwargs)  # noqa: E731
        return jax.lax.scan(step, state, None, length=CHUNK)

    compiled = chunk.lower(state, jnp.asarray(1.0)).compile()
    compile_seconds = time.process_time() - start
    num_chunks = _chunks(compiled, state, budget)
    start = time.process_time()
    losses = []
    for _ in range(num_chunks):
        state, latest = compiled(state, jnp.asarray(float(num_chunks * CHUNK)))
        losses = [*losses, latest][-(LOSS_WINDOW // CHUNK) :]
    jax.block_until_ready(losses)
    info = {
        "seconds": time.process_time() - start,
        "compile_seconds": compile_seconds,
        "steps": num_chunks * CHUNK,
        "loss": float(jnp.mean(jnp.concatenate(losses))),
    }
    return guide, svi.get_params(state), info


def _chunks(compiled: Callable[..., Any], state: Any, budget: Budget) -> int:
    """Return how many chunks fit into the budget, timed on chunks that are thrown away."""
    if budget.steps is not None:
        return max(1, budget.steps // CHUNK)
    total = jnp.asarray(float(CHUNK))
    jax.block_until_ready(compiled(state, total))
    start, count = time.process_time(), 0
    while count == 0 or time.process_time() - start < CALIBRATION_SECONDS:
        jax.block_until_ready(compiled(state, total))
        count += 1
    per_chunk = (time.process_time() - start) / count
    return int(np.clip(budget.seconds / per_chunk, 1, MAX_STEPS // CHUNK))


def run_guide(
    settings: GuideSettings, posterior: Posterior, seed: int, budget: Budget
) -> tuple[dict[str, np.ndarray], Info]:
    """Return draws of the latent sites from one of NumPyro's guides."""
    guide, params, info = train(settings, posterior, seed, budget)
    return sample_guide(guide, params, posterior, seed), info


def sample_guide(guide: Any, params: Any, posterior: Posterior, seed: int) -> dict[str, np.ndarray]:
    """Return `NUM_DRAWS` draws of every latent site from a trained guide."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    draws = guide.sample_posterior(
        key, params, *posterior.args, sample_shape=(NUM_DRAWS,), **posterior.kwargs
    )
    return {k: np.asarray(v) for k, v in draws.items()}


def run_nuts(posterior: Posterior, seed: int, budget: Budget) -> tuple[dict[str, np.ndarray], Info]:
    """Return draws from ten vectorised NUTS chains of 1,000; the budget is not used."""
    del budget
    num_chains = 10
    mcmc = MCMC(
        NUTS(posterior.model, init_strategy=starting_point(posterior, seed)),
        num_warmup=1000,
        num_samples=NUTS_DRAWS // num_chains,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    with costs() as info:
        mcmc.run(jax.random.key(seed), *posterior.args, **posterior.kwargs)
        draws = {k: np.asarray(v) for k, v in mcmc.get_samples().items()}
    order = np.random.default_rng(seed).permutation(NUTS_DRAWS)  # so that halves are alike
    return {k: v[order] for k, v in draws.items()}, info


def run_implicit(
    posterior: Posterior, seed: int, budget: Budget
) -> tuple[dict[str, np.ndarray], Info]:
    """Return draws from our guide with its default settings; `fit` stops by its own rule."""
    from implicitppl.infer import AutoImplicit, fit

    options: dict[str, Any] = {} if budget.steps is None else {"num_steps": budget.steps}
    guide = AutoImplicit(posterior.model, init_loc_fn=starting_point(posterior, seed))
    options |= {**posterior.kwargs, "progress_bar": False}
    with costs() as info:
        result = fit(jax.random.key(seed), posterior.model, guide, *posterior.args, **options)
        jax.block_until_ready(result.losses)
    info |= {
        "steps": int(result.num_steps),
        "skipped_steps": int(result.num_skipped),
        "converged": bool(result.converged),
        "loss": float(jnp.mean(result.losses[-LOSS_WINDOW:])),
        "log_weight_sd": float(result.log_weight_sd),
        "start_loss": float(result.gaussian.loss),
    }
    return sample_guide(guide, result.params, posterior, seed), info


@contextlib.contextmanager
def costs() -> Iterator[Info]:
    """Fill a dictionary with the CPU seconds of a block: `seconds` of running, compilation apart.

    JAX reports tracing and compilation in wall seconds; the CPU seconds are split in proportion.
    """
    info: Info = {}
    compiling: list[float] = []

    def record(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event.startswith("/jax/core/compile"):
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(record)
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield info
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    total = time.process_time() - cpu
    share = min(sum(compiling) / (time.perf_counter() - wall), 1.0)
    info |= {"seconds": total * (1 - share), "compile_seconds": total * share}


def _runner(settings: GuideSettings) -> Runner:
    return lambda posterior, seed, budget: run_guide(settings, posterior, seed, budget)


METHODS: dict[str, Runner] = {
    "AutoImplicit": run_implicit,
    **{name: _runner(settings) for name, settings in GUIDES.items()},
    "NUTS": run_nuts,
}
