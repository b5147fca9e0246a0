"""Measures first results, each in a process of its own without a cache, and appends rows.

    python -m benchmarks.first_use.run                     (every entry point, three times)
    python -m benchmarks.first_use.run --quick             (short runs, once: shows that it works)
    python -m benchmarks.first_use.run --entries AutoImplicit AutoMultivariateNormal
    python -m benchmarks.first_use.tables                  (the tables of docs/first-use.md)

One thread, CPU seconds of the process (user and system), so that other work on the machine hardly
counts. `--label` keeps states of the code apart in the result file: "before" and "after"; with
`--cache FOLDER` it says whether the folder was "empty" or "filled".
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance
from benchmarks.first_use.entries import ENTRIES, GUIDES, IMPORTS

PROBLEMS = ("eight_schools", "kidscore", "logistic")
REPEATS = 3
TIME_LIMIT = 1800
THREADS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}
UNSET = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_ENABLE_X64",
    "PYTHONDONTWRITEBYTECODE",  # an installed package has its byte code
)


def jobs(entries: list[str], problems: list[str]) -> list[list[str]]:
    """Return the arguments of every process: guides on each problem, the others once."""
    return [
        [entry, problem] for entry in entries for problem in (problems if entry in GUIDES else [""])
    ]


def measured(arguments: list[str], quick: bool, cache: Path | None) -> list[dict[str, Any]]:
    """Return the rows of one fresh process."""
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | THREADS
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [sys.executable, "-m", "benchmarks.first_use.entries", *filter(None, arguments)]
    out = subprocess.run(
        command + ["--quick"] * quick,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    if out.returncode:
        raise RuntimeError(f"{arguments} failed:\n{out.stderr[-2000:]}")
    return [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    names = [*IMPORTS, *GUIDES, *ENTRIES]
    parser.add_argument("--entries", nargs="+", choices=names, default=names)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--label", default="after", help="state of the code")
    parser.add_argument("--cache", type=Path, help="folder of JAX's persistent cache")
    parser.add_argument("--out", type=Path, default=RESULTS / "first-use.jsonl")
    parser.add_argument("--quick", action="store_true", help="short runs, once, not kept")
    args = parser.parse_args()
    measured(["implicitppl", ""], args.quick, None)  # writes the byte code
    for repeat in range(1 if args.quick else args.repeats):
        for job in jobs(args.entries, args.problems):
            for row in measured(job, args.quick, args.cache):
                row |= {"label": args.label, "repeat": repeat, "cached": args.cache is not None}
                if not args.quick:
                    append(args.out, row | provenance())
                print(summary(row), flush=True)


def summary(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    name = f"{row['entry']} {row['problem']}".strip()
    return (
        f"{name:40s} {row['stage']:6s} {row['seconds']:6.1f} CPU s, "
        f"{row['compile_seconds']:6.1f} compiling {row['programs']:4d} programs"
    )


if __name__ == "__main__":
    main()
