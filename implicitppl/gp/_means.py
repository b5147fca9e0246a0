"""Mean functions: a number, or any function of one point, as modules."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl.kernels import real


class Mean(eqx.Module):
    """A mean function, evaluated at a set of points."""

    @abstractmethod
    def at(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the mean at every row."""


class ConstantMean(Mean):
    """The same mean everywhere; a parameter that can be learned."""

    value: ArrayLike = real(0.0, kind="mean")

    def at(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.full((x.shape[0],), jnp.asarray(self.value, x.dtype))


class ZeroMean(Mean):
    """No mean: nothing to learn."""

    def at(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.zeros((x.shape[0],), x.dtype)


class FunctionMean(Mean):
    """m(x) of one point (D,), from a function or an Equinox module, mapped over the rows."""

    function: Callable[[Array], Array]

    def at(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        values = jax.vmap(self.function)(x)
        if values.shape != (x.shape[0],):
            raise ValueError(
                "`mean` must return a number for one point of shape (D,); "
                f"got shape {values.shape[1:]}."
            )
        return values.astype(x.dtype)


class SumMean(Mean):
    """The sum of two mean functions."""

    first: Mean
    second: Mean

    def at(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        return self.first.at(x) + self.second.at(x)


class ScaledMean(Mean):
    """A multiple of a mean function."""

    mean: Mean
    scale: ArrayLike = real(kind="weight")

    def at(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        return jnp.asarray(self.scale, x.dtype) * self.mean.at(x)


def add_means(first: Mean, second: Mean) -> Mean:
    """Return the sum of two means; zero adds nothing to be learned."""
    if isinstance(first, ZeroMean):
        return second
    return first if isinstance(second, ZeroMean) else SumMean(first, second)


def scale_mean(mean: Mean, scale: ArrayLike) -> Mean:
    """Return a multiple of a mean; zero stays zero."""
    return mean if isinstance(mean, ZeroMean) else ScaledMean(mean, scale)


def as_mean(mean: Any) -> Mean:
    """Return a mean function from None, a number, or a function of one point.

    Raises:
        ValueError: if it is none of these.
    """
    if mean is None:
        return ZeroMean()
    if isinstance(mean, Mean):
        return mean
    if callable(mean):
        return FunctionMean(mean)
    if eqx.is_array_like(mean) and jnp.shape(mean) == ():
        return ConstantMean(jnp.asarray(mean, float))
    raise ValueError(f"`mean` must be a number or a function of one point; got {mean!r}.")
