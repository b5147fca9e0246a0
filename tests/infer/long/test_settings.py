"""What a checkpoint of `LongMCMC` compares: data by content, functions by name, every option."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, init_to_median, init_to_value

from implicitppl.infer import ScoreHMC
from implicitppl.infer._long.blocks import Thinning
from implicitppl.infer._long.settings import (
    UNKNOWN,
    described,
    fingerprint,
    model_name,
    other_version,
    settings,
)
from implicitppl.infer._long.store import Store


def square(scale: float, x: Array) -> Array:
    return scale * jnp.sum(x**2)


class Frame:
    """Stands for data that are no PyTree: a data frame, a sparse matrix."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


def test_checkpoints_tell_data_by_their_content() -> None:
    ones, twos = Frame(np.ones(3)), Frame(np.full(3, 2.0))
    assert fingerprint(ones) == fingerprint(Frame(np.ones(3))) != fingerprint(twos)
    objects = [np.array([values], object) for values in (ones, twos)]
    assert fingerprint(objects[0]) != fingerprint(objects[1])
    unknown = Frame(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must tell this run from another; data is a .*Frame"):
        Store(Path("nowhere"), {"data": fingerprint(unknown)})
    assert fingerprint(unknown).endswith(UNKNOWN)


def test_checkpoints_tell_every_option_of_the_kernel() -> None:
    half = functools.partial(square, 0.5)
    points = jnp.ones((3, 2))
    known = ScoreHMC(potential_fn=half).evaluate(jax.random.key(0), points)
    kernels = [
        ScoreHMC(potential_fn=half),
        ScoreHMC(potential_fn=half, step_size=0.1),
        ScoreHMC(potential_fn=half, trajectory_length=0.2),
        ScoreHMC(potential_fn=half, num_kept=500),
        ScoreHMC(potential_fn=half, evaluations=known),
        ScoreHMC(potential_fn=half, evaluations=known._replace(z=known.z + 1)),
        ScoreHMC(potential_fn=half, init_strategy=init_to_median()),
        ScoreHMC(potential_fn=half, init_strategy=init_to_value(values={"x": jnp.zeros(2)})),
        ScoreHMC(potential_fn=half, init_strategy=init_to_value(values={"x": jnp.ones(2)})),
        ScoreHMC(potential_fn=functools.partial(square, 1.0)),
    ]
    found = [options_of(kernel) for kernel in kernels]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert options_of(ScoreHMC(potential_fn=half)) == found[0]
    assert described(None) == "None"


def options_of(kernel: ScoreHMC) -> dict[str, Any]:
    mcmc = MCMC(kernel, num_warmup=5, num_samples=5, progress_bar=False)
    found = settings(mcmc, jax.random.key(0), Thinning(5, 10, 1), (), (), {})
    return {name: word for name, word in found.items() if name.startswith("option")}


def test_functions_are_told_by_name_and_partial_ones_by_their_parts() -> None:
    """A model may be local, partial or inside a handler, none of which can be pickled."""

    def model(x: float) -> None:
        del x

    assert fingerprint(model) == model_name(model) == f"{__name__}.{model.__qualname__}"
    one, two = (functools.partial(model, x) for x in (1.0, 2.0))
    assert model_name(one) == model_name(functools.partial(model, 1.0)) != model_name(two)
    assert UNKNOWN not in model_name(one)
    seeded = handlers.seed(model, 0)
    assert model_name(seeded) == fingerprint(seeded) == model_name(model)


def stored_settings(sampler: Any, **changes: Any) -> dict[str, Any]:
    """Settings of a run, as another version may have stored them; None leaves one out."""
    mcmc = MCMC(sampler, num_warmup=5, num_samples=5, progress_bar=False)
    found = settings(mcmc, jax.random.key(0), Thinning(5, 10, 1), ("z", "move"), (), {})
    return {name: word for name, word in {**found, **changes}.items() if word is not None}


OLD = "implicitppl.infer.score_hmc._kernel.ScoreHMC"  # where the class was once
VERSIONS = [
    ({"kernel": OLD, "layout of the state": None, "option `bank`": "None"}, "another version"),
    ({"layout of the state": 1}, "another version of implicitppl.*version that began it"),
    ({"kernel": "numpyro.infer.hmc.NUTS", "layout of the state": None}, "holds another: kernel is"),
    ({"num_samples": 6}, "holds another: num_samples is 6 there, 5 here"),
]


@pytest.mark.parametrize(("changes", "words"), VERSIONS)
def test_a_run_of_another_version_is_refused_in_words(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    # Its state has other fields: read as these, it would be another state without a word.
    kernel = ScoreHMC(potential_fn=functools.partial(square, 0.5))
    Store(tmp_path, stored_settings(kernel, **changes)).begin()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        Store(tmp_path, stored_settings(kernel)).found()
    assert (tmp_path / "run.json").read_bytes() == before
    assert not Store(tmp_path, stored_settings(kernel, **changes)).found()  # its own, without state


def test_a_run_of_a_kernel_without_layouts_goes_on() -> None:
    there = stored_settings(NUTS(potential_fn=functools.partial(square, 0.5)))
    assert "layout of the state" not in there
    assert not other_version(there, there)
