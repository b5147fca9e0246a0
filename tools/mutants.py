"""Measures the power of the tests: faults of one line, each against the tests of its own room.

A fault (`mutants.toml`) is a replacement of text: the old text occurs exactly once in the package,
wherever its file has moved (`--check`). The tree is copied to a temporary folder, one fault is made
there, and pytest runs the fast tests of the room, and its conformance table, until one fails. A
fault that no test sees is a gap in the tests. Needs only the standard library, and a Python that
has what the tests need.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("mutants.toml")
COPIED = ("implicitppl", "tests", "benchmarks", "examples", "docs", "pyproject.toml")
FAST = "not slow and not statistical and not exhaustive"
LIMIT = 4.0
"""Minutes for one fault: a room's own tests take less."""
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Of the fast tests in the Makefile; what is set already stays."""
PASSED, FAILED = 0, 1  # of pytest


class Fault(NamedTuple):
    """A fault that the tests of its room must see.

    Attributes:
        name: package, room and what is wrong.
        edits: old text and new text; of several spellings of the old text one is found, once.
        tests: patterns of test files, in order; of those between `|` the first that is there.
    """

    name: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


def faults_in(file: Path) -> list[Fault]:
    """Returns the faults of a table."""
    faults = []
    for row in tomllib.loads(file.read_text())["fault"]:
        old, new = ([v] if isinstance(v, str) else v for v in (row["old"], row["new"]))
        edits = tuple(zip(old, new, strict=True))
        faults.append(Fault(row["name"], edits, tuple(row["tests"])))
    return faults


class Result(NamedTuple):
    """What the tests said of a fault; `outcome` is one of `OUTCOMES`."""

    name: str
    outcome: str
    seconds: float
    test: str
    commit: str


OUTCOMES = ("caught", "not caught", "timed out", "broken", "not run")
"""Broken: pytest could not run, so nothing was measured."""


def faulty(fault: Fault, tree: Path) -> tuple[Path, str]:
    """Returns the file of a fault and its text with the fault in it, or raises `ValueError`."""
    found = []
    for path in sorted((tree / "implicitppl").rglob("*.py")):
        text = path.read_text()
        for old, new in fault.edits:
            found += text.count(old) * [(path, text.replace(old, new))]
    if len(found) != 1:
        raise ValueError(f"{fault.name}: the old text is found {len(found)} times, not once")
    path, text = found[0]
    ast.parse(text)
    return path, text


def rooms(fault: Fault, tree: Path) -> list[str]:
    """Returns the test files that must see a fault, or raises `ValueError`."""
    files: list[str] = []
    for alternatives in fault.tests:
        options = (sorted(tree.glob(pattern)) for pattern in alternatives.split("|"))
        there = next((paths for paths in options if paths), [])
        if not there:
            raise ValueError(f"{fault.name}: no test file is {alternatives}")
        files += [str(path.relative_to(tree)) for path in there]
    return list(dict.fromkeys(files))


def problems(faults: Iterable[Fault], tree: Path) -> list[str]:
    """Returns what is wrong with the table at this tree; nothing is run."""
    wrong = []
    for fault in faults:
        for question in (faulty, rooms):
            try:
                question(fault, tree)
            except (ValueError, SyntaxError) as error:
                wrong.append(str(error))
    return wrong


@contextmanager
def copy_of(tree: Path) -> Iterator[Path]:
    """A copy in a temporary folder: without old bytecode, and nothing of it outlives the run."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        for part in COPIED:
            if (tree / part).is_dir():
                skip = shutil.ignore_patterns("__pycache__", "_build")
                shutil.copytree(tree / part, Path(name, part), ignore=skip)
            else:
                shutil.copy(tree / part, name)
        yield Path(name)


def run_tests(files: list[str], folder: Path, tree: Path, seconds: float | None) -> tuple[str, int]:
    """Returns the output of pytest and its exit code; raises `TimeoutExpired`."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tree / ".cache" / "programs")}
    environment = ENVIRONMENT | cache | os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", FAST]
    process = subprocess.Popen(
        [*command, *files],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # with the processes that tests start
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return output, process.returncode


def measure(fault: Fault | None, files: list[str], tree: Path, seconds: float | None) -> Result:
    """Returns what the tests say of a copy of the tree with one fault in it, or with none."""
    began = time.monotonic()
    test = ""
    with copy_of(tree) as folder:
        if fault is not None:
            path, text = faulty(fault, folder)
            path.write_text(text)
        try:
            output, code = run_tests(files, folder, tree, seconds)
        except subprocess.TimeoutExpired:
            outcome = "timed out"
        else:
            outcome = {PASSED: "not caught", FAILED: "caught"}.get(code, "broken")
            failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", output, re.MULTILINE)
            test = failed[1] if failed else ""
            if outcome == "broken":
                print(output[-3000:])
    name = "no fault" if fault is None else fault.name
    return Result(name, outcome, round(time.monotonic() - began, 1), test, commit_of(tree))


def commit_of(tree: Path) -> str:
    """Returns the commit of a tree, with a `+` if it was changed since."""
    git = ["git", "-C", str(tree), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        run = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def record(result: Result, out: Path | None) -> None:
    """Prints a result, and adds it to the file."""
    print(f"{result.outcome:10} {result.seconds:6.0f} s  {result.name}  {result.test}", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            caught = {"caught": result.outcome == "caught"}
            file.write(json.dumps(result._asdict() | caught) + "\n")


def run_all(faults: list[Fault], options: argparse.Namespace) -> list[Result]:
    """Returns a result for each fault; not run are those with less time left than the limit."""
    end = time.monotonic() + 60 * options.budget
    results = []
    for fault in faults:
        if end - time.monotonic() < 60 * options.limit:
            result = Result(fault.name, "not run", 0.0, "", commit_of(options.tree))
        else:
            files = rooms(fault, options.tree)
            result = measure(fault, files, options.tree, 60 * options.limit)
        record(result, options.out)
        results.append(result)
    return results


def run_baseline(faults: list[Fault], options: argparse.Namespace) -> int:
    """Runs the same tests without a fault: 0 if all pass."""
    files = list(dict.fromkeys(f for fault in faults for f in rooms(fault, options.tree)))
    print(f"{len(files)} test files without a fault", flush=True)
    seconds = None if options.budget == float("inf") else 60 * options.budget
    result = measure(None, files, options.tree, seconds)
    word = {"not caught": "passed", "caught": "failed"}.get(result.outcome, result.outcome)
    record(result._replace(outcome=word), options.out)
    return int(word != "passed")


def table(results: list[Result]) -> str:
    """Returns how many faults met with which outcome, and the names of those not caught."""
    lines = []
    for outcome in OUTCOMES:
        names = [result.name for result in results if result.outcome == outcome]
        lines.append(f"{outcome:10} {len(names):3}")
        if outcome != "caught":
            lines += [f"    {name}" for name in names]
    return "\n".join(lines)


def chosen(names: list[str] | None) -> list[Fault]:
    """Returns the faults whose name starts with one of those given; all without any."""
    faults = [f for f in faults_in(TABLE) if not names or f.name.startswith(tuple(names))]
    if not faults:
        sys.exit(f"no fault is named {names}; see --list")
    return faults


def arguments() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print names, files and tests")
    parser.add_argument(
        "--check", action="store_true", help="every old text is found once; nothing is run"
    )
    parser.add_argument(
        "--baseline", action="store_true", help="run the same tests without a fault, and no more"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings of names")
    parser.add_argument("--out", type=Path, help="file to which results are added, as JSON lines")
    parser.add_argument("--limit", type=float, default=LIMIT, help="minutes for a fault")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes for all")
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="another tree to measure, such as an older commit's"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    options.tree = options.tree.resolve()
    faults = chosen(options.only)
    wrong = problems(faults, options.tree)
    if wrong:
        print("\n".join(wrong))
        return 1
    if options.check:
        return 0
    if options.list:
        for fault in faults:
            path = faulty(fault, options.tree)[0].relative_to(options.tree)
            print(fault.name, f"    {path}: {' '.join(rooms(fault, options.tree))}", sep="\n")
        return 0
    if options.baseline:
        return run_baseline(faults, options)
    results = run_all(faults, options)
    print(table(results))
    return int(any(result.outcome != "caught" for result in results))


if __name__ == "__main__":
    sys.exit(main())
