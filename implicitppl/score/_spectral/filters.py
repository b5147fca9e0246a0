"""Spectral filters: how much of each eigenfunction an estimator keeps.

A kernel estimator of the score is s = -g(L) zeta, with L the integral operator of the kernel on M
samples, eigenvalues t_j = l_j / M. A filter is the multiplier f(t) = t g(t) in [0, 1], so that the
coefficient of eigenfunction j is f_j beta_j: f = 1 keeps it, f = 0 drops it. An estimator is a
kernel together with a filter; a new estimator is a new filter.

Zhou, Shi, Zhu, "Nonparametric score estimators", ICML 2020, section 3.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_non_negative, check_positive


class SpectralFilter(eqx.Module):
    """A multiplier f_j in [0, 1] for each eigenpair; filters multiply with `*`."""

    @abstractmethod
    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        """Return the multipliers.

        Args:
            values: eigenvalues l_j of the Gram matrix, descending, non-negative.
            trace: the trace of the Gram matrix, which is the sum of all eigenvalues.
            num_samples: M, so that t_j = l_j / M.
        """

    def __mul__(self, other: "SpectralFilter") -> "ProductFilter":
        return ProductFilter(self, other)

    @property
    def num_eigenfunctions(self) -> int | None:
        """How many leading pairs the filter can use at most; None if all."""
        return None


class Cutoff(SpectralFilter):
    """Keep the leading eigenfunctions: f_j = 1 for j <= J, else 0 (SSGE, spectral cut-off).

    Args:
        number: J itself. Takes precedence over `explained`.
        explained: share r in (0, 1] of the trace to explain: J = 1 + #{j : mass of the first j
            eigenvalues < r}, so the eigenvalue that crosses r is kept and J is never 0.

    Raises:
        ValueError: if `number` < 1 or `explained` is outside (0, 1].

    Cost O(J). A hard cut-off alone keeps the full noise of the last eigenfunction.

    Reference: Shi, Sun, Zhu, "A spectral approach to gradient estimation for implicit
    distributions", ICML 2018, section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.score import Cutoff
        >>> Cutoff(explained=0.9)(jnp.array([8.0, 1.5, 0.5]), jnp.array(10.0), 10).tolist()
        [1.0, 1.0, 0.0]
    """

    number: int | None = eqx.field(static=True)
    explained: float = eqx.field(static=True)

    def __init__(self, number: int | None = None, explained: float | int = 0.99):
        if number is not None and (isinstance(number, bool) or int(number) != number or number < 1):
            raise ValueError(f"`number` must be an integer of at least 1; got {number}.")
        if not 0 < explained <= 1:
            raise ValueError(f"`explained` must be in (0, 1]; got {explained}.")
        self.number = None if number is None else int(number)
        self.explained = float(explained)

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        if self.number is not None:
            kept = jnp.arange(values.shape[0]) < self.number
        else:
            short = jnp.cumsum(values) < self.explained * trace
            kept = jnp.arange(values.shape[0]) <= jnp.sum(short)
        return kept.astype(values.dtype)

    @property
    def num_eigenfunctions(self) -> int | None:
        return self.number


class Ridge(SpectralFilter):
    """Add eta to every eigenvalue l_j where SSGE divides by it: f = t^2 / (t + eta/M)^2.

    Args:
        ridge: eta >= 0, in the units of the Gram matrix (diagonal 1 for a kernel of variance 1).

    Raises:
        ValueError: if `ridge` is a negative number.

    Cost O(J). Shrinks: directions with l_j near eta lose three quarters of their score.

    Reference: the implementation that accompanies Shi, Sun, Zhu, ICML 2018.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.score._spectral.filters import Ridge
        >>> Ridge(1.0)(jnp.array([3.0, 1.0]), jnp.array(4.0), 10).tolist()
        [0.5625, 0.25]
    """

    ridge: ArrayLike

    def __check_init__(self) -> None:
        check_non_negative("ridge", self.ridge)

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        return jnp.square(_shrink(values, self.ridge))


class TikhonovFilter(SpectralFilter):
    """Solve (L + lam) s = -zeta with lam = eta/M: f = t / (t + eta/M).

    Args:
        ridge: eta >= 0, in the units of the Gram matrix.

    Raises:
        ValueError: if `ridge` is a negative number.

    Cost O(J). With a small ridge the noise of every small eigenvalue is let in.

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.1; equal on the samples to the Stein gradient
    estimator of Li and Turner, ICLR 2018, equation (9).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.score._spectral.filters import TikhonovFilter
        >>> TikhonovFilter(1.0)(jnp.array([3.0, 1.0]), jnp.array(4.0), 10).tolist()
        [0.75, 0.5]
    """

    ridge: ArrayLike

    def __check_init__(self) -> None:
        check_non_negative("ridge", self.ridge)

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        return _shrink(values, self.ridge)


class RelativeRidge(SpectralFilter):
    """Shrink relative to the largest eigenvalue: f_j = (l_j / (l_j + level l_1))^power.

    Args:
        level: regularisation as a share of l_1, >= 0: free of units, of M and of the kernel's
            variance, so that one grid of levels serves every problem.
        power: 1 is `TikhonovFilter`, 2 is the ridge of SSGE.

    Raises:
        ValueError: if `level` is negative or `power` is not positive.

    Cost O(J).

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.score._spectral.filters import RelativeRidge
        >>> kept = RelativeRidge(0.5)(jnp.array([2.0, 1.0]), jnp.array(3.0), 10)
        >>> [round(float(f), 3) for f in kept]
        [0.667, 0.5]
    """

    level: ArrayLike
    power: ArrayLike = 1.0

    def __check_init__(self) -> None:
        check_non_negative("level", self.level)
        check_positive("power", self.power)

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        level = jnp.asarray(self.level, values.dtype)
        return _shrink(values, level * values[0]) ** jnp.asarray(self.power, values.dtype)


class LandweberFilter(SpectralFilter):
    """Gradient descent on L s = -zeta from 0, stopped early: f = 1 - (1 - step l / l_1)^n.

    Args:
        num_iterations: n >= 1; regularisation is about l_1 / n.
        step: relative to 1 / l_1, in (0, 2): dividing by the operator's norm is what keeps the
            iteration from diverging on rescaled samples.

    Raises:
        ValueError: if `num_iterations` < 1 or `step` is outside (0, 2).

    Cost O(J): with the eigenvalues at hand the iteration has a closed form.

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.2; Engl, Hanke, Neubauer, Regularization of
    Inverse Problems, section 6.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.score._spectral.filters import LandweberFilter
        >>> LandweberFilter(2)(jnp.array([2.0, 1.0]), jnp.array(3.0), 10).tolist()
        [1.0, 0.75]
    """

    num_iterations: int = eqx.field(static=True)
    step: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        _check_iterations(self.num_iterations)
        if not 0 < self.step < 2:
            raise ValueError(f"`step` must be in (0, 2); got {self.step}.")

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        return 1 - (1 - self.step * _relative(values)) ** self.num_iterations


class NuFilter(SpectralFilter):
    """The nu-method, an accelerated Landweber iteration: f = t g_n(t), t = l / l_1 in [0, 1].

    g_1 = (4 nu + 2)/(4 nu + 1), g_n = g_{n-1} + u (g_{n-1} - g_{n-2}) + w (1 - t g_{n-1}) with
    u = (n-1)(2n-3)(2n+2nu-1) / [(n+2nu-1)(2n+4nu-1)(2n+2nu-3)] and
    w = 4(2n+2nu-1)(n+nu-1) / [(n+2nu-1)(2n+4nu-1)].

    Args:
        num_iterations: n >= 1; regularisation is about l_1 / n^2.
        nu: qualification, > 0.

    Raises:
        ValueError: if `num_iterations` < 1 or `nu` is not positive.

    Cost O(J n). |1 - f| <= 1, so f may exceed 1 slightly.

    Reference: Engl, Hanke, Neubauer, Regularization of Inverse Problems, section 6.3; Zhou, Shi,
    Zhu, ICML 2020, section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.score._spectral.filters import NuFilter
        >>> kept = NuFilter(1)(jnp.array([2.0, 1.0]), jnp.array(3.0), 10)
        >>> [round(float(f), 3) for f in kept]
        [1.2, 0.6]
    """

    num_iterations: int = eqx.field(static=True)
    nu: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        _check_iterations(self.num_iterations)
        check_positive("nu", self.nu)

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        t, nu = _relative(values), self.nu

        def advance(n: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            g, before = pair
            n = n.astype(values.dtype)
            bottom = (n + 2 * nu - 1) * (2 * n + 4 * nu - 1)
            u = (n - 1) * (2 * n - 3) * (2 * n + 2 * nu - 1) / (bottom * (2 * n + 2 * nu - 3))
            w = 4 * (2 * n + 2 * nu - 1) * (n + nu - 1) / bottom
            return g + u * (g - before) + w * (1 - t * g), g

        first = jnp.full_like(t, (4 * nu + 2) / (4 * nu + 1))
        g, _ = jax.lax.fori_loop(2, self.num_iterations + 1, advance, (first, jnp.zeros_like(t)))
        return t * g


class ProductFilter(SpectralFilter):
    """Two filters one after the other: f = f_1 f_2; written `f_1 * f_2`."""

    first: SpectralFilter
    second: SpectralFilter

    def __call__(
        self, values: Float[Array, " J"], trace: Float[Array, ""], num_samples: int
    ) -> Float[Array, " J"]:
        return self.first(values, trace, num_samples) * self.second(values, trace, num_samples)

    @property
    def num_eigenfunctions(self) -> int | None:
        """The smaller of the two bounds; None if neither filter has one."""
        bounds = (self.first.num_eigenfunctions, self.second.num_eigenfunctions)
        return min((b for b in bounds if b is not None), default=None)

    @property
    def ridge(self) -> ArrayLike:
        """The sum of the ridges of both filters, for reports."""
        return getattr(self.first, "ridge", 0.0) + getattr(self.second, "ridge", 0.0)


def _shrink(values: Float[Array, " J"], ridge: ArrayLike) -> Float[Array, " J"]:
    """Return l / (l + eta), with 0 / 0 = 0 for a discarded pair at ridge 0."""
    total = values + jnp.asarray(ridge, values.dtype)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0)


def _relative(values: Float[Array, " J"]) -> Float[Array, " J"]:
    """Return l / l_1, 0 where all eigenvalues are."""
    return jnp.where(values[0] > 0, values / jnp.where(values[0] > 0, values[0], 1), 0)


def _check_iterations(number: int) -> None:
    if isinstance(number, bool) or int(number) != number or number < 1:
        raise ValueError(f"`num_iterations` must be an integer of at least 1; got {number}.")
