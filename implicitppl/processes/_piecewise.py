"""Functions in pieces on an interval: constant between random knots, or linear through them.

    n ~ Poisson(rate),  knots ~ U[low, high],  levels ~ location + scale U[0, 1]

The knots are those of a Poisson process, so the piecewise constant function has

    Cov(f(s), f(t)) = scale^2 / 12 exp(-rate |s - t| / (high - low)),

the covariance of a Matern-1/2 kernel, and nothing else in common with it. Shapes are static: room
is made for as many knots as are exceeded with probability below 1e-6, and the rest is masked.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from implicitppl._core.checks import check_positive
from implicitppl._core.points import check_width
from implicitppl.processes._parametric import Function, ParametricProcess

TRUNCATED = 1e-6
"""Probability of more knots than there is room for; they count as the most that there is."""


class _RandomKnots(ParametricProcess):
    """What both priors share: an interval, a rate of knots, and the law of the levels."""

    location: Float[Array, ""]
    scale: Float[Array, ""]
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __init__(self, low: float, high: float, rate: float, location: ArrayLike, scale: ArrayLike):
        if not low < high:
            raise ValueError(f"`low` must be below `high`; got {low} and {high}.")
        check_positive("rate", rate)
        check_positive("scale", scale)
        self.location, self.scale = jnp.asarray(location, float), jnp.asarray(scale, float)
        self.low, self.high, self.rate = float(low), float(high), float(rate)

    @property
    def max_knots(self) -> int:
        """Room for knots: more have a probability below 1e-6."""
        return len(_poisson(self.rate)) - 1

    def _knots(self, key: PRNGKeyArray) -> tuple[Float[Array, " K"], Bool[Array, " K"]]:
        """Return K places of knots, in no order, and which of them there are."""
        count_key, place_key = jax.random.split(key)
        cumulative = jnp.asarray(np.cumsum(_poisson(self.rate))[:-1])
        count = jnp.sum(jax.random.uniform(count_key) >= cumulative)
        size = self.max_knots
        places = jax.random.uniform(place_key, (size,), minval=self.low, maxval=self.high)
        return places, jnp.arange(size) < count

    def _levels(self, key: PRNGKeyArray, size: int) -> Float[Array, " K"]:
        return self.location + self.scale * jax.random.uniform(key, (size,))


class PiecewiseConstant(_RandomKnots):
    """Functions of one coordinate that are constant between random knots.

    Args:
        low: where the knots begin; the first level goes on below.
        high: where they end.
        rate: expected number of knots; the number is Poisson.
        location: lowest level.
        scale: range of the levels, uniform on [location, location + scale].

    Raises:
        ValueError: if `low` is not below `high`, `rate` or `scale` is not positive, or points
            have more than one coordinate.

    Reference: Sun, Zhang, Shi and Grosse, Functional variational Bayesian neural networks, ICLR
    2019, whose experiments with structured priors have a rate of 3 on [0, 1].

    Example:
        >>> import jax
        >>> from implicitppl.processes import PiecewiseConstant
        >>> draws = PiecewiseConstant().draw(jax.random.key(0), 5)
        >>> draws(jax.numpy.linspace(0, 1, 100)).shape
        (5, 100)
    """

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        rate: float = 3.0,
        *,
        location: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
    ):
        super().__init__(low, high, rate, location, scale)

    def function(self, key: PRNGKeyArray) -> Function:
        """Return one function: knots and levels are drawn here."""
        knot_key, level_key = jax.random.split(key)
        places, present = self._knots(knot_key)
        levels = self._levels(level_key, self.max_knots + 1)
        knots = jnp.where(present, places, jnp.inf)

        def values(x: Float[Array, "N D"]) -> Array:
            check_width(x, 1)
            # Levels are exchangeable: how many knots lie before x names its piece.
            return levels[jnp.sum(knots[None, :] <= x, axis=1)]

        return values


class PiecewiseLinear(_RandomKnots):
    """Functions of one coordinate that are linear between random knots and both ends.

    Args:
        low: where the knots begin; the value there goes on below.
        high: where they end; the value there goes on above.
        rate: expected number of knots between; the number is Poisson.
        location: lowest value at a knot or an end.
        scale: range of these values, uniform on [location, location + scale].

    Raises:
        ValueError: if `low` is not below `high`, `rate` or `scale` is not positive, or points
            have more than one coordinate.

    Reference: Sun, Zhang, Shi and Grosse, Functional variational Bayesian neural networks, ICLR
    2019, whose experiments with structured priors have a rate of 3 on [0, 1].

    Example:
        >>> import jax
        >>> from implicitppl.processes import PiecewiseLinear
        >>> draws = PiecewiseLinear().draw(jax.random.key(0), 5)
        >>> draws(jax.numpy.linspace(0, 1, 100)).shape
        (5, 100)
    """

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        rate: float = 3.0,
        *,
        location: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
    ):
        super().__init__(low, high, rate, location, scale)

    def function(self, key: PRNGKeyArray) -> Function:
        """Return one function: knots and the values at them are drawn here."""
        knot_key, level_key = jax.random.split(key)
        places, present = self._knots(knot_key)
        levels = self._levels(level_key, self.max_knots + 2)
        ends = jnp.array([self.low, self.high], places.dtype)
        # Knots that are not there lie on the upper end, and have its value.
        inner = jnp.sort(jnp.where(present, places, ends[1]))
        knots = jnp.concatenate([ends[:1], inner, ends[1:]])
        heights = levels[jnp.minimum(jnp.arange(levels.shape[0]), jnp.sum(present) + 1)]

        def values(x: Float[Array, "N D"]) -> Array:
            check_width(x, 1)
            return jnp.interp(x[:, 0], knots, heights)

        return values


class RandomPeriodic(ParametricProcess):
    """Periodic functions of one coordinate with a random period and a few random harmonics.

    f(x) = location + scale sqrt(2) sum_h w_h a_h cos(2 pi h x / p + b_h), a_h ~ N(0, 1),
    b_h ~ U[0, 2 pi], log p ~ U[log min_period, log max_period], w_h = h^-decay with sum w_h^2 = 1

    so that every value has mean `location` and standard deviation `scale`.

    Args:
        min_period: shortest period, in the units of x.
        max_period: longest period; equal to the shortest for a known period.
        num_harmonics: how many.
        decay: how fast the harmonics fade; 1 gives functions about as rough as a triangle's.
        location: mean.
        scale: standard deviation.

    Raises:
        ValueError: if a period, a scale or a number is not positive, or points have more than one
            coordinate.

    Example:
        >>> import jax
        >>> from implicitppl.processes import RandomPeriodic
        >>> draws = RandomPeriodic(1.0, 1.0).draw(jax.random.key(0), 5)
        >>> values = draws(jax.numpy.array([0.25, 1.25]))
        >>> jax.numpy.allclose(values[:, 0], values[:, 1], atol=1e-5).item()
        True
    """

    location: Float[Array, ""]
    scale: Float[Array, ""]
    min_period: float = eqx.field(static=True)
    max_period: float = eqx.field(static=True)
    num_harmonics: int = eqx.field(static=True)
    decay: float = eqx.field(static=True)

    def __init__(
        self,
        min_period: float = 0.5,
        max_period: float = 2.0,
        num_harmonics: int = 3,
        decay: float = 1.0,
        *,
        location: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
    ):
        check_positive("min_period", min_period)
        if max_period < min_period:
            raise ValueError(
                f"`max_period` must be at least `min_period`; got {max_period} and {min_period}."
            )
        if num_harmonics < 1:
            raise ValueError(f"`num_harmonics` must be at least 1; got {num_harmonics}.")
        check_positive("scale", scale)
        self.location, self.scale = jnp.asarray(location, float), jnp.asarray(scale, float)
        self.min_period, self.max_period = float(min_period), float(max_period)
        self.num_harmonics, self.decay = num_harmonics, float(decay)

    def function(self, key: PRNGKeyArray) -> Function:
        """Return one function: period, amplitudes and phases are drawn here."""
        period_key, amplitude_key, phase_key = jax.random.split(key, 3)
        bounds: Any = (math.log(self.min_period), math.log(self.max_period))
        period = jnp.exp(jax.random.uniform(period_key, minval=bounds[0], maxval=bounds[1]))
        order = np.arange(1, self.num_harmonics + 1)
        weights = order**-self.decay
        weights = math.sqrt(2) * weights / math.sqrt(np.sum(weights**2))
        amplitudes = jnp.asarray(weights) * jax.random.normal(amplitude_key, order.shape)
        phases = jax.random.uniform(phase_key, order.shape, maxval=2 * math.pi)

        def values(x: Float[Array, "N D"]) -> Array:
            check_width(x, 1)
            waves = jnp.cos(2 * math.pi * jnp.asarray(order) * x / period + phases)
            return self.location + self.scale * jnp.sum(amplitudes * waves, axis=1)

        return values


def _poisson(rate: float) -> np.ndarray:
    """Return probabilities of 0, 1, ..., K events, with less than 1e-6 beyond."""
    chances, log_chance, count = [math.exp(-rate)], -rate, 0
    while 1 - sum(chances) > TRUNCATED / 10 or count < rate:
        count += 1
        log_chance += math.log(rate) - math.log(count)
        chances.append(math.exp(log_chance))
    return np.asarray(chances)
