"""CPU time of exact Gaussian processes: a training step and a prediction, libraries in turns.

    python -m benchmarks.gp.speed --data FOLDER --peers PYTHON
    python -m benchmarks.gp.tables  (docs/gp-benchmarks.md)

One step is value and gradient of the log evidence and one update of Adam, RBF-ARD in float64. Ours
is `ip.gp.fit`; the peers' loops are those of `benchmarks/peers`. Everything is compiled before it
is timed. Blocks of steps alternate between the libraries, so that a busy machine slows all alike,
and the median over blocks is stated. A block of `fit` pays for one more value at its end, and for
its dispatch, which count as ours. A prediction gives mean and variance of noisy outputs at the test
inputs from a process that has its factor. Use one thread.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import implicitppl as ip
from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance
from benchmarks.gp.data import BUNDLED, Split, split
from benchmarks.gp.methods import KERNELS, NOISE_VARIANCE, Settings, start_peer
from benchmarks.gp.peers import SCRIPTS, Peer

OUT = RESULTS / "gp-speed.jsonl"
BLOCK = 20
SETTINGS = Settings(BLOCK, 0.05)
Seconds = Callable[[], float]


class Compilations:
    """Counts the programs that JAX compiles, from its own events."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._see)

    def _see(self, event: str, _: float, **__: Any) -> None:
        self.count += event.endswith("backend_compile_duration")


def ours(kernel: str, data: Split) -> tuple[Seconds, Seconds]:
    """Return functions that time a block of steps and a prediction of ours."""
    x, y, x_test = (jnp.asarray(a) for a in (data.x, data.y, data.x_test))
    process = ip.gp.GaussianProcess(KERNELS[kernel](data)[0])
    noise = jnp.asarray(NOISE_VARIANCE**0.5)

    def train() -> float:
        begin = time.process_time()
        jax.block_until_ready(ip.gp.fit(process, x, y, noise, **SETTINGS._asdict()))
        return time.process_time() - begin

    posterior = process.condition(x, y, noise)

    def predict() -> float:
        begin = time.process_time()
        values = posterior(x_test, noise_scale=noise)
        np.asarray(values.mean), np.asarray(values.variance)
        return time.process_time() - begin

    return train, predict


def theirs(peer: Peer, data: Split) -> tuple[Seconds, Seconds]:
    """Return functions that time a block of steps and a prediction of a peer."""
    start_peer(peer, data, SETTINGS)
    return (
        lambda: peer.ask(do="train", num_steps=BLOCK)["seconds"],
        lambda: peer.predict()[2],
    )


def compare(
    timers: dict[str, tuple[Seconds, Seconds]], num_blocks: int, num_predictions: int
) -> dict[str, dict[str, float]]:
    """Return medians for each library, over blocks that alternate."""
    names = list(timers)
    first = {name: {"first_block_seconds": timers[name][0]()} for name in names}
    steps: dict[str, list[float]] = {name: [] for name in names}
    for block in range(num_blocks):
        for name in names[block % len(names) :] + names[: block % len(names)]:
            steps[name].append(timers[name][0]() / BLOCK)
    warm: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        timers[name][1]()
    for _ in range(num_predictions):
        for name in names:
            warm[name].append(timers[name][1]())
    return {
        name: first[name]
        | {
            "step_ms": 1000 * float(np.median(steps[name])),
            "step_low_ms": 1000 * float(np.min(steps[name])),
            "step_high_ms": 1000 * float(np.max(steps[name])),
            "predict_ms": 1000 * float(np.median(warm[name])),
        }
        for name in names
    }


def second_fit(kernel: str, data: Split, other: Split, counter: Compilations) -> int:
    """Return how many programs a fit and a prediction of other data of equal shapes compile."""
    for found in (data, other):
        train, predict = ours(kernel, found)
        train(), predict()
        if found is data:
            before = counter.count
    return counter.count - before


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds uci/")
    parser.add_argument("--sets", nargs="+", help="default: energy and concrete")
    parser.add_argument("--peers", help="interpreter of an environment with GPyTorch and GPJax")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), help="of ours, beside RBF")
    parser.add_argument("--blocks", type=int, default=5, help=f"of {BLOCK} steps each")
    parser.add_argument("--predictions", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT, help="result file (JSON lines)")
    args = parser.parse_args(arguments)
    args.out.unlink(missing_ok=True)  # figures of different runs do not compare
    counter = Compilations()
    with jax.enable_x64(True):
        for name in args.sets or (["energy", "concrete"] if args.data else [BUNDLED]):
            measure(args, name, counter)


def measure(args: argparse.Namespace, name: str, counter: Compilations) -> None:
    """Append the rows of one data set."""
    with contextlib.ExitStack() as stack:
        data, other = (split(name, seed, args.data) for seed in (1, 2))
        names = SCRIPTS if args.peers else ()
        peers = {p: stack.enter_context(Peer(p, args.peers)) for p in names}
        timers = {kernel: ours(kernel, data) for kernel in args.kernels}
        timers |= {p: theirs(peer, data) for p, peer in peers.items()}
        for method, figures in compare(timers, args.blocks, args.predictions).items():
            row = {"data": name, "num_train": len(data.y), "method": method, **figures}
            row |= {"steps": BLOCK * args.blocks}
            if method in KERNELS:
                row["compilations_of_second_fit"] = second_fit(method, data, other, counter)
            row |= provenance()
            row["versions"] |= peers[method].versions() if method in peers else {}
            append(args.out, row)
            print({k: v for k, v in row.items() if k != "versions"}, flush=True)


if __name__ == "__main__":
    main()
