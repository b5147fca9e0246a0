"""Chains of `ScoreHMC` over a mesh of eight simulated devices: two a device, each learns alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The posterior of x is normal: y = A x + noise, in which A is known to the host alone. Standard
# errors are those of 16 independent chains. `calls` is a list: appending is safe among threads.
_SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
from jax.sharding import AxisType, PartitionSpec
from numpyro.infer import MCMC
import implicitppl as ip

CHAINS, WARMUP, DRAWS = 16, 30, 100
A, Y = np.array([[2.0, 0.5], [0.0, 1.0]], np.float32), np.array([1.5, -0.5], np.float32)
calls = []

def host(x):
    calls.append(x)
    return A @ x

def model():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = ip.models.black_box("mean", host, x, out=(2,))
    numpyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=Y)

mesh = jax.make_mesh((8,), ("c",), axis_types=(AxisType.Auto,))
spec = PartitionSpec("c")

def spread(f):
    mapped = jax.shard_map(
        jax.vmap(f), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return jax.jit(mapped)

mcmc = MCMC(
    ip.infer.ScoreHMC(model),
    num_warmup=WARMUP,
    num_samples=DRAWS,
    num_chains=CHAINS,
    chain_method=spread,
    progress_bar=False,
)
mcmc.run(jax.random.key(0), extra_fields=ip.infer.ScoreHMC.diagnostic_fields)
samples = mcmc.get_samples(group_by_chain=True)
assert len(samples["x"].sharding.device_set) == 8
draws, outputs = np.asarray(samples["x"]), np.asarray(samples["mean"])
np.testing.assert_allclose(outputs, draws @ A.T, rtol=1e-4, atol=1e-5)

fields = mcmc.get_extra_fields(group_by_chain=True)
for name in ip.infer.ScoreHMC.diagnostic_fields:
    assert fields[name].shape[:2] == (CHAINS, DRAWS), (name, fields[name].shape)
last = np.asarray(fields["num_evaluations"])[:, -1]
assert np.all(last == 1 + WARMUP + DRAWS), last
assert len(calls) == last.sum(), (len(calls), last.sum())
assert np.all(np.asarray(fields["num_kept"])[:, -1] == 1 + WARMUP)  # its own evaluations alone
assert bool(jnp.all(mcmc.last_state.surrogate.fitted))
assert len(np.unique(np.asarray(fields["step_size"])[:, -1])) > 1  # each chain learned by itself
assert len(np.unique(draws[:, -1, 0])) == CHAINS
assert "R-hat" in str(ip.diagnostics.surrogate_report(mcmc))

def z_scores(y):
    precision = np.eye(2) + A.T @ A / 0.25
    mean = np.linalg.solve(precision, A.T @ y / 0.25)
    square = mean**2 + np.diag(np.linalg.inv(precision))
    found = np.concatenate([draws.mean(axis=1), (draws**2).mean(axis=1)], axis=1)
    error = found.std(axis=0, ddof=1) / np.sqrt(CHAINS)
    return np.abs(found.mean(axis=0) - np.concatenate([mean, square])) / error

assert np.max(z_scores(Y)) < 4.5, z_scores(Y)  # 4 scores of t, 15 degrees: 1 in 600
assert np.max(z_scores(Y + 0.25)) > 4.5, z_scores(Y + 0.25)  # data off by half of their sd
print("agree")
"""


@pytest.mark.slow
def test_chains_over_a_mesh_draw_from_the_posterior():
    # JAX's batched triangular solves wait for tasks in the pool of threads that they run on, which
    # has as many threads as devices or cores: with two chains a device all may wait for ever.
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false",
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": "32",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agree" in done.stdout
