"""Black boxes: when the host is called and when not, what fails how, and what NumPyro does."""

import functools
import importlib
import inspect
import logging
import os
import pickle
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer import MCMC, NUTS, SA, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.inspect import get_dependencies, get_model_relations
from numpyro.infer.util import constrain_fn, initialize_model

from implicitppl.diagnostics import to_arviz
from implicitppl.models import black_box, replace_boxes
from implicitppl.models._boxes.handlers import (
    find_boxes,
    recorded,
    with_randomness,
    with_surrogates,
)
from implicitppl.models._call import Call
from tests.helpers import compilations

KEY = jax.random.key(0)
REJECT: dict[str, Any] = {"on_failure": "reject"}


class Host:
    """A host function that counts its calls and keeps what it was called with."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        self.seen.append(args)
        return self.fn(*args)

    @property
    def calls(self) -> int:
        return len(self.seen)


@pytest.fixture
def square() -> Host:
    return Host(lambda x: x * x)


@pytest.fixture
def double() -> Host:
    return Host(lambda x: 2.0 * x)


def line(host: Callable[..., Any], obs: Any = 1.0, **options: Any) -> Callable[[], None]:
    """X ~ N(0, 1), y ~ N(box(x), 0.5)."""

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(black_box("box", host, x, out=(), **options), 0.5), obs=obs)

    return model


def evaluated(x: Any, fn: Callable[..., Any], out: Any = (), **options: Any) -> tuple[Any, Any]:
    """Output and status of one box, as a kernel reads them."""
    with handlers.trace() as trace:
        black_box("box", fn, x, out=out, **options)
    record = recorded(trace)["box"]
    return record.output, record.status


# Calls of the host


@pytest.mark.smoke
def test_one_call_with_and_without_handlers_eager_and_compiled(square):
    def value(x: Any) -> jax.Array:
        return black_box("box", square, x, out=())

    assert float(value(3)) == 9.0 and square.calls == 1
    compiled = jax.jit(value)
    assert float(compiled(2.0)) == 4.0 and square.calls == 2
    with handlers.trace() as trace:
        assert float(value(jnp.array(4.0))) == 16.0
    assert square.calls == 3
    record = recorded(trace)["box"]
    assert [float(x) for x in record.inputs] == [4.0]
    assert float(record.output) == 16.0
    assert record.status is not None
    assert int(record.status) == 0 and record.status.dtype == jnp.int32


def test_the_host_gets_arrays_of_its_own_and_numpy_scalars():
    def host(x: Any, table: Any) -> Any:
        assert f"{x:.1f}" == "2.0"  # a 0-d array has no format
        table += 1.0  # the arrays that JAX passes are read-only
        return x * table

    table = jnp.arange(3.0)
    value = black_box("box", host, 2.0, table, out=(3,))
    assert value.tolist() == [2.0, 4.0, 6.0]
    assert table.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, [((), (2,))] * 4),
        ({"vmap_method": "sequential_unrolled"}, [((), (2,))] * 4),
        ({"vmap_method": "expand_dims"}, [((4,), (1, 2))]),
        ({"vmap_method": "broadcast_all"}, [((4,), (4, 2))]),
        ({"num_workers": 2}, [((), (2,))] * 4),
    ],
)
def test_calls_under_vmap(options, shapes):
    host = Host(lambda x, y: np.asarray(x)[..., None] * y)
    y = jnp.array([1.0, 10.0])

    def value(x: jax.Array) -> jax.Array:
        return black_box("box", host, x, y, out=(2,), **options)

    found = jax.jit(jax.vmap(value))(jnp.arange(4.0))
    assert found.tolist() == [[x, 10.0 * x] for x in range(4)]
    assert sorted(tuple(np.shape(a) for a in args) for args in host.seen) == sorted(shapes)


@pytest.mark.parametrize("options", [{"vmap_method": "expand_dims"}, {"num_workers": 2}])
def test_nested_vmap(options):
    host = Host(lambda x, y: x - y)

    def value(x: jax.Array, y: jax.Array) -> jax.Array:
        return black_box("box", host, x, y, out=(), **options)

    x, y = jnp.arange(3.0), 10.0 * jnp.arange(2.0)
    found = jax.vmap(jax.vmap(value, (None, 0)), (0, None))(x, y)
    assert found.tolist() == (x[:, None] - y).tolist()
    assert host.calls == (1 if "vmap_method" in options else 6)


def test_threads_work_at_the_same_time_and_are_kept():
    meeting = threading.Barrier(2, timeout=20.0)  # one thread alone would wait in vain
    names = set()

    def host(x: Any) -> Any:
        meeting.wait()
        names.add(threading.current_thread().name)
        return x

    value = jax.vmap(lambda x: black_box("box", host, x, out=(), num_workers=2))
    for _ in range(2):
        assert value(jnp.arange(4.0)).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert len(names) == 2 and all(name.startswith("black-box") for name in names)


MODULE = '''
"""Host functions that a worker process can import; each call leaves a line in a file."""
import os, time
from pathlib import Path

LOG = Path(__file__).with_name("calls.txt")

def square(x):
    with LOG.open("a") as file:
        file.write(f"{os.getpid()} {x}\\n")
    if x > 100:
        time.sleep(60)
    if x < 0:
        os._exit(3)
    return x * x
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "host_functions_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("host_functions_of_a_test")
    importlib.sys.modules.pop("host_functions_of_a_test")  # type: ignore[attr-defined]


def test_processes_their_time_out_and_their_death(module):
    """One test, because starting processes takes most of its time."""

    def value(x: jax.Array) -> Any:
        return evaluated(x, module.square, num_workers=2, pool="process", timeout=1.0, **REJECT)

    found, status = jax.vmap(value)(jnp.arange(4.0))
    assert found.tolist() == [0.0, 1.0, 4.0, 9.0] and status.tolist() == [0] * 4
    pids = {line.split()[0] for line in module.LOG.read_text().splitlines()}
    assert len(module.LOG.read_text().splitlines()) == 4 and str(os.getpid()) not in pids

    start = time.monotonic()
    found, status = jax.vmap(value)(jnp.array([2.0, 101.0, 3.0, -1.0]))
    assert status.tolist() == [0, 3, 0, 1]
    assert jnp.isnan(found).tolist() == [False, True, False, True]
    assert time.monotonic() - start < 30.0, "the sleeper was waited for"
    (sleeper,) = [x for x in module.LOG.read_text().splitlines() if x.endswith(" 101.0")]
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(sleeper.split()[0]), 0)  # asks whether it is there
            time.sleep(0.1)
    found, status = jax.vmap(value)(jnp.array([5.0, 6.0]))
    assert found.tolist() == [25.0, 36.0], "a process must be replaced after its death"


def test_a_function_that_a_process_cannot_load_always_raises(module, tmp_path):
    value = functools.partial(
        black_box, "box", module.square, 2.0, out=(), num_workers=1, pool="process", **REJECT
    )
    (tmp_path / "host_functions_of_a_test.py").unlink()
    with pytest.raises(Exception, match="must be importable there"):
        value()


# Who supplies the value


def test_a_supplied_value_leaves_the_host_idle(square):
    model = line(square)
    run = handlers.seed(model, 0)
    traces = [
        handlers.trace(handlers.substitute(run, {"box": 5.0})).get_trace(),
        handlers.trace(with_surrogates(run, {"box": lambda x: 5.0 + 0.0 * x})).get_trace(),
        handlers.trace(handlers.seed(replace_boxes(model, {"box": jnp.cos}), 0)).get_trace(),
    ]
    assert square.calls == 0
    assert [float(trace["y"]["fn"].loc) for trace in traces[:2]] == [5.0, 5.0]
    assert float(traces[2]["box"]["value"]) == pytest.approx(np.cos(float(traces[2]["x"]["value"])))
    for trace in traces:
        record = recorded(trace)["box"]
        assert record.status is None and record.inputs[0] == trace["x"]["value"]
    trace = handlers.trace(run).get_trace()
    assert float(trace["box"]["value"]) == pytest.approx(float(trace["x"]["value"]) ** 2)
    assert square.calls == 1


def test_block_condition_mask_scale_replay_and_scope_pass_a_box_through(square):
    model = line(square)
    seeded = handlers.seed(model, 0)
    plain = handlers.trace(seeded).get_trace()
    wrapped = handlers.scale(handlers.mask(seeded, mask=jnp.array(False)), scale=2.0)
    scoped = handlers.scope(handlers.replay(wrapped, trace=plain), prefix="a")
    trace = handlers.trace(handlers.condition(scoped, {"a/y": 3.0})).get_trace()
    assert float(trace["a/box"]["value"]) == float(plain["box"]["value"])
    assert list(recorded(trace)) == ["a/box"]
    before = square.calls
    hidden = handlers.trace(handlers.block(seeded, hide=["box"])).get_trace()
    assert "box" not in hidden and float(hidden["y"]["fn"].loc) == float(plain["box"]["value"])
    assert square.calls == before + 1
    smooth = handlers.trace(with_surrogates(scoped, {"a/box": lambda x: 0.0 * x})).get_trace()
    assert float(smooth["a/box"]["value"]) == 0.0 and square.calls == before + 1


def test_predictive_calls_the_host_for_each_prior_draw_and_not_for_given_outputs(square):
    model = line(square, obs=None)
    draws = Predictive(model, num_samples=5)(KEY)
    assert jnp.allclose(draws["box"], draws["x"] ** 2)
    assert square.calls == 5
    posterior = {"x": draws["x"], "box": 10.0 + draws["x"]}
    again = Predictive(model, posterior)(KEY)
    assert jnp.allclose(again["box"], draws["box"]) and square.calls == 10
    new = "condition_deterministic" in inspect.signature(Predictive.__init__).parameters
    option = {"condition_deterministic": True} if new else {"exclude_deterministic": False}
    given = Predictive(model, posterior, **option)(KEY)
    assert jnp.allclose(given["box"], posterior["box"]) and square.calls == 10


def test_constrain_fn_and_log_likelihood_use_given_outputs(square):
    model = line(square)
    found = constrain_fn(model, (), {}, {"x": 1.0, "box": 7.0}, return_deterministic=True)
    assert found["box"] == 7.0 and square.calls == 0
    found = constrain_fn(model, (), {}, {"x": 3.0}, return_deterministic=True)
    assert found["box"] == 9.0 and square.calls == 1
    x = jnp.arange(3.0)
    given = log_likelihood(model, {"x": x, "box": 2.0 * x})["y"]
    assert jnp.allclose(given, dist.Normal(2.0 * x, 0.5).log_prob(1.0))
    assert square.calls == 1
    called = log_likelihood(model, {"x": x})["y"]
    assert jnp.allclose(called, dist.Normal(x**2, 0.5).log_prob(1.0))
    assert square.calls == 4


@pytest.mark.smoke
def test_initialize_model_and_the_potential_under_jit(double):
    info = initialize_model(KEY, line(double), validate_grad=False)
    potential = jax.jit(info.potential_fn)
    jax.block_until_ready(info.param_info)
    before = double.calls
    found = potential({"x": jnp.array(0.3)})
    exact = -dist.Normal(0.0, 1.0).log_prob(0.3) - dist.Normal(0.6, 0.5).log_prob(1.0)
    assert float(found) == pytest.approx(float(exact), rel=1e-5)
    assert double.calls == before + 1
    batch = jax.jit(jax.vmap(info.potential_fn))({"x": jnp.arange(3.0)})
    jax.block_until_ready(batch)
    assert double.calls == before + 4 and batch.shape == (3,)


def test_a_stock_kernel_without_gradients_samples_and_goes_into_arviz(double):
    mcmc = MCMC(SA(line(double)), num_warmup=20, num_samples=30, progress_bar=False)
    mcmc.run(KEY)
    jax.block_until_ready((mcmc.get_samples(), mcmc.last_state))
    draws = mcmc.get_samples()
    assert jnp.allclose(draws["box"], 2.0 * draws["x"])
    before = double.calls
    data = to_arviz(mcmc, posterior_predictive=False, log_likelihood=False)
    assert np.allclose(data["posterior"]["box"].values[0], draws["box"])
    assert double.calls <= before + 1, "outputs in the posterior must not be computed again"


def test_graphs_of_a_model_see_through_a_box_without_a_call(square):
    relations = get_model_relations(line(square))
    assert relations["sample_sample"] == {"x": [], "box": ["x"], "y": ["box"]}
    assert get_dependencies(line(square))["prior_dependencies"]["y"] == {"y": set(), "x": set()}
    assert square.calls == 0


def test_boxes_in_a_plate_and_several_boxes(square, double):
    def model() -> None:
        with numpyro.plate("rows", 3):
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            mean = black_box("rows_box", square, x, out=(3,))
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=jnp.zeros(3))
        numpyro.factor("f", black_box("sum", lambda x, s: x.sum() - s, x, 1.0, out=()))

    trace = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert [frame.name for frame in trace["rows_box"]["cond_indep_stack"]] == ["rows"]
    x = trace["x"]["value"]
    assert jnp.allclose(trace["rows_box"]["value"], x**2) and square.calls == 1
    assert jnp.allclose(trace["sum"]["value"], x.sum() - 1.0)
    assert list(recorded(trace)) == ["rows_box", "sum"]


# Derivatives


def test_a_derivative_is_refused_with_the_remedies_and_elsewhere_not_in_the_way(square):
    def value(x: Any) -> jax.Array:
        return black_box("cube", square, x, out=())

    for derivative in (jax.grad(value), jax.jit(jax.grad(value)), jax.jacfwd(value)):
        with pytest.raises(ValueError, match="'cube' has no derivative.*ScoreHMC.*surrogate"):
            derivative(2.0)
    assert square.calls == 0
    with pytest.raises(ValueError, match="'box' has no derivative"):
        MCMC(NUTS(line(square)), num_warmup=1, num_samples=1, progress_bar=False).run(KEY)
    through_the_rest = jax.grad(lambda x: x * value(jax.lax.stop_gradient(x)))
    assert float(through_the_rest(3.0)) == 9.0
    assert float(jax.jit(through_the_rest)(3.0)) == 9.0
    assert float(jax.grad(lambda a: a * value(2.0))(5.0)) == 4.0


@pytest.mark.smoke
def test_svi_over_a_surrogate_finds_the_posterior(double):
    """X ~ N(0, 1), y ~ N(2x, 0.5), y = 1: precision 1 + 4/0.25 = 17, mean 8/17."""
    host = Host(lambda x: 3.0 * x)  # not what the surrogate says: the answer tells who was used
    model = replace_boxes(line(host), {"box": lambda x: 2.0 * x})
    assert model.__name__ == "model"
    guide = AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(2e-2), Trace_ELBO(20))
    params = svi.run(KEY, 800, progress_bar=False).params
    assert abs(float(params["x_auto_loc"]) - 8 / 17) < 0.03
    assert abs(float(params["x_auto_scale"]) * 17**0.5 - 1.0) < 0.1
    assert abs(12 / 37 - 8 / 17) > 0.03, "the check must see the host's own posterior"
    assert host.calls == 0


def test_a_surrogate_must_fit_the_model(square):
    class Fitted:
        surrogates = {"box": lambda x: 2.0 * x}  # noqa: RUF012

    smooth = replace_boxes(line(square), Fitted())
    trace = handlers.trace(handlers.substitute(smooth, {"x": jnp.array(1.5)})).get_trace()
    assert float(trace["box"]["value"]) == 3.0
    counts = replace_boxes(line(square), {"box": lambda x: jnp.array(3, jnp.int32)})
    trace = handlers.trace(handlers.seed(counts, 0)).get_trace()
    assert trace["box"]["value"].dtype == jnp.float32
    unknown = replace_boxes(line(square), {"bax": jnp.cos})
    with pytest.raises(ValueError, match=r"which has \['box'\]; got \['bax'\]"):
        handlers.seed(unknown, 0)()
    wide = replace_boxes(line(square), {"box": lambda x: jnp.stack([x, x])})
    with pytest.raises(ValueError, match=r"'box' must return shape \(\); got \(2,\)"):
        handlers.seed(wide, 0)()
    for wrong in ([jnp.cos], {"box": 3.0}):
        with pytest.raises(ValueError, match="`fitted` must map names"):
            replace_boxes(line(square), wrong)


# Failures


def exploding(x: Any) -> Any:
    raise ZeroDivisionError("nothing left")


def sleeping(x: Any) -> Any:
    time.sleep(1.0)
    return x


def subprocess_too_long(x: Any) -> Any:
    return subprocess.run(["sleep", "10"], timeout=0.05, check=True)


FAILURES = [
    (exploding, {}, 1, r"ZeroDivisionError \(nothing left\)"),
    (lambda x: x * np.nan, {}, 2, "NaN in the output"),
    (sleeping, {"timeout": 0.05}, 3, r"time-out \(no answer within 0.05 s\)"),
    (subprocess_too_long, {}, 3, "time-out .*sleep.*timed out"),
]


@pytest.mark.parametrize(("fn", "options", "code", "reason"), FAILURES)
def test_failures_raise_or_reject(fn, options, code, reason, caplog):
    text = rf"Black box 'box' failed: {reason}.*; called with \(1.25\)"
    with pytest.raises(jax.errors.JaxRuntimeError, match=text):
        jax.block_until_ready(jax.jit(lambda x: black_box("box", fn, x, out=(), **options))(1.25))
    with caplog.at_level(logging.INFO, "implicitppl.black_box"):
        value, status = jax.jit(lambda x: evaluated(x, fn, **options, **REJECT))(1.25)
        assert jnp.isnan(value) and int(status) == code
    assert any(message.startswith("Black box 'box' failed") for message in caplog.messages)


def test_an_infinite_answer_and_an_answer_in_time_are_no_failures():
    value, status = evaluated(2.0, lambda x: -np.inf, timeout=20.0, **REJECT)
    assert value == -jnp.inf and int(status) == 0
    value, status = evaluated(2.0, lambda x: np.float64(1e300), **REJECT)
    assert value == jnp.inf and int(status) == 0


@pytest.mark.parametrize("options", [{}, {"vmap_method": "expand_dims"}, {"num_workers": 2}])
def test_only_the_failed_points_of_a_batch_are_rejected(options):
    def host(x: Any) -> Any:
        return np.stack([x, np.where(x > 1, np.nan, x)], axis=-1)

    evaluate = jax.vmap(lambda x: evaluated(x, host, (2,), **options, **REJECT))
    value, status = evaluate(jnp.arange(4.0))
    assert status.tolist() == [0, 0, 2, 2]
    assert jnp.isnan(value).all(axis=1).tolist() == [False, False, True, True]
    assert not jnp.isnan(value[:2]).any()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"called with \(2\.\)"):
        box = functools.partial(black_box, "box", host, out=(2,), **options)
        jax.block_until_ready(jax.vmap(box)(jnp.arange(3.0)))


@pytest.mark.parametrize("on_failure", ["raise", "reject"])
@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: np.ones(4), r"'box' must return an array of shape \(3,\); got \(4,\)"),
        (lambda x: np.ones(3) * 1j, "must return real numbers; got ndarray of dtype complex128"),
        (lambda x: None, "must return real numbers; got NoneType of dtype object"),
        (lambda x: "abc", "must return real numbers; got str"),
        (lambda x: [1.0, [2.0, 3.0]], "must return an array; got"),
    ],
)
def test_mistakes_always_raise(fn, message, on_failure):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(black_box("box", fn, 1.0, out=(3,), on_failure=on_failure))


def test_a_batch_answer_of_the_wrong_shape_names_the_batch():
    box = functools.partial(black_box, "box", lambda x: x[0], out=(), vmap_method="expand_dims")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"\(5,\) \(batch \(5,\), then `out` \(\)"):
        jax.block_until_ready(jax.vmap(box)(jnp.arange(5.0)))


def test_precision(precision):
    """A float64 or integer answer is rounded to `out`; the inputs have the precision of JAX."""
    seen = []

    def host(x: Any) -> Any:
        seen.append(x.dtype)
        return np.float64(x) / 3

    for out in ((), jax.ShapeDtypeStruct((), np.float64)):
        value = jax.jit(lambda x, out=out: black_box("box", host, x, out=out))(1.0)
        assert value.dtype == precision
        assert float(value) == float(np.asarray(1 / 3, precision))
    assert seen == [precision, precision]
    assert black_box("box", lambda x: np.arange(2), 1.0, out=(2,)).dtype == precision
    half = jax.ShapeDtypeStruct((), jnp.float16)
    assert black_box("box", host, 1.0, out=half).dtype == jnp.float16


# Randomness


def draw(rng: np.random.Generator, x: Any) -> Any:
    return x + rng.normal()


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}])
def test_equal_keys_give_equal_values_typed_or_raw(options):
    def value(key: Any) -> jax.Array:
        return black_box("box", draw, 1.0, out=(), key=key, **options)

    a, b = jax.random.key(1), jax.random.key(2)
    assert float(value(a)) == float(value(a)) != float(value(b))
    assert float(value(a)) == float(value(jax.random.key_data(a)))
    both = jax.vmap(value)(jnp.stack([a, b]))
    assert both.tolist() == [float(value(a)), float(value(b))]


def test_the_generator_draws_standard_normals():
    """2,000 keys: mean and variance within 4 standard errors, which a shared key would miss."""
    value = jax.jit(jax.vmap(lambda key: black_box("box", draw, 0.0, out=(), key=key)))
    draws = value(jax.random.split(KEY, 2000))
    assert abs(float(draws.mean())) < 4 / 2000**0.5
    assert abs(float(draws.var()) - 1.0) < 4 * (2 / 2000) ** 0.5


def test_noise_comes_from_the_key_or_from_a_handler(double):
    host = Host(lambda u, x: u.sum() + x)

    def model() -> None:
        black_box("a", host, 1.0, out=(), key=KEY, noise=(3,), vmap_method="expand_dims")
        black_box("b", draw, 1.0, out=(), key=KEY)
        black_box("c", draw, 1.0, out=(), key=KEY)
        black_box("plain", double, 1.0, out=())

    def values(**options: Any) -> dict[str, float]:
        trace = handlers.trace(with_randomness(model, **options)).get_trace()
        return {name: float(site["value"]) for name, site in trace.items()}

    fixed = values()
    assert values() == fixed and fixed["plain"] == 2.0
    assert fixed["a"] == pytest.approx(float(jax.random.normal(KEY, (3,)).sum()) + 1.0, rel=1e-5)
    assert host.seen[0][0].shape == (3,)
    fresh = values(key=jax.random.key(1))
    assert fresh == values(key=jax.random.key(1))
    assert fixed["b"] == fixed["c"] and fresh["b"] != fresh["c"], "one key, but two boxes"
    assert fresh == values(key=jax.random.key_data(jax.random.key(1)))
    other = values(key=jax.random.key(2))
    assert (
        len({fixed["a"], fresh["a"], other["a"]}) == len({fixed["b"], fresh["b"], other["b"]}) == 3
    )
    assert other["plain"] == 2.0
    given = values(key=jax.random.key(1), noise={"a": jnp.arange(3.0)})
    assert given["a"] == 4.0 and given["b"] == fresh["b"]
    with pytest.raises(ValueError, match=r"`noise` of black box 'a' must have shape \(3,\); got"):
        values(noise={"a": jnp.zeros(2)})


# Looking at a model, and where a box may not be


def test_find_boxes_calls_no_host(square):
    def model(n: int) -> None:
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        black_box("box", square, x, jnp.zeros((n, 2)), out=(2,), key=KEY, noise=(4,), **REJECT)
        numpyro.deterministic("other", x)

    (info,) = find_boxes(Call(model, (3,))).values()
    assert square.calls == 0
    assert [(x.shape, x.dtype) for x in info.inputs] == [((), np.float32), ((3, 2), np.float32)]
    assert info.input_size == 7 and info.out.shape == (2,)
    assert info.noise is not None and info.noise.shape == (4,)
    assert info.random and info.on_failure == "reject"


@pytest.mark.parametrize("batched", [jax.vmap, lambda f: lambda x: jax.lax.map(f, x)])
def test_a_batch_of_boxes_in_the_body_is_refused(batched, square):
    """Their values would leak out of the transformation; the model itself may be mapped."""

    def model(x):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        return batched(lambda t: black_box("box", square, t, out=()))(x)

    with pytest.raises(ValueError, match=r"'box' is inside a `jax.vmap` or a `jax.lax` loop"):
        handlers.trace(handlers.seed(model, 0)).get_trace(jnp.arange(3.0))

    def one(x):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        return black_box("box", square, x, out=())

    mapped = batched(lambda x: handlers.trace(handlers.seed(one, 0)).get_trace(x)["box"]["value"])
    np.testing.assert_allclose(mapped(jnp.arange(3.0)), [0.0, 1.0, 4.0])


def test_control_flow_of_numpyro_is_refused(square):
    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        return black_box("box", square, carry, out=()), carry

    def with_scan() -> None:
        scan(body, jnp.array(1.0), jnp.arange(3.0))

    def with_cond() -> None:
        cond(True, lambda x: black_box("box", square, x, out=()), lambda x: x, jnp.array(1.0))

    for model, name in ((with_scan, "scan"), (with_cond, "cond")):
        for run in (model, handlers.trace(model), handlers.trace(handlers.seed(model, 0))):
            with pytest.raises(ValueError, match=rf"'box' is inside .*control_flow\.{name}"):
                run()
    _, steps = jax.lax.scan(body, jnp.array(2.0), jnp.arange(3.0))  # JAX's own: no sites in it
    assert steps.tolist() == [2.0, 4.0, 16.0]


def test_enumeration_is_refused(square):
    enum = type("enum", (numpyro.primitives.Messenger,), {"__module__": "numpyro.contrib.funsor.x"})
    with pytest.raises(ValueError, match="'box' is in a model whose discrete sites are enumerated"):
        enum(lambda: black_box("box", square, 1.0, out=()))()


def test_two_equal_boxes_compile_once_and_a_trace_can_be_pickled(square):
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, x: Any) -> Any:
            return x + 1.0

    x = jnp.array(1.0)
    for fn in (square, Unhashable()):
        black_box("box", fn, x, out=())
        with compilations() as names:
            black_box("box", fn, x, out=())
        assert names == []
    with handlers.trace() as trace:
        black_box("box", exploding, x, out=(), **REJECT)
    assert pickle.loads(pickle.dumps(dict(trace)))["box"]["infer"]["status"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "`name` must be a string that is not empty; got ''"),
        (
            {"out": jax.ShapeDtypeStruct((), jnp.int32)},
            "`out` must have a floating dtype; got int32",
        ),
        (
            {"vmap_method": "legacy"},
            r"`vmap_method` must be one of \('sequential',.*; got 'legacy'",
        ),
        ({"on_failure": "ignore"}, "`on_failure` must be one of .*; got 'ignore'"),
        ({"pool": "fibre"}, "`pool` must be one of .*; got 'fibre'"),
        ({"num_workers": 0}, "`num_workers` must be a positive integer or None; got 0"),
        (
            {"num_workers": 2, "vmap_method": "expand_dims"},
            "give one of the two; got num_workers=2",
        ),
        ({"timeout": -1.0}, "`timeout` must be positive or None; got -1.0"),
        ({"pool": "process"}, "needs `num_workers`; got None"),
        ({"pool": "process", "num_workers": 1}, "`fn` must be picklable .*; got <function"),
        ({"noise": (2,)}, "`noise` is drawn from `key`, which must be given as well"),
        ({"key": jnp.zeros(3)}, "`key` must be one random key, typed or raw"),
        ({"key": KEY, "vmap_method": "expand_dims"}, "a batch has a key for each point"),
    ],
)
def test_arguments_are_checked_before_any_call(options, message):
    arguments = {"name": "box", "out": (), **options}
    with pytest.raises(ValueError, match=message):
        black_box(arguments.pop("name"), lambda x: x, 1.0, **arguments)


def test_inputs_are_checked(square):
    with pytest.raises(ValueError, match="'box' needs at least one input; got none"):
        black_box("box", square, out=())
    with pytest.raises(ValueError, match=r"must be numbers .* got dtype key<fry> at position 1"):
        black_box("box", square, 1.0, KEY, out=())
    assert square.calls == 0
