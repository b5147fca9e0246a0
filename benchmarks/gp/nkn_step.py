"""Cost of a training step of an exact Gaussian process with a kernel network.

    python -m benchmarks.gp.nkn_step          (two minutes; writes nkn-step.jsonl)
    python -m benchmarks.gp.nkn_step --table  (the table of docs/nkn.md)

CPU seconds of value and gradient of the negative log marginal likelihood by the logarithms of all
parameters, in float64: one RBF with a lengthscale for each of 8 coordinates, and the network of
`nkn_regression`, with planes of the whole matrix (twice: kept, and recomputed in reverse mode) and
in tiles. All in one process, in turns, so that a busy machine slows them alike; ratios are medians
of ratios within a turn. Memory is what XLA says of the temporary arrays of the compiled step. Use
one thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from implicitppl.kernels import RBF, Kernel, constrain, nkn_regression, unconstrain

NUM_DIMS = 8
SIZES = (691, 927)
Gram = Callable[[Kernel, jax.Array], jax.Array]


@jax.custom_vjp
def negative_log_likelihood(K: jax.Array, y: jax.Array) -> jax.Array:
    """Return -log N(y; 0, K) without its constant."""
    return _with_factor(K, y)[0]


def _with_factor(K: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    factor = jnp.linalg.cholesky(K)
    alpha = cho_solve((factor, True), y)
    return 0.5 * y @ alpha + jnp.sum(jnp.log(jnp.diagonal(factor))), (factor, alpha)


def _gradient(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    factor, alpha = residuals
    inverse = solve_triangular(factor, jnp.eye(len(alpha)), lower=True)
    return 0.5 * g * (inverse.T @ inverse - jnp.outer(alpha, alpha)), g * alpha


negative_log_likelihood.defvjp(_with_factor, _gradient)


def whole(kernel: Kernel, x: jax.Array) -> jax.Array:
    """Return the matrix with every plane in memory at once."""
    return kernel._tile(x, None)  # type: ignore[attr-defined]


VARIANTS: dict[str, Gram] = {
    "RBF": lambda kernel, x: kernel.gram(x),
    "network, whole planes": whole,
    "network, whole planes recomputed": jax.checkpoint(whole),
    "network": lambda kernel, x: kernel.gram(x),
}


def step(
    gram: Gram, kernel: Kernel, x: jax.Array, y: jax.Array
) -> tuple[Callable[[], object], float]:
    """Return the compiled step, a function of no arguments, and its temporary memory in MB."""

    def loss(parameters: tuple[Kernel, jax.Array]) -> jax.Array:
        free, log_noise = parameters
        K = gram(constrain(free), x) + jnp.exp(log_noise) * jnp.eye(len(x))
        return negative_log_likelihood(K, y)

    start = (unconstrain(kernel), jnp.log(0.1))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(start).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return lambda: jax.block_until_ready(compiled(start)), memory


def measure(size: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row for every variant at N = `size`."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, NUM_DIMS))
    x = jnp.asarray((x - x.mean(0)) / x.std(0))
    y = jnp.sin(2 * x[:, 0]) + 0.3 * jnp.asarray(rng.normal(size=size))
    single = RBF(jnp.full((NUM_DIMS,), 2.5))
    network = nkn_regression(x, key=jax.random.key(0))
    steps, rows = {}, {}
    for name, gram in VARIANTS.items():
        start = time.process_time()
        steps[name], memory = step(gram, single if name == "RBF" else network, x, y)
        rows[name] = {
            "variant": name,
            "n": size,
            "d": NUM_DIMS,
            "compile_s": time.process_time() - start,
            "temporary_mb": memory,
        }
        steps[name]()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, run in steps.items():
            seconds[name].append(timed(run))
    base = np.asarray(seconds["RBF"])
    for name, row in rows.items():
        taken = np.asarray(seconds[name])
        row |= {"step_s": float(np.median(taken)), "ratio": float(np.median(taken / base))}
        row |= {"repeats": repeats, **provenance()}
    return list(rows.values())


def timed(run: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = ["| kernel | N | CPU ms a step | times the RBF | temporary MB | compilation, CPU s |"]
    lines.append("|---" * 6 + "|")
    for r in rows:
        lines.append(
            f"| {r['variant']} | {r['n']} | {1000 * r['step_s']:.0f} | {r['ratio']:.2f} "
            f"| {r['temporary_mb']:.0f} | {r['compile_s']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "nkn-step.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of the result file")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.out)))
        return
    jax.config.update("jax_enable_x64", True)
    args.out.unlink(missing_ok=True)
    for size in SIZES:
        for row in measure(size, args.repeats):
            append(args.out, row)
    print(table(read(args.out)))


if __name__ == "__main__":
    main()
