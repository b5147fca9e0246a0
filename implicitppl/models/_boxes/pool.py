"""Runs a host function at points: here, in threads or in processes, with a limit on the time.

Nothing raises but what the user has to mend (a function that a worker process cannot load); an
exception of the function, or a point that took too long, is an outcome like any other.

    pool        one call runs in                     after a time-out
    none        the calling thread                   the call goes on in a daemon thread, unheard
    "thread"    one of `num_workers` threads         the same; a thread cannot be stopped
    "process"   one of `num_workers` processes       the process is killed and started anew

Pools live until the interpreter exits, one per number of workers, and the boxes share them.
"""

import functools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

Point = tuple[Any, ...]


class WorkerError(RuntimeError):
    """A worker process could not start, or could not load the function."""


class Outcome(NamedTuple):
    """What one call gave: a value, or the exception instead of it."""

    value: Any = None
    error: BaseException | None = None


def run(
    fn: Callable[..., Any],
    points: Sequence[Point],
    *,
    num_workers: int | None,
    pool: str,
    timeout: float | None,
) -> list[Outcome]:
    """Return the outcome of `fn(*point)` for each point, in order.

    Args:
        fn: the host function.
        points: the arguments of each call.
        num_workers: calls at one time; None is one, in the calling thread.
        pool: "thread" or "process"; used with `num_workers` only.
        timeout: seconds for each call, counted from its own start; None is no limit.

    Raises:
        WorkerError: if a process cannot start or cannot load `fn`.
    """
    if num_workers is None:
        return [_in_thread(fn, point, timeout) for point in points]
    threads = _threads(num_workers)
    if pool == "thread":
        return list(threads.map(lambda point: _in_thread(fn, point, timeout), points))
    idle = _processes(num_workers)

    def in_process(point: Point) -> Outcome:
        process = idle.get()
        try:
            return process.call(fn, point, timeout)
        finally:
            idle.put(process)

    return list(threads.map(in_process, points))


def _here(fn: Callable[..., Any], point: Point) -> Outcome:
    try:
        return Outcome(fn(*point))
    except Exception as error:
        return Outcome(error=error)


def _in_thread(fn: Callable[..., Any], point: Point, timeout: float | None) -> Outcome:
    """Calls in this thread, or in a daemon thread that can be left behind."""
    if timeout is None:
        return _here(fn, point)
    answer: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(_here(fn, point)), daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return _too_long(timeout)


def _too_long(timeout: float) -> Outcome:
    return Outcome(error=TimeoutError(f"no answer within {timeout:g} s"))


class _Process:
    """One worker process, started when first needed and again after it died or was killed.

    The processes are spawned: a fork of a process that runs JAX's threads may hang.
    """

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._pid = 0
        self._loaded: Callable[..., Any] | None = None

    def call(self, fn: Callable[..., Any], point: Point, timeout: float | None) -> Outcome:
        """Return the outcome of one call; the start of the process is not on its clock."""
        future = self._ready(fn).submit(fn, *point)
        wait([future], timeout)
        if not future.done():
            assert timeout is not None
            os.kill(self._pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self._drop()
            return _too_long(timeout)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._drop()
        return Outcome(error=error) if error else Outcome(future.result())

    def _ready(self, fn: Callable[..., Any]) -> ProcessPoolExecutor:
        """Return the executor, with its process up and `fn` loaded once."""
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, mp_context=context)
        try:
            if not self._pid:
                self._pid = self._executor.submit(os.getpid).result()
            if fn is not self._loaded:
                self._executor.submit(callable, fn).result()
                self._loaded = fn
        except Exception as error:
            self._drop()
            raise WorkerError(
                f"A worker process could not start, or could not load {fn!r}. The function must "
                "be importable there (defined at the top level of a module), and a script must "
                'start its work under `if __name__ == "__main__":`.'
            ) from error
        return self._executor

    def _drop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor, self._pid, self._loaded = None, 0, None


@functools.cache
def _threads(num_workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_workers, thread_name_prefix="black-box")


@functools.cache
def _processes(num_workers: int) -> queue.LifoQueue[_Process]:
    """Return the idle processes; last in, first out, so that no more start than are needed."""
    idle: queue.LifoQueue[_Process] = queue.LifoQueue()
    for _ in range(num_workers):
        idle.put(_Process())
    return idle
