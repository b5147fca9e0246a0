"""What is opaque in a target, and what is not: the one thing the sampler knows of a model.

A problem evaluates the true potential U(z) of a vector z, together with what its opaque parts were
given and returned, and the approximate potential in which those parts are replaced by fitted
functions. With everything opaque there is one part, the potential itself, a function of z.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.infer.util import potential_energy

from implicitppl.infer._score_hmc.noise import Noise
from implicitppl.models._boxes.handlers import BoxInfo, recorded, with_randomness, with_surrogates

WHOLE = "potential"
Fits = Mapping[str, Callable[[Array], Array]]


class Evaluation(NamedTuple):
    """One call of the true target.

    Attributes:
        potential: U, infinite where it is not a number.
        inputs: (d,) for each opaque part.
        outputs: (P,) for each opaque part.
        failures: (3,) how many parts failed with an exception, NaN, a time-out; only where
            failures reject.
    """

    potential: Float[Array, ""]
    inputs: dict[str, Float[Array, " d"]]
    outputs: dict[str, Float[Array, " P"]]
    failures: Int[Array, " 3"]


class WholeProblem(NamedTuple):
    """Everything is opaque: a potential of which only values are known."""

    potential_fn: Callable[[Any], Array]
    unravel: Callable[[Array], Any]
    boxes: dict[str, BoxInfo] = {}  # noqa: RUF012 - never changed

    @property
    def is_random(self) -> bool:
        """Whether two evaluations at the same point differ."""
        return False

    @property
    def noise(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the noise that random parts take."""
        return {}

    def evaluate(
        self, z: Array, key: Array, noise: Noise, args: tuple, kwargs: dict[str, Any]
    ) -> Evaluation:
        """Return the potential at z."""
        del key, noise, args, kwargs
        value = _as_potential(self.potential_fn(self.unravel(z)), z.dtype)
        return Evaluation(value, {WHOLE: z}, {WHOLE: value[None]}, jnp.zeros(3, jnp.int32))

    def approximate(self, z: Array, fits: Fits, args: tuple, kwargs: dict[str, Any]) -> Array:
        """Return the fitted potential at z."""
        del args, kwargs
        return fits[WHOLE](z)[0]

    def inputs(self, z: Array, fits: Fits, args: tuple, kwargs: dict[str, Any]) -> dict[str, Array]:
        """Return what the opaque parts are given at z."""
        del fits, args, kwargs
        return {WHOLE: z}

    def structure(self, z: Array) -> dict[str, tuple[int, int]]:
        """Return the sizes of inputs and outputs of each opaque part."""
        return {WHOLE: (z.shape[0], 1)}


class ModelProblem(NamedTuple):
    """A NumPyro model. Only its black boxes are opaque, or everything where it has none."""

    model: Callable[..., Any]
    unravel: Callable[[Array], Any]
    boxes: dict[str, BoxInfo]

    @property
    def is_random(self) -> bool:
        """Whether two evaluations at the same point differ."""
        return any(info.random for info in self.boxes.values())

    @property
    def noise(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the noise that random boxes take."""
        return {k: info.noise for k, info in self.boxes.items() if info.noise is not None}

    def evaluate(
        self, z: Array, key: Array, noise: Noise, args: tuple, kwargs: dict[str, Any]
    ) -> Evaluation:
        """Return the potential at z; random boxes get `noise`, or keys folded from `key`."""
        with handlers.trace() as trace, with_randomness(key=key, noise=noise):
            value = potential_energy(self.model, args, kwargs, self.unravel(z))
        value = _as_potential(value, z.dtype)
        if not self.boxes:
            return Evaluation(value, {WHOLE: z}, {WHOLE: value[None]}, jnp.zeros(3, jnp.int32))
        records = recorded(trace)
        inputs = {name: _flat(records[name].inputs, z.dtype) for name in self.boxes}
        outputs = {name: _flat((records[name].output,), z.dtype) for name in self.boxes}
        failures = jnp.zeros(3, jnp.int32)
        for name in self.boxes:
            status = records[name].status
            if status is not None:
                failures = failures + (status == jnp.arange(1, 4)).astype(jnp.int32)
        # Whatever the model makes of the NaN of a box that failed.
        value = jnp.where(jnp.any(failures > 0), jnp.inf, value)
        return Evaluation(value, inputs, outputs, failures)

    def approximate(self, z: Array, fits: Fits, args: tuple, kwargs: dict[str, Any]) -> Array:
        """Return the potential at z with fitted functions in place of the boxes."""
        if not self.boxes:
            return fits[WHOLE](z)[0]
        replaced = {name: _boxed(fits[name], info) for name, info in self.boxes.items()}
        with with_surrogates(fits=replaced):
            return potential_energy(self.model, args, kwargs, self.unravel(z)).astype(z.dtype)

    def again(
        self, z: Array, outputs: dict[str, Array], args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        """Return potential and inputs at z from known outputs of the boxes: no host is called."""
        if not self.boxes:
            value = potential_energy(self.model, args, kwargs, self.unravel(z))
            return _as_potential(value, z.dtype), {WHOLE: z}
        constants = {name: functools.partial(_constant, value) for name, value in outputs.items()}
        with handlers.trace() as trace:
            value = self.approximate(z, constants, args, kwargs)
        inputs = {name: _flat(r.inputs, z.dtype) for name, r in recorded(trace).items()}
        return _as_potential(value, z.dtype), inputs

    def inputs(self, z: Array, fits: Fits, args: tuple, kwargs: dict[str, Any]) -> dict[str, Array]:
        """Return what the boxes are given at z, with fitted functions for those before them."""
        if not self.boxes:
            return {WHOLE: z}
        with handlers.trace() as trace:
            self.approximate(z, fits, args, kwargs)
        return {name: _flat(r.inputs, z.dtype) for name, r in recorded(trace).items()}

    def structure(self, z: Array) -> dict[str, tuple[int, int]]:
        """Return the sizes of inputs and outputs of each opaque part."""
        if not self.boxes:
            return {WHOLE: (z.shape[0], 1)}
        return {name: (info.input_size, info.out.size) for name, info in self.boxes.items()}


Problem = WholeProblem | ModelProblem


class Model(NamedTuple):
    """A problem with the arguments of its model."""

    problem: Problem
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def evaluate(self, z: Array, key: Array, noise: Noise) -> Evaluation:
        """Return the potential at z; random boxes get `noise`, or keys folded from `key`."""
        return self.problem.evaluate(z, key, noise, self.args, self.kwargs)

    def approximate(self, z: Array, fits: Fits) -> Array:
        """Return the potential at z with fitted functions in place of what is opaque."""
        return self.problem.approximate(z, fits, self.args, self.kwargs)

    def inputs(self, z: Array, fits: Fits) -> dict[str, Array]:
        """Return what the opaque parts are given at z, with fitted functions for those before."""
        return self.problem.inputs(z, fits, self.args, self.kwargs)


def _boxed(fit: Callable[[Array], Array], info: BoxInfo) -> Callable[..., Array]:
    return lambda *inputs: fit(_flat(inputs, jnp.result_type(float))).reshape(info.out.shape)


def _constant(value: Array, inputs: Array) -> Array:
    del inputs
    return value


def _flat(arrays: tuple[Any, ...], dtype: Any) -> Float[Array, " d"]:
    return jnp.concatenate([jnp.ravel(jnp.asarray(x)).astype(dtype) for x in arrays])


def _as_potential(value: Any, dtype: Any) -> Float[Array, ""]:
    value = jnp.asarray(value).astype(dtype)
    if value.shape != ():
        raise ValueError(f"The potential must be a scalar; got shape {value.shape}.")
    return jnp.where(jnp.isnan(value), jnp.inf, value)
