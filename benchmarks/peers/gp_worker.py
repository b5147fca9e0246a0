"""What a peer's process does for the Gaussian-process benchmarks: JSON requests in, answers out.

A peer is a script that calls `serve(start)`, where `start(problem)` gives an object with `train`,
`log_evidence` and `predict`. One request is one line of standard input:

    {"do": "start", "file": NPZ, "num_steps": n, "learning_rate": r}
    {"do": "train", "num_steps": k}            go k steps further on the schedule of n
    {"do": "log_evidence"}
    {"do": "predict", "out": NPZ}              mean and variance of noisy outputs at the test inputs

Every answer has `seconds`, the CPU time of the call. NumPy and nothing else.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

NOISE_VARIANCE = 0.1
"""Where the noise starts, in every library; v starts at 1."""


class Problem(NamedTuple):
    """Standardised data, where parameters start, and the schedule of the learning rate.

    With `inducing`, (M, D), the process is Titsias's collapsed bound, and they are learned too.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    lengthscale: np.ndarray
    num_steps: int
    learning_rate: float
    inducing: np.ndarray | None = None


class Regression(Protocol):
    """A Gaussian process with an RBF kernel that can be trained and asked."""

    def train(self, num_steps: int) -> None:
        """Take steps of Adam on the log evidence, the rate decaying as a cosine to 0."""

    def log_evidence(self) -> float:
        """Return log p(y) of all observations together, or the bound of it, in nats."""

    def predict(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of noisy outputs at the test inputs."""


def serve(start: Callable[[Problem], Regression]) -> None:
    """Answer requests until the input ends."""
    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        begin = time.process_time()
        match request["do"]:
            case "start":
                data = dict(np.load(request["file"]))
                schedule = {key: request[key] for key in ("num_steps", "learning_rate")}
                model = start(Problem(**data, **schedule))
            case "train":
                model.train(request["num_steps"])
            case "log_evidence":
                answer["value"] = model.log_evidence()
            case "predict":
                mean, variance = model.predict()
        answer["seconds"] = time.process_time() - begin
        if request["do"] == "predict":
            np.savez(request["out"], mean=mean, variance=variance)
        print(json.dumps(answer), flush=True)
