"""Samples spread over a mesh, for a computation that is not worth spreading.

`select` compares its candidates on at most 4,000 samples with small eigendecompositions, one after
the other: partitioned, they would spend their time in communication, and replicated, every device
would do the same work. So the samples are gathered on one device, M (C + D) numbers, and the fitted
score is copied to all, ready for queries that are spread.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.sharding import NamedSharding, PartitionSpec


def on_one_device(solve: Callable[..., Any], samples: jax.Array, *others: Any) -> Any:
    """Return solve(samples, *others); the mesh of the samples, if any, holds copies of the result.

    While tracing, where arrays have no devices, and on a single device this is a plain call.
    """
    if isinstance(samples, jax.core.Tracer) or len(samples.sharding.device_set) == 1:
        return solve(samples, *others)
    devices: set[Any] = samples.sharding.device_set
    first = min(devices, key=lambda device: device.id)
    result = solve(*_place((samples, *others), first))
    if not isinstance(samples.sharding, NamedSharding):
        return result
    return _place(result, NamedSharding(samples.sharding.mesh, PartitionSpec()))


def _place(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda a: jax.device_put(a, where) if eqx.is_array(a) else a, tree)
