"""What an accelerator changes: the same compiled programs on a GPU and on the CPU beside it.

    python -m benchmarks.gpu.run                (a few minutes on a GPU; writes gpu.jsonl)
    python -m benchmarks.gpu.run --peer PYTHON  (GPyTorch's training step on the same card)
    python -m benchmarks.gpu.run --quick        (the smallest sizes, on what there is)
    python -m benchmarks.gpu.tables             (docs/gpu.md)

Seconds are wall-clock medians of calls that wait for their result, compilation stated apart; the
CPU uses all its cores, since this is how people would run it. Both devices get equal arrays, and
the largest difference of their results, relative to the largest value, stands beside the times: a
fast wrong answer would show there. A size whose CPU time would be minutes runs on the GPU alone.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.paths import PEERS

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI

import implicitppl as ip
from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.functional.speed import DIVERGENCES, WEIGHTS, inference
from benchmarks.functional.speed import data as regression
from implicitppl.kernels import RBF, constrain, nkn_regression, unconstrain

OUT = RESULTS / "gpu.jsonl"
PEER = PEERS / "gpu_gpytorch.py"
NUM_DIMS = 8
MAX_SECONDS = 4.0
"""Repeats of one case end after so long."""


class Case(NamedTuple):
    """A program at a size.

    Attributes:
        name: what it computes.
        size: the number that its cost grows with.
        precision: "float32" or "float64"; "float32, highest" has no shortened matrix products.
        make: returns a function and its arguments, on the default device.
        on_cpu: whether the CPU runs it too.
    """

    name: str
    size: int
    precision: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    on_cpu: bool = True


def points(num: int) -> tuple[jax.Array, jax.Array]:
    """Return inputs (N, 8) and outputs (N,) of a smooth function with noise of 0.3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, NUM_DIMS))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=num)
    return jnp.asarray(x, float), jnp.asarray(y, float)


def evidence_step(process: Any, x: jax.Array, y: jax.Array) -> tuple[Callable[..., Any], Any]:
    """Return value and gradient of the log evidence by unconstrained parameters, and arguments."""

    def loss(raw: tuple[Any, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        free, log_noise = raw
        return -constrain(free).log_evidence(x, y, jnp.exp(log_noise))

    raw = (unconstrain(process), jnp.log(jnp.asarray(0.3)))
    arrays, static = eqx.partition(raw, eqx.is_array)

    def step(arrays: Any, x: jax.Array, y: jax.Array) -> Any:
        value, slope = eqx.filter_value_and_grad(loss)(eqx.combine(arrays, static), x, y)
        return value, eqx.filter(slope, eqx.is_array)

    return step, (arrays, x, y)


def exact(num: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    kernel = RBF(jnp.full(NUM_DIMS, 2.5, float))
    return evidence_step(ip.gp.GaussianProcess(kernel), *points(num))


def network(num: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    x, y = points(num)
    kernel = nkn_regression(x, key=jax.random.key(0))
    return evidence_step(ip.gp.GaussianProcess(kernel), x, y)


def sparse(num: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    x, y = points(num)
    process = ip.gp.GaussianProcess(RBF(jnp.full(NUM_DIMS, 2.5, float)))
    return evidence_step(ip.gp.SparseGaussianProcess(process, x[:500]), x, y)


def iterative(num: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    process = ip.gp.GaussianProcess(RBF(jnp.full(NUM_DIMS, 2.5, float)))
    solver = ip.gp.IterativeGaussianProcess(process, key=jax.random.key(0))
    return evidence_step(solver, *points(num))


def score(name: str, num: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a fit to a banana of 10 dimensions and its scores at 1,000 more points."""
    estimator = getattr(ip.score, name)()
    z = jax.random.normal(jax.random.key(0), (num + 1000, 10))
    samples = z.at[:, 1].add(0.5 * z[:, 0] ** 2)
    return lambda x, q: estimator.fit(x)(q), (samples[:num], samples[num:])


def functional(name: str, batch: int, particles: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a step of functional or weight-space inference of a network."""
    x, y = regression()
    svi, floor = inference(name, batch, particles), jnp.zeros((), x.dtype)
    state = svi.init(jax.random.key(1), x, y, floor)

    def step(state: Any, x: jax.Array, y: jax.Array) -> Any:
        state, loss = svi.update(state, x, y, floor)
        return loss, svi.get_params(state)

    return step, (state, x, y)


def implicit(num: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a step of the implicit guide on logistic regression with `num` rows."""
    x, y = points(num)

    def model(x: jax.Array, labels: jax.Array) -> None:
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(NUM_DIMS), 1).to_event(1))
        numpyro.sample("labels", dist.BernoulliLogits(x @ weights), obs=labels)

    # Not Adam, whose first step is the sign of a gradient: rounding would decide it.
    svi = SVI(model, ip.infer.AutoImplicit(model), optax.sgd(1e-3), ip.infer.ImplicitELBO())
    labels = jnp.where(y > 0, 1, 0)
    state = svi.init(jax.random.key(1), x, labels)

    def step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        state, loss = svi.update(state, x, labels)
        return loss, svi.get_params(state)

    return step, (state, x, labels)


def cases(quick: bool) -> Iterator[Case]:
    """Return the cases, the important ones first."""
    both, double = ("float32", "float64"), ("float64",)

    def add(
        name: str,
        make: Callable[[int], Any],
        sizes: tuple[int, ...],
        precisions: tuple[str, ...],
        largest_on_cpu: int = 10**9,
    ) -> Iterator[Case]:
        for size in sizes[:1] if quick else sizes:
            for precision in precisions[-1:] if quick else precisions:
                on_cpu = size <= largest_on_cpu
                yield Case(name, size, precision, lambda n=size: make(n), on_cpu)  # type: ignore[misc]

    yield from add("GP, RBF", exact, (1000, 4000, 16_000), both, 4000)
    yield from add("GP, kernel network", network, (1000, 7372), double, 1000)
    yield from add("SSGE", lambda n: score("SSGE", n), (1000, 4000), both)
    yield from add("Stein", lambda n: score("Stein", n), (1000, 4000), both)
    for name in (WEIGHTS, *DIVERGENCES):
        for batch, particles in [(64, 150), (992, 1200)][: 1 if quick else None]:
            precision = "float32" if name == WEIGHTS else "float64"

            def make(name: str = name, batch: int = batch, particles: int = particles) -> Any:
                return functional(name, batch, particles)

            yield Case(name, batch + 32, precision, make)
    yield from add("AutoImplicit", implicit, (1000, 100_000), ("float32", "float32, highest"))
    yield from add("sparse GP, 500 points", sparse, (10_000, 100_000), double, 10_000)
    yield from add("iterative GP", iterative, (4000, 32_000), double, 4000)


def measure(case: Case, device: jax.Device, repeats: int) -> tuple[dict[str, Any], Any]:
    """Return seconds and memory of a case on a device, and the result on the host."""
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(case.precision == "float64"))
        if case.precision.endswith("highest"):
            stack.enter_context(jax.default_matmul_precision("highest"))
        with jax.default_device(jax.devices("cpu")[0]):
            function, arguments = case.make()
        stack.enter_context(jax.default_device(device))
        placed = jax.device_put(arguments, device)
        begin = time.perf_counter()
        compiled = jax.jit(function).lower(*placed).compile()
        compile_s = time.perf_counter() - begin
        result = jax.block_until_ready(compiled(*placed))
        taken: list[float] = []
        while len(taken) < repeats and (len(taken) < 3 or sum(taken) < MAX_SECONDS):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(*placed))
            taken.append(time.perf_counter() - begin)
        memory = compiled.memory_analysis()
        row = {
            "device": device.device_kind,
            "seconds": float(np.median(taken)),
            "repeats": len(taken),
            "compile_s": compile_s,
            "temporary_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
        }
        return row, jax.tree.map(np.asarray, jax.device_get(result))


def difference(first: Any, second: Any) -> float:
    """Return the largest difference of arrays relative to the largest value of each."""
    found = [0.0]
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if a.size and np.issubdtype(a.dtype, np.floating):
            found.append(float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30)))
    return max(found) if np.all(np.isfinite(found)) else float("nan")


def run(case: Case, devices: list[jax.Device], repeats: int) -> Iterator[dict[str, Any]]:
    """Return a row for every device; a failure is a row that says so."""
    reference = None
    for device in devices:
        is_cpu = device.platform == "cpu"
        if is_cpu and not case.on_cpu and len(devices) > 1:
            continue
        row: dict[str, Any] = {"case": case.name, "size": case.size, "precision": case.precision}
        row["platform"] = device.platform
        try:
            figures, result = measure(case, device, repeats)
            row |= figures
            if reference is not None:
                row["difference"] = difference(reference, result)
            elif is_cpu:
                reference = result
        except Exception as error:  # a size that does not fit is a result of the comparison
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        yield row | stamp()


def stamp() -> dict[str, Any]:
    """Return date, versions and number of CPU cores."""
    found = provenance()
    found["versions"]["cores"] = str(os.cpu_count())
    return found


def peer(python: str, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Return rows of GPyTorch's training step on the GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, str(PEER), *map(str, sizes)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    for line in output.stdout.splitlines():
        if line.startswith("{"):
            yield json.loads(line) | {"date": provenance()["date"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    parser.add_argument("--peer", help="interpreter of an environment with GPyTorch and CUDA")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--cases", nargs="+", help="only cases whose names begin so")
    parser.add_argument("--skip", type=Path, help="leave out what this result file has")
    parser.add_argument("--out", type=Path, default=OUT, help="result file, appended to")
    args = parser.parse_args(arguments)
    if args.quick and args.out == OUT:
        args.out = OUT.parents[2] / "output" / "gpu-quick.jsonl"
    devices = [jax.devices("cpu")[0]]
    if jax.default_backend() != "cpu":
        devices.append(jax.devices()[0])

    def record(row: dict[str, Any]) -> None:
        append(args.out, row)
        print({k: v for k, v in row.items() if k not in ("versions", "python")}, flush=True)

    if args.peer:
        for row in peer(args.peer, (1000, 4000, 16_000)):
            record(row)
    done = {(r["case"], r["size"], r["precision"]) for r in read(args.skip)} if args.skip else set()
    for case in cases(args.quick):
        wanted = not args.cases or case.name.startswith(tuple(args.cases))
        if wanted and (case.name, case.size, case.precision) not in done:
            for row in run(case, devices, args.repeats):
                record(row)
            jax.clear_caches()


if __name__ == "__main__":
    main()
