"""Drives a peer's process: starts a script of `benchmarks/peers` and sends it requests.

Each peer runs with the Python of an environment that has it; the project depends on none of them.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.common.paths import PEERS

SCRIPTS = {"GPyTorch": "gp_gpytorch.py", "GPJax": "gp_gpjax.py"}
PACKAGES = {"GPyTorch": ("gpytorch", "torch"), "GPJax": ("gpjax", "jax")}


class Peer:
    """A running peer; a context manager that ends its process.

    Args:
        name: of `SCRIPTS`.
        python: the interpreter that has it.
    """

    def __init__(self, name: str, python: str):
        self.name, self.python = name, python
        self.folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [python, str(PEERS / SCRIPTS[name])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            RuntimeError: if the process ended; its own message is on the standard error.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended while it was asked to {request['do']}.")
        return json.loads(line)

    def start(self, arrays: dict[str, Any], num_steps: int, learning_rate: float) -> dict[str, Any]:
        """Give the peer data: `x`, `y`, `x_test` and `lengthscale`."""
        file = Path(self.folder.name) / "problem.npz"
        np.savez(file, **arrays)
        return self.ask(
            do="start", file=str(file), num_steps=num_steps, learning_rate=learning_rate
        )

    def predict(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return mean, variance and CPU seconds of a prediction."""
        file = Path(self.folder.name) / "predicted.npz"
        seconds = self.ask(do="predict", out=str(file))["seconds"]
        found = np.load(file)
        return found["mean"], found["variance"], seconds

    def versions(self) -> dict[str, str]:
        """Return the versions of its packages."""
        names = PACKAGES[self.name]
        code = f"from importlib import metadata as m; print(*map(m.version, {names!r}))"
        found = subprocess.run(
            [self.python, "-c", code], check=True, capture_output=True, text=True
        )
        return dict(zip(names, found.stdout.split(), strict=True))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()
