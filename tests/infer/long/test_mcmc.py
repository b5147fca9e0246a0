"""`LongMCMC`: the draws of NumPyro whatever the blocks, and nothing finished gets lost."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jaxtyping import Array
from numpyro.infer import AIES, ESS, HMC, MCMC, NUTS, SA, BarkerMH, DiscreteHMCGibbs
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from implicitppl.diagnostics import to_arviz
from implicitppl.infer import LongMCMC, ScoreHMC
from implicitppl.infer._long import mcmc as _long_mcmc
from implicitppl.infer._long.blocks import Blocks, Thinning, raw
from implicitppl.infer._long.run import progress_text
from implicitppl.models import black_box
from tests.helpers import compilations

ROOT = Path(__file__).parents[3]
KEY = jax.random.key(0)
DATA = np.array([1.2, 0.7, 1.9, 1.4], np.float32)
ARGS = ({"y": DATA},)  # a dict: NumPyro compiles anew for each run with arguments like that
WARMUP, DRAWS = 20, 30


class WalkState(NamedTuple):
    """`energy` is weakly typed at first, as in some kernels of NumPyro."""

    i: Array
    z: dict[str, Array]
    energy: Array
    step_size: Array
    mean_accept_prob: Array
    num_evaluations: Array
    rng_key: Array


class Walk(MCMCKernel):
    """A random walk to the mean of data, which adapts its step in warm-up and compiles at once."""

    model = None
    sample_field = "z"

    def __init__(self, scale: float = 1.0, tell: Callable[[np.ndarray], Any] | None = None) -> None:
        self._scale = scale
        self._tell = tell
        self._sample_fn: Any = None

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any, model_args: Any, model_kwargs: Any
    ) -> WalkState:
        self._sample_fn = self._step
        self._num_warmup = num_warmup
        shape = () if is_prng_key(rng_key) else rng_key.shape
        key = rng_key if shape == () else rng_key[0]
        z = {"x": jax.random.normal(key, shape)} if init_params is None else init_params
        zero = jnp.zeros(shape)
        step = zero + self._scale
        return WalkState(jnp.array(0), z, jnp.array(1e9), step, zero, zero.astype(int), rng_key)

    def sample(self, state: WalkState, model_args: Any, model_kwargs: Any) -> WalkState:
        y = model_args[0]["y"]
        step = self._step if is_prng_key(state.rng_key) else jax.vmap(self._step, (0, None, None))
        if not is_prng_key(state.rng_key):
            num = state.rng_key.shape
            state = state._replace(
                i=jnp.broadcast_to(state.i, num), energy=jnp.broadcast_to(state.energy, num)
            )
        new = step(state, y, self._num_warmup)
        return new if is_prng_key(new.rng_key) else new._replace(i=new.i[0], energy=new.energy[0])

    def _step(self, state: WalkState, y: Array, num_warmup: int) -> WalkState:
        key, move_key, accept_key = jax.random.split(state.rng_key, 3)
        x = state.z["x"]
        if self._tell is not None:
            out = jax.ShapeDtypeStruct((), x.dtype)
            x = jax.pure_callback(self._tell, out, x, vmap_method="sequential")
        new = x + state.step_size * jax.random.normal(move_key)
        old_energy, energy = (jnp.sum((y - z) ** 2) / 2 for z in (x, new))
        accept = jnp.minimum(1.0, jnp.exp(old_energy - energy))
        taken = jax.random.uniform(accept_key) < accept
        adapted = state.step_size * jnp.exp((accept - 0.4) / (1.0 + state.i) ** 0.6)
        return WalkState(
            state.i + 1,
            {"x": jnp.where(taken, new, x)},
            jnp.where(taken, energy, old_energy),
            jnp.where(state.i < num_warmup, adapted, state.step_size),
            state.mean_accept_prob + (accept - state.mean_accept_prob) / (1 + state.i),
            state.num_evaluations + 1,
            key,
        )

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Callable[[Any], Any]:
        return lambda z: {"x": z["x"], "twice": 2 * z["x"] + model_args[0]["y"][0]}


FIELDS = ("step_size", "mean_accept_prob")


def options(chain_method: Any = "vectorized", **changes: Any) -> dict[str, Any]:
    common = {"num_warmup": WARMUP, "num_samples": DRAWS, "num_chains": 2, "progress_bar": False}
    return {**common, "chain_method": chain_method, **changes}


def walk(
    checkpoint: Path | None = None, block_size: int = 8, kernel: Any = None, **changes: Any
) -> LongMCMC:
    kernel = Walk() if kernel is None else kernel
    return LongMCMC(kernel, checkpoint=checkpoint, block_size=block_size, **options(**changes))


def run_walk(mcmc: MCMC, key: Array = KEY) -> dict[str, np.ndarray]:
    mcmc.run(key, *ARGS, extra_fields=FIELDS)
    return everything(mcmc)


def everything(mcmc: MCMC) -> dict[str, np.ndarray]:
    """Draws, extra fields and the numbers of the last state."""
    fields = {**mcmc.get_samples(True), **mcmc.get_extra_fields(True)}
    leaves = jax.tree.leaves(mcmc.last_state)
    return {k: np.asarray(v) for k, v in fields.items()} | {
        f"last {i}": np.asarray(raw(v)) for i, v in enumerate(leaves)
    }


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Stop:
    """Raises in place of the result of a block, from the `after`-th block on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
        self.bounds: list[tuple[int, int]] = []
        original = Blocks.run

        def run(blocks: Blocks, state: Any, plan: Thinning, first: int, stop: int) -> Any:
            result = original(blocks, state, plan, first, stop)
            self.bounds.append((first, stop))
            if len(self.bounds) > after:
                raise error
            return result

        monkeypatch.setattr(Blocks, "run", run)


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    """What NumPyro draws with the walk."""
    return run_walk(MCMC(Walk(), **options()))


def test_the_walk_moves(whole: dict[str, np.ndarray]):
    assert len(np.unique(whole["x"])) > 10 and not np.any(np.ptp(whole["step_size"], axis=1))
    assert whole["step_size"][0, 0] != whole["step_size"][1, 0] != 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chain_method": "sequential", "thinning": 4},
        {"num_chains": 1, "num_warmup": 0},
        {"jit_model_args": True, "thinning": 4},
    ],
    ids=str,
)
def test_draws_are_those_of_numpyro(changes: dict[str, Any]):
    expected = run_walk(MCMC(Walk(), **options(**changes)))
    assert_same(run_walk(walk(**changes)), expected)


def test_a_function_that_maps_chains_draws_as_in_numpyro_up_to_rounding():
    mapped: dict[str, Any] = {"chain_method": lambda fn: jax.vmap(fn)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's: about buffers
        expected = run_walk(MCMC(Walk(), **options(**mapped)))
    mine = run_walk(walk(**mapped))
    for name in mine:  # the iteration number gets an axis for chains between blocks
        np.testing.assert_allclose(mine[name], expected[name], rtol=1e-5, err_msg=name)
    assert_same(run_walk(walk(block_size=3, **mapped)), mine)


@pytest.mark.parametrize("block_size", [1, 1000])
def test_the_size_of_the_blocks_does_not_change_a_bit(block_size: int, whole: Any):
    assert_same(run_walk(walk(block_size=block_size)), whole)
    other = run_walk(walk(block_size=block_size), jax.random.key(1))
    assert np.any(other["x"] != whole["x"])


@pytest.mark.parametrize("method", ["vectorized", "sequential"])
def test_one_program_runs_all_blocks_and_further_runs(method: Any):
    run_walk(walk(chain_method=method))  # small eager operations get compiled here
    with compilations() as names:
        mcmc = walk(block_size=25, chain_method=method)
        run_walk(mcmc)
    few = [name for name in names if "_block" in name or "lambda" in name]
    with compilations() as names:
        run_walk(walk(block_size=3, chain_method=method))  # 17 blocks, two of them shorter
    many = [name for name in names if "_block" in name or "lambda" in name]
    assert len(few) == len(many) == 1
    with compilations() as names:
        run_walk(mcmc, jax.random.key(1))
    assert names == []


def test_data_that_changed_in_place_are_not_taken_from_the_old_program():
    data = {"y": DATA.copy()}
    mcmc = walk()
    mcmc.run(KEY, data)
    before = mcmc.get_samples()["x"].mean()
    data["y"] += 5.0
    mcmc.run(KEY, data)
    assert mcmc.get_samples()["x"].mean() > before + 2


def test_new_data_reach_a_program_that_takes_them_as_arguments():
    mcmc = walk(jit_model_args=True)
    mcmc.run(KEY, {"y": DATA})
    with compilations() as names:
        mcmc.run(KEY, {"y": DATA + 5.0})
    assert not [name for name in names if "_block" in name]
    fresh = walk(jit_model_args=True)
    fresh.run(KEY, {"y": DATA + 5.0})
    np.testing.assert_array_equal(mcmc.get_samples()["twice"], fresh.get_samples()["twice"])


@pytest.mark.parametrize("after", [4, 6])
def test_an_interrupt_in_sampling_keeps_finished_blocks(
    after: int, monkeypatch: pytest.MonkeyPatch, whole: Any
):
    mcmc = walk()
    with monkeypatch.context() as patch:
        Stop(patch, after, KeyboardInterrupt())
        with pytest.warns(UserWarning, match=f"Stopped after {8 * (after - 3)} of 30 draws"):
            run_walk(mcmc)
    num = 8 * (after - 3)
    np.testing.assert_array_equal(mcmc.get_samples(True)["x"], whole["x"][:, :num])
    np.testing.assert_array_equal(mcmc.get_samples()["x"], whole["x"][:, :num].reshape(-1))
    np.testing.assert_array_equal(mcmc.get_extra_fields(True)["step_size"].shape, (2, num))
    assert int(mcmc.last_state.i) == WARMUP + num
    kept = mcmc.get_samples(True)["x"].copy()
    view = mcmc.get_samples(True)["x"]
    mcmc.resume()
    assert_same(everything(mcmc), whole)
    np.testing.assert_array_equal(view, kept)
    mcmc.resume()  # nothing is left
    assert_same(everything(mcmc), whole)


def test_an_interrupt_in_warmup_leaves_no_draws_but_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, whole: Any, tmp_path: Path
):
    mcmc = walk(tmp_path)
    with monkeypatch.context() as patch:
        Stop(patch, 1, KeyboardInterrupt())
        with pytest.warns(UserWarning, match="8 of 50 iterations, 20 of them warm-up"):
            mcmc.run(KEY, *ARGS, extra_fields=FIELDS)
    for look in (mcmc.get_samples, mcmc.get_extra_fields, mcmc.print_summary):
        with pytest.raises(RuntimeError, match=r"no draws yet. `resume\(\)` goes on"):
            look()
    seen = Stop(monkeypatch, 99, KeyboardInterrupt())
    assert_same(run_walk(walk(tmp_path)), whole)
    assert seen.bounds[0][0] == 8
    mcmc.resume()
    assert_same(everything(mcmc), whole)


def test_resume_needs_a_run():
    with pytest.raises(RuntimeError, match="call `run` first"):
        walk().resume()


def test_an_error_raises_and_keeps_finished_blocks(monkeypatch: pytest.MonkeyPatch, whole: Any):
    mcmc = walk()
    with monkeypatch.context() as patch:
        Stop(patch, 4, jax.errors.JaxRuntimeError("the simulator broke"))
        with pytest.raises(jax.errors.JaxRuntimeError, match="simulator"):
            run_walk(mcmc)
    assert mcmc.get_samples(True)["x"].shape == (2, 8)
    mcmc.resume()
    assert_same(everything(mcmc), whole)


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """Python's own handler: workers of a parallel test run ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
def test_ctrl_c_inside_a_host_function_stops_the_run():
    calls: list[None] = []

    def tell(x: np.ndarray) -> np.ndarray:
        calls.append(None)
        if len(calls) == 2 * WARMUP + 25:
            os.kill(os.getpid(), signal.SIGINT)
        return np.asarray(x)

    mcmc = walk(kernel=Walk(tell=tell))
    with pytest.warns(UserWarning, match="of 30 draws"):
        run_walk(mcmc)
    assert 0 < mcmc.get_samples(True)["x"].shape[1] < 30
    mcmc.resume()
    assert_same(everything(mcmc), run_walk(walk(kernel=Walk(tell=np.asarray))))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("changes", [{}, {"chain_method": "sequential", "thinning": 3}], ids=str)
def test_a_stopped_run_goes_on_from_its_folder(
    changes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    expected = run_walk(walk(**changes))
    with monkeypatch.context() as patch:
        Stop(patch, 5, KeyboardInterrupt())
        with pytest.warns(UserWarning, match="so does `run` with the same arguments"):
            run_walk(walk(tmp_path, **changes))
    seen = Stop(monkeypatch, 99, KeyboardInterrupt())
    assert_same(run_walk(walk(tmp_path, block_size=5, **changes)), expected)
    assert seen.bounds[0] == (36, 41) and seen.bounds[-1][1] == 50


def test_a_finished_run_is_read_and_not_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Any
):
    run_walk(walk(tmp_path))
    for name in ("run", "start", "set_up_once"):
        monkeypatch.setattr(Blocks, name, None)
    assert_same(run_walk(walk(tmp_path)), whole)


def test_a_save_costs_the_same_at_any_time(tmp_path: Path):
    run_walk(walk(tmp_path, block_size=10))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"draws-{n:010d}.npz" for n in (0, 10, 20)),
        "run.json",
        "state.npz",
    ]
    assert len({path.stat().st_size for path in tmp_path.glob("draws-*")}) == 1


@pytest.mark.parametrize(
    "survives",
    [
        2,
        7,
        pytest.param(1, marks=pytest.mark.exhaustive),
        pytest.param(11, marks=pytest.mark.exhaustive),
    ],
)
def test_a_kill_at_any_file_leaves_a_run_that_goes_on(
    survives: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Any
):
    written: list[None] = []

    def dies(file: int) -> None:
        if len(written) == survives:
            os.ftruncate(file, 10)
            raise MemoryError
        written.append(None)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", dies)
        with pytest.raises(MemoryError):  # files: settings, 7 states, 4 blocks of draws
            run_walk(walk(tmp_path))
    assert_same(run_walk(walk(tmp_path, block_size=11)), whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a run, and stays as it is."""
    path = tmp_path_factory.mktemp("run")
    run_walk(walk(path))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 31}, "num_samples is 30 there, 31 here"),
        ({"num_warmup": 21}, "num_warmup is 20 there"),
        ({"num_chains": 4}, "num_chains is 2 there"),
        ({"thinning": 2}, "thinning is 1 there"),
        ({"chain_method": "sequential"}, "chain_method is vectorized there, each chain alone here"),
        ({"kernel": Walk(0.5)}, "option `scale` is 1.0 there, 0.5 here"),
        ({"kernel": NUTS(lambda data: None)}, "kernel is .*Walk there, numpyro.infer.hmc.NUTS"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_another_run_in_the_folder_is_refused(changes: Any, message: str, folder: Path):
    with pytest.raises(ValueError, match=f"{message}.*Give another folder"):
        run_walk(walk(folder, **changes))


def test_another_key_other_data_and_other_fields_are_refused(folder: Path, whole: Any):
    with pytest.raises(ValueError, match=r"rng_key is \[0, 0\] there, \[0, 1\] here"):
        run_walk(walk(folder), jax.random.key(1))
    with pytest.raises(ValueError, match=r"model argument \[0\]\[0\]\['y'\] is float32"):
        walk(folder).run(KEY, {"y": DATA + 1}, extra_fields=FIELDS)
    with pytest.raises(ValueError, match="extra_fields is"):
        walk(folder).run(KEY, *ARGS)
    with pytest.raises(ValueError, match="starting value .* not set there"):
        walk(folder).run(KEY, *ARGS, extra_fields=FIELDS, init_params={"x": jnp.zeros(2)})
    assert_same(run_walk(walk(folder)), whole)


def test_a_state_of_other_shapes_is_refused(folder: Path):
    class Wider(Walk):
        def init(self, *args: Any, **kwargs: Any) -> WalkState:
            state = super().init(*args, **kwargs)
            return state._replace(z={"x": jnp.zeros((2, 3))})

    Wider.__qualname__, Wider.__module__ = Walk.__qualname__, Walk.__module__
    with pytest.raises(ValueError, match=r"\.z\['x'\] has shape \(2,\) there, \(2, 3\) here"):
        run_walk(walk(folder, kernel=Wider()))


def test_a_file_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder"):
        walk(checkpoint=tmp_path / "file")


def test_options_are_checked():
    with pytest.raises(ValueError, match="`block_size` must be at least 1; got 0"):
        walk(block_size=0)
    with pytest.raises(ValueError, match="`init_params` must have a leading axis"):
        walk().run(KEY, *ARGS, init_params={"x": jnp.zeros(3)})


def test_warmup_and_run_are_those_of_numpyro(tmp_path: Path):
    runs: list[MCMC] = [MCMC(Walk(), **options()), walk()]
    for mcmc in runs:
        mcmc.warmup(KEY, *ARGS, collect_warmup=True)
    np.testing.assert_array_equal(*(mcmc.get_samples(True)["x"] for mcmc in runs))
    assert_same(*(run_walk(mcmc, jax.random.key(1)) for mcmc in runs))
    for mcmc in runs:
        mcmc.post_warmup_state = mcmc.last_state
    assert_same(*(run_walk(mcmc, jax.random.key(2)) for mcmc in runs))
    for mcmc in runs:
        mcmc.warmup(KEY, *ARGS)
        mcmc.post_warmup_state = None
    assert_same(*(run_walk(mcmc, jax.random.key(2)) for mcmc in runs))
    with pytest.raises(ValueError, match="`checkpoint` must be None for `warmup`"):
        walk(tmp_path).warmup(KEY, *ARGS)


def test_an_interrupted_warmup_is_not_taken_for_a_whole_one(monkeypatch: pytest.MonkeyPatch):
    mcmc = walk()
    Stop(monkeypatch, 1, KeyboardInterrupt())
    with pytest.warns(UserWarning, match="Stopped"), pytest.raises(KeyboardInterrupt):
        mcmc.warmup(KEY, *ARGS)
    assert mcmc.post_warmup_state is None


def test_sites_can_be_left_out_and_unconstrained_ones_asked_for():
    mcmc = walk()
    mcmc.run(KEY, *ARGS, extra_fields=("~z.twice", "z.x", "rng_key"))
    assert list(mcmc.get_samples()) == ["x"]
    np.testing.assert_array_equal(mcmc.get_extra_fields()["z.x"], mcmc.get_samples()["x"])
    assert mcmc.get_extra_fields(True)["rng_key"].shape == (2, DRAWS, 2)


def test_a_pickle_keeps_the_draws(whole: Any):
    mcmc = walk()
    run_walk(mcmc)
    assert_same(everything(pickle.loads(pickle.dumps(mcmc))), whole)


@pytest.mark.parametrize("method", ["sequential", jax.vmap], ids=["sequential", "vmap"])
def test_the_bar_shows_acceptance_and_evaluations(
    method: Any, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    # Never drawn by the clock: a phase is seen because it began, however fast the run is.
    monkeypatch.setattr(_long_mcmc, "tqdm", functools.partial(_long_mcmc.tqdm, mininterval=1e9))
    mcmc = walk(chain_method=method, progress_bar=True)
    run_walk(mcmc)
    shown = capfd.readouterr().err
    assert "warmup" in shown and "sample: 100%" in shown and "50/50" in shown
    assert "100 evaluations, step size" in shown and "acc. prob=0." in shown


def test_a_kernels_own_text_is_shown_where_it_has_one_for_this_state():
    class State(NamedTuple):
        mean_accept_prob: Array

    class Outer(NamedTuple):
        hmc_state: State

    kernel, state = SA(lambda: None), State(jnp.array([0.5, 1.0]))
    one = State(jnp.array(0.5))
    assert progress_text(kernel, one) == kernel.get_diagnostics_str(one) == "acc. prob=0.50"
    assert progress_text(kernel, state) == "acc. prob=0.75"
    assert progress_text(Walk(), Outer(state)) == "acc. prob=0.75"


def model(y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("ratio", mu / sigma)
    with numpyro.plate("data", 4):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_a_budget_stops_the_run_and_keeps_the_draws():
    def potential(x: Any) -> Any:
        return 0.5 * jnp.sum(x**2)

    def runner(budget: int) -> LongMCMC:
        return LongMCMC(
            ScoreHMC(potential_fn=potential),
            num_warmup=4,
            num_samples=30,
            num_chains=2,
            chain_method="vectorized",
            block_size=5,
            max_evaluations=budget,
            progress_bar=False,
        )

    start = np.ones((2, 2), np.float32)
    mcmc = runner(42)  # 2 for the starts, and 2 in each of 20 iterations
    with pytest.warns(UserWarning, match="max_evaluations"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A warm-up of")
        mcmc.run(jax.random.key(0), init_params=start, extra_fields=("num_evaluations",))
    spent = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["num_evaluations"])[:, -1]
    assert 42 - 2 * 5 < spent.sum() <= 42
    assert mcmc.get_samples(group_by_chain=True).shape[1] == spent[0] - 1 - 4
    with pytest.raises(ValueError, match="`max_evaluations` must be at least 1"):
        runner(0)
    counted = runner(10)
    counted.sampler = NUTS(potential_fn=potential, adapt_step_size=False)
    with pytest.raises(ValueError, match="counts `num_evaluations`"):
        counted.run(jax.random.key(0), init_params=start)


@pytest.mark.smoke
def test_nuts_that_was_stopped_can_be_looked_at_and_gives_the_draws_of_numpyro(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    expected = MCMC(NUTS(model), **options())
    expected.run(KEY, DATA)
    kernel = NUTS(model)
    mcmc = LongMCMC(kernel, checkpoint=tmp_path, block_size=8, **options())
    with monkeypatch.context() as patch:
        Stop(patch, 4, KeyboardInterrupt())
        with pytest.warns(UserWarning, match="Stopped after 8 of 30 draws"):
            mcmc.run(KEY, DATA)
    mcmc.print_summary()
    shown = capsys.readouterr().out
    assert "mu" in shown and "ratio" not in shown and "divergences" in shown
    data = to_arviz(mcmc, log_likelihood=False, posterior_predictive=False)
    assert data["posterior"]["ratio"].shape == (2, 8)
    assert data["sample_stats"]["diverging"].shape == (2, 8)
    assert mcmc.sampler is kernel and kernel._postprocess_fn is not None
    mcmc.run(KEY, DATA)
    for name, value in expected.get_samples(True).items():
        np.testing.assert_array_equal(value, mcmc.get_samples(True)[name], err_msg=name)


def boxed(y: Array) -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    mean = black_box("mean", SIMULATE, x, out=())
    numpyro.deterministic("twice", 2 * mean)
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


class Counted:
    calls = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.sinh(x)


SIMULATE = Counted()


def discrete(y: Array) -> None:
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    c = numpyro.sample("c", dist.Bernoulli(p))
    mu = numpyro.sample("mu", dist.Normal(1.0 * c, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


KERNELS: dict[str, tuple[Callable[[], MCMCKernel], str, int]] = {
    "score": (lambda: ScoreHMC(boxed), "vectorized", 2),
    "score alone": (lambda: ScoreHMC(boxed), "sequential", 2),
    "nuts alone": (lambda: NUTS(model), "sequential", 2),
    "dense": (lambda: NUTS(model, dense_mass=True), "vectorized", 2),
    "hmc": (lambda: HMC(model, trajectory_length=1.0), "vectorized", 2),
    "sa": (lambda: SA(model), "sequential", 2),
    "barker": (lambda: BarkerMH(model), "sequential", 2),
    "aies": (lambda: AIES(model), "vectorized", 4),
    "ess": (lambda: ESS(model), "vectorized", 4),
    "gibbs": (lambda: DiscreteHMCGibbs(NUTS(discrete)), "sequential", 2),
}
NO_NEWS = {"score alone", "dense", "hmc", "barker", "ess", "aies", "sa"}
"""Kernels that take the same paths as another one."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in NO_NEWS else [])
        for name in KERNELS
    ],
)
def test_every_kernel_draws_as_in_numpyro_and_goes_on_from_its_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    make, method, num_chains = KERNELS[name]
    common = options(method, num_chains=num_chains, num_warmup=30)
    before = SIMULATE.calls
    expected = MCMC(make(), **common)
    expected.run(KEY, DATA)
    jax.block_until_ready(expected.get_samples())
    calls, before = SIMULATE.calls - before, SIMULATE.calls
    whole = LongMCMC(make(), block_size=9, **common)
    with compilations() as names:
        whole.run(KEY, DATA)
    assert len([n for n in names if "_block" in n or "_compiled.<locals>" in n]) <= 1
    assert SIMULATE.calls - before == calls
    assert_same(everything(whole), everything(expected))
    with monkeypatch.context() as patch:
        Stop(patch, 5, KeyboardInterrupt())
        with pytest.warns(UserWarning, match="Stopped after"):
            LongMCMC(make(), block_size=9, checkpoint=tmp_path, **common).run(KEY, DATA)
    again = LongMCMC(make(), block_size=9, checkpoint=tmp_path, **common)
    again.run(KEY, DATA)
    assert_same(everything(again), everything(expected))


CHILD = """
import sys, time
sys.path.insert(0, {root!r})
from tests.infer.long.test_mcmc import *
"""

ENDLESS = """
run = Blocks.run
def slow(*args):
    time.sleep(0.02)
    return run(*args)
Blocks.run = slow
mcmc = LongMCMC(NUTS(model), checkpoint={folder!r}, block_size=2, **options(num_samples=400))
mcmc.run(KEY, DATA)
"""

PARALLEL = """
assert jax.local_device_count() == 2
walks = [MCMC(Walk(), **options("parallel")), walk(chain_method="parallel")]
expected, mine = [run_walk(mcmc) for mcmc in walks]
for k in mine:  # NumPyro's program holds the start as well, and rounds otherwise
    np.testing.assert_allclose(mine[k], expected[k], rtol=1e-5, err_msg=k)

def nuts(method="parallel", **options_of_run):
    return LongMCMC(NUTS(model), block_size=9, **options(method), **options_of_run)

whole = nuts()
with compilations() as names:
    whole.run(KEY, DATA)
assert len([n for n in names if "_block" in n]) <= 1, names
with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="Stopped after 18 of"):
    Stop(patch, 5, KeyboardInterrupt())
    nuts(checkpoint={folder!r}).run(KEY, DATA)
resumed = nuts(checkpoint={folder!r})
resumed.run(KEY, DATA)
assert_same(everything(resumed), everything(whole))
alone = nuts("sequential", checkpoint={folder!r})  # reads what the other has saved
alone.run(KEY, DATA)
assert_same(everything(alone), everything(whole))
print("equal")
"""


def child(code: str, folder: Path, flags: str = "") -> subprocess.Popen:
    env = {**os.environ, "XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}"}
    text = (CHILD + code).format(root=str(ROOT), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", text], env=env, cwd=ROOT, stdout=-1, text=True)


@pytest.mark.slow
def test_a_killed_process_loses_a_block_and_no_bit(tmp_path: Path):
    process = child(ENDLESS, tmp_path)
    try:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("draws-*.npz"))) < 20 and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    saved = len(list(tmp_path.glob("draws-*.npz")))
    assert 20 <= saved < 200
    mcmc = LongMCMC(NUTS(model), checkpoint=tmp_path, block_size=50, **options(num_samples=400))
    mcmc.run(KEY, DATA)
    expected = MCMC(NUTS(model), **options(num_samples=400))
    expected.run(KEY, DATA)
    assert_same(everything(mcmc), everything(expected))


@pytest.mark.slow
def test_parallel_chains_draw_as_in_numpyro(tmp_path: Path):
    flag = "--xla_force_host_platform_device_count=2"
    process = child(PARALLEL, tmp_path, flag)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0 and "equal" in out
