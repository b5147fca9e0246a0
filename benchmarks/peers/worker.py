"""What a peer's process does: read problems, time a call, write scores. NumPy and nothing else.

A peer is a script that calls `serve(rows)` with {row name: function (samples, queries) -> scores}.
It is started as `PYTHON SCRIPT FOLDER`; every `FOLDER/*.npz` holds `samples` and `queries`, and
`FOLDER/<stem>.<row>.out.npz` gets `scores`, `one_ms` and `all_ms`, CPU milliseconds of the whole
call (these peers refit with every call) for one query and for all. Times are measured on seed 0;
`first_s` is the CPU time of the first call, compilation included, and `peak_mb` how much it raised
the peak memory of the process. A second argument names the only row that is wanted.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def serve(rows: Mapping[str, Score], largest: int = 2000) -> None:
    """Answer every problem of the folder given on the command line that is not answered yet."""
    folder = Path(sys.argv[1])
    for file in sorted(folder.glob("*.npz")):
        if file.name.endswith(".out.npz"):
            continue
        problem = np.load(file)
        samples = problem["samples"].astype(np.float32)
        queries = problem["queries"].astype(np.float32)
        if len(samples) > largest:
            continue
        for name, score in rows.items():
            out = file.with_suffix(f".{name}.out.npz")
            if out.exists() or name not in (sys.argv[2:] or [name]):
                continue
            times = {"one_ms": np.nan, "all_ms": np.nan}
            before, start = peak_mb(), time.process_time()
            scores = np.asarray(score(samples, queries))
            first = {"first_s": time.process_time() - start, "peak_mb": peak_mb() - before}
            if file.stem.endswith("-0"):
                score(samples, queries[:1])  # what is compiled is compiled before it is timed
                times = {
                    "one_ms": cpu_ms(score, samples, queries[:1]),
                    "all_ms": cpu_ms(score, samples, queries),
                }
            np.savez(out, scores=scores, **times, **first)


def peak_mb() -> float:
    """Return the largest resident memory of this process so far (Linux).

    Not `ru_maxrss`, which begins at the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_ms(call: Callable[..., object], *arguments: np.ndarray) -> float:
    """Return the CPU milliseconds of the faster of two calls."""
    times = []
    for _ in range(2):
        start = time.process_time()
        np.asarray(call(*arguments))
        times.append(time.process_time() - start)
    return 1000 * min(times)
