"""Cost of a step of functional variational inference, beside one of weight-space inference.

    python -m benchmarks.functional.speed   (minutes; writes functional-speed.jsonl)
    python -m benchmarks.functional.tables  (docs/functional-benchmarks.md)

The network of the functional benchmark, float32, on generated data of 8 inputs: `FunctionalELBO`
of batches of B rows and M = 32 measured points, so n = B + M, under an RBF process, and
`Trace_ELBO` with `AutoNormal` on the same weights, on the same batches, with as many particles.
Only the divergence is in float64: `Trace_ELBO` runs with x64 off. All in one process, in turns, so
that a busy machine slows all alike; ratios are medians of ratios within a turn. Memory is what XLA
says of the temporary arrays of the compiled step. Use one thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import implicitppl as ip
from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance
from benchmarks.functional import ours as ours
from benchmarks.functional.gp import NOISE_PRIOR
from benchmarks.functional.methods import RELU
from benchmarks.gp.speed import Compilations
from implicitppl.divergences import DataNoise
from implicitppl.infer import FunctionalELBO

NUM_ROWS, NUM_DIMS, NUM_MEASURED = 1024, 8, 32
SIZES = ((32, 100), (64, 150), (64, 300), (256, 350))
"""Rows of a batch and particles."""
WEIGHTS = "Trace_ELBO, weights"
DIVERGENCES = {"FunctionalELBO, moments": "gaussian", "FunctionalELBO, scores": "score"}
OUT = RESULTS / "functional-speed.jsonl"
Step = Callable[[], float]


def weight_model(batch: int) -> Callable[..., None]:
    """Return the peers' model, of batches."""

    def model(x: jax.Array, y: jax.Array, floor: jax.Array) -> None:
        weights = RELU.sample(x.shape[1])
        noise = numpyro.sample("noise", dist.LogNormal(*NOISE_PRIOR))
        with numpyro.plate("data", len(y), subsample_size=batch) as rows:
            numpyro.sample("y", dist.Normal(RELU(weights, x[rows]), floor + noise), obs=y[rows])

    return model


def inference(name: str, batch: int, particles: int) -> SVI:
    """Return the SVI of a variant."""
    optim = optax.adam(1e-3)
    if name == WEIGHTS:
        model = weight_model(batch)
        return SVI(model, AutoNormal(model), optim, Trace_ELBO(num_particles=particles))
    settings = ours.Functional(0, 0.0, batch, NUM_MEASURED, particles, 0.01, 0.01)
    start = ours.network(jax.random.key(0), NUM_DIMS, settings)
    prior = ip.gp.GaussianProcess(ip.kernels.RBF(jnp.full(NUM_DIMS, 3.0)))
    model, guide = ours.programs(NUM_ROWS, settings, start, prior)
    loss = FunctionalELBO(DataNoise(NUM_MEASURED), DIVERGENCES[name], num_particles=particles)
    return SVI(model, guide, optim, loss)


def stepper(name: str, batch: int, particles: int) -> tuple[Step, dict[str, Any]]:
    """Return a function that takes a step and returns its CPU seconds, and what compiling cost."""
    precise = name != WEIGHTS
    with jax.enable_x64(precise):
        x, y = data()
        svi, floor = inference(name, batch, particles), jnp.zeros((), x.dtype)
        begin = time.process_time()
        state = svi.init(jax.random.key(1), x, y, floor)
        update = jax.jit(lambda state, x, y: svi.update(state, x, y, floor))
        compiled = update.lower(state, x, y).compile()
        info = {
            "compile_s": time.process_time() - begin,
            "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        }
        states, other = [update(state, x, y)[0]], (x + 1, y - 1)
        seen = Compilations()
        states.append(update(states[-1], *other)[0])
        info["compilations_of_second_batch"] = seen.count

    def step() -> float:
        with jax.enable_x64(precise):
            begin = time.process_time()
            states[-1] = jax.block_until_ready(update(states[-1], x, y)[0])
            return time.process_time() - begin

    return step, info


def data() -> tuple[jax.Array, jax.Array]:
    """Return inputs and outputs, in float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_ROWS, NUM_DIMS))
    y = np.sin(2 * x[:, 0]) + 0.3 * rng.normal(size=NUM_ROWS)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def measure(batch: int, particles: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row for every variant."""
    names = [WEIGHTS, *DIVERGENCES]
    made = {name: stepper(name, batch, particles) for name in names}
    taken = np.array([[made[n][0]() for n in names] for _ in range(repeats)])
    sizes = {"n": batch + NUM_MEASURED, "batch": batch, "particles": particles, "repeats": repeats}
    return [
        {"variant": name, **sizes, **made[name][1], **provenance()}
        | {"step_s": float(np.median(taken[:, i]))}
        | {"ratio": float(np.median(taken[:, i] / taken[:, 0]))}
        for i, name in enumerate(names)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT, help="result file, written anew")
    args = parser.parse_args(arguments)
    args.out.unlink(missing_ok=True)
    for batch, particles in SIZES:
        for row in measure(batch, particles, args.repeats):
            append(args.out, row)
            print(row["n"], particles, row["variant"], row["step_s"], row["ratio"], flush=True)


if __name__ == "__main__":
    main()
