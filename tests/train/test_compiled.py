"""Programs of a function: one for each set of fixed things, freed with their owner."""

import gc
import weakref
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl._train.programs import Compiled


def test_arrays_are_traced_and_the_rest_is_fixed():
    traces: list[Any] = []

    def function(x: Any, options: dict[str, Any]) -> Any:
        traces.append(options["flag"])
        return x["a"] * (2 if options["flag"] is True else 1)

    compiled = Compiled(function)
    assert float(compiled({"a": jnp.float32(3.0)}, {"flag": True})) == 6.0
    assert float(compiled({"a": np.float32(4.0)}, {"flag": True})) == 8.0
    assert traces == [True], "an array of the same shape and dtype needs no new program"
    assert float(compiled({"a": jnp.array(3.0)}, {"flag": 1})) == 3.0, "1 is not True"
    with pytest.raises(TypeError, match="unhashable"):
        compiled({"a": jnp.array(3.0)}, {"flag": {1}})


def test_programs_go_with_their_owner():
    class Owner:
        def __init__(self) -> None:
            self.run = Compiled(self.twice)

        def twice(self, x: Any) -> Any:
            return 2 * x

    owner = Owner()
    ref = weakref.ref(owner)
    assert float(owner.run(jnp.array(2.0))) == 4.0
    del owner
    gc.collect()
    assert ref() is None
