"""What every test starts from: one thread per process, checked types, a fixed key, both precisions.

The environment is set before anything imports JAX. The import hook makes jaxtyping check the shapes
and dtypes of every annotated function of the package with beartype; it is installed here only, so
users never pay for it.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 - the hook looks it up by name

install_import_hook("implicitppl", "tests.typecheck.typechecked")
pytest.register_assert_rewrite("tests.helpers")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

TESTS = Path(__file__).parent
STRICT_LAYERS = {"core", "linalg", "kernels", "score"}
"""Folders whose code must not promote ranks or dtypes by accident (the layers below NumPyro)."""


MAX_MAPPINGS = 30_000
"""Memory mappings of a worker at which its compiled programs are dropped; Linux allows 65,530."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Drops compiled programs before a worker dies of them.

    Each compiled program holds several memory mappings for as long as it is cached; a worker that
    has run a hundred slow tests meets the limit of the system and crashes without a message.
    """
    if _num_mappings() > MAX_MAPPINGS:
        jax.clear_caches()


def _num_mappings() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture
def key() -> jax.Array:
    """A typed PRNG key, the same in every test; split it for more."""
    return jax.random.key(0)


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[jnp.dtype]:
    """Runs the test once per precision and gives the float dtype; x64 is on inside it only."""
    with jax.enable_x64(request.param):
        yield jnp.dtype(jnp.float64 if request.param else jnp.float32)


@pytest.fixture(autouse=True)
def strict_arrays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Below NumPyro, implicit promotion of ranks or dtypes is an error."""
    path = request.node.path
    folder = path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""
    if folder not in STRICT_LAYERS:
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
