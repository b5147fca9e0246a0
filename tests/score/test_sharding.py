"""Samples spread over a mesh of eight simulated devices give the scores of one device."""

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from implicitppl.score import KEF, SSGE, Gaussian, Tikhonov, select

x = jax.random.normal(jax.random.key(0), (400, 3))
q = jax.random.normal(jax.random.key(1), (16, 3))
mesh = jax.make_mesh((8,), ("samples",), axis_types=(AxisType.Auto,))
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("samples")))
assert len(spread.sharding.device_set) == 8
for estimator in (
    SSGE(ridge=1.0),
    SSGE(num_landmarks=64, ridge=1.0, reference="gaussian"),
    Tikhonov(num_landmarks=64),
    KEF(level=0.1),
    Gaussian(),
):
    one, eight = estimator.fit(x)(q), estimator.fit(spread)(q)
    print(float(jnp.linalg.norm(one - eight) / jnp.linalg.norm(one)))
one, eight = (select(s[:120], key=jax.random.key(2)) for s in (x, spread))
assert len(eight.parts[-1].bound.sharding.device_set) == 8
queries = jax.device_put(q, NamedSharding(mesh, PartitionSpec("samples")))
assert len(eight(queries).sharding.device_set) == 8
print(float(jnp.linalg.norm(one(q) - eight(queries)) / jnp.linalg.norm(one(q))))
"""


@pytest.mark.slow
def test_eight_devices_give_the_answer_of_one():
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    output = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        env=environment,
    )
    differences = [float(line) for line in output.stdout.split()]
    assert len(differences) == 6
    assert max(differences) < 2e-3  # float32 sums in another order, through small eigenvalues
