"""One subsample of every plate for all particles of a step.

Each particle runs model and guide with a key of its own. A subsampled plate would then hold other
rows in every particle, and the particles at one place of the plate would not be draws of one
distribution, so that no score could be estimated from them. The handler draws the indices of a
plate from a key that depends on the step and on the plate's name, and on nothing else.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray
from numpyro.primitives import Messenger


class shared_plates(Messenger):
    """Draw the indices of subsampled plates from `key` and the plate's name.

    Args:
        fn: the model or guide.
        key: one key for the step; give the same one to the model and to the guide.
    """

    def __init__(self, fn: Callable[..., Any] | None = None, *, key: PRNGKeyArray) -> None:
        self.key = key
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Fills in the value of a plate that has none yet."""
        if msg["type"] != "plate" or msg["value"] is not None:
            return
        key = jax.random.fold_in(self.key, zlib.crc32(msg["name"].encode()))
        msg["value"] = msg["fn"](*msg["args"], rng_key=key)
