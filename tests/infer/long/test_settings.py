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
from numpyro.infer import MCMC, init_to_median, init_to_value

from implicitppl.infer import ScoreHMC
from implicitppl.infer._long.blocks import Plan
from implicitppl.infer._long.settings import UNKNOWN, described, fingerprint, model_name, settings
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
    found = settings(mcmc, jax.random.key(0), Plan(5, 10, 1), (), (), {})
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
