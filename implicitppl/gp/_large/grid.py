"""Gaussian processes on complete or incomplete grids, by products of one kernel for each axis.

For a grid of n_1 x ... x n_d points and k = k_1 k_2 ... k_d, the covariance is the Kronecker
product of the axes' matrices K_i = U_i diag(l_i) U_i', so that products with it, and with the
inverse of K + s^2 I, cost matrix products of the axes' sizes. Where outputs are missing, with M the
selection of the N_o observed ones,

    C = M (K_1 x ... x K_d) M' + s^2 I,     C w = r       by conjugate gradients,

preconditioned with M (K + s^2 I)^-1 M', which is exact on a complete grid. The log determinant is
exact there, and otherwise that of Wilson et al.: the N_o largest eigenvalues of K, scaled by N_o/N.
Derivatives need no eigenvectors' derivatives: at w and U held fixed,

    r' C^-1 r = 2 w'r - w' C w,     l_i = diag(U_i' K_i U_i)

have the right value and first derivatives.

Wilson, Gilboa, Nehorai, Cunningham, Fast kernel learning for multidimensional pattern
extrapolation, NeurIPS 2014, sections 3.2 and 3.3; Saatci, PhD thesis, Cambridge 2011, chapter 5.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from implicitppl._core.checks import check_finite, check_positive
from implicitppl._core.cholesky import safe_cholesky
from implicitppl._core.points import as_points, check_width
from implicitppl.gp._means import Mean, as_mean
from implicitppl.kernels import Kernel
from implicitppl.kernels._parameters import as_arrays
from implicitppl.linalg._cg import conjugate_gradients
from implicitppl.processes import AbstractGaussianProcess

# The sizes of the axes differ, so that their shapes have no common name.
Axes = tuple[Array, ...]
Grid = Array

UNSOLVED = 1e-2
"""Relative residual above which an evidence is not given: it would be too high, and learning would
move to where conjugate gradients fail."""


class GridGaussianProcess(eqx.Module):
    """A Gaussian process on a grid, with one kernel for each axis.

    Args:
        kernels: for axis 1, 2, ...; the process has their product. One of them carries the
            variance, or each a part of it.
        mean: None for zero, or a number.
        tolerance: conjugate gradients stop at this relative residual.
        max_iterations: and here at the latest.

    `log_evidence` is exact on a complete grid; with missing outputs its log determinant is an
    approximation, better the more evenly they are missing. It is NaN where conjugate gradients do
    not get to a relative residual of 1e-2; `fit` steps back from there.

    Raises:
        ValueError: if there is no kernel, or `mean` is a function.

    Cost O(sum n_i^3 + N sum n_i) for the evidence of N = n_1 ... n_d outputs, times the number of
    iterations where outputs are missing; memory O(N + sum n_i^2). First derivatives only.

    Reference: Wilson et al. (2014), sections 3.2 and 3.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.gp import GridGaussianProcess
        >>> from implicitppl.kernels import RBF
        >>> rows, columns = jnp.arange(20.0), jnp.arange(30.0)
        >>> picture = jnp.sin(rows / 3)[:, None] * jnp.cos(columns / 4)[None, :]
        >>> hole = jnp.ones((20, 30), bool).at[8:12, 10:15].set(False)
        >>> gp = GridGaussianProcess((RBF(3.0), RBF(4.0)))
        >>> filled = gp.condition((rows, columns), picture, 0.05, observed=hole).on_grid().mean
        >>> bool(jnp.max(jnp.abs(filled - picture)) < 0.1)
        True
    """

    kernels: tuple[Kernel, ...]
    prior_mean: Mean
    tolerance: float = eqx.field(static=True, default=1e-6)
    max_iterations: int = eqx.field(static=True, default=200)

    def __init__(
        self,
        kernels: Sequence[Kernel] | Any,
        mean: Any = None,
        *,
        tolerance: float = 1e-6,
        max_iterations: int = 200,
    ):
        alone = isinstance(kernels, Kernel)
        if alone or not kernels or not all(isinstance(kernel, Kernel) for kernel in kernels):
            raise ValueError(f"`kernels` must hold a kernel for each axis; got {kernels!r}.")
        if callable(mean) and not isinstance(mean, Mean):
            raise ValueError("`mean` must be None or a number: subtract other means first.")
        self.kernels = as_arrays(tuple(kernels))
        self.prior_mean = as_mean(mean)
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def check_data(
        self, axes: Sequence[ArrayLike], y: ArrayLike, observed: ArrayLike | None
    ) -> tuple[Axes, Grid, Bool[Array, "*n"] | None]:
        """Return axes, outputs and mask as arrays, or raise `ValueError`."""
        if len(axes) != len(self.kernels):
            raise ValueError(
                f"`x` must hold {len(self.kernels)} axes, one for each kernel; got {len(axes)}."
            )
        points = tuple(as_points(f"x[{i}]", axis) for i, axis in enumerate(axes))
        shape = tuple(axis.shape[0] for axis in points)
        values = jnp.asarray(y)
        values = values.astype(jnp.result_type(values.dtype, points[0].dtype))
        if values.shape != shape:
            raise ValueError(f"`y` must be {shape}, as the axes say; got shape {values.shape}.")
        if observed is None:
            check_finite("y", values, " Pass `observed=` to say which outputs are missing.")
            return points, values, None
        mask = jnp.asarray(observed)
        if mask.shape != shape or mask.dtype != bool:
            raise ValueError(
                f"`observed` must be booleans of shape {shape}; got {mask.dtype} of {mask.shape}."
            )
        values = jnp.where(mask, values, 0)
        check_finite("y", values, " Pass `observed=` to say which outputs are missing.")
        return points, values, mask

    def log_evidence(
        self,
        axes: Sequence[ArrayLike],
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """Return log p(y), in nats; an approximation where outputs are missing.

        Args:
            axes: coordinates of each axis, (n_i,) or (n_i, D_i).
            y: outputs (n_1, ..., n_d).
            noise_scale: standard deviation of the noise, one positive number.
            observed: booleans like `y`, False where an output is missing.

        Raises:
            ValueError: if shapes do not fit or known values are not finite.
        """
        check_positive("noise_scale", noise_scale)
        points, values, mask = self.check_data(axes, y, observed)
        return _log_evidence(self, points, values, jnp.asarray(noise_scale, values.dtype), mask)

    def condition(
        self,
        axes: Sequence[ArrayLike],
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> "GridPosterior":
        """Return the process given the observations; arguments as for `log_evidence`.

        Ask the posterior on the grid by `on_grid()`, anywhere else as any Gaussian process.
        """
        check_positive("noise_scale", noise_scale)
        points, values, mask = self.check_data(axes, y, observed)
        return _condition(self, points, values, jnp.asarray(noise_scale, values.dtype), mask)


class GridPosterior(AbstractGaussianProcess):
    """A Gaussian process given observations on a grid; `on_grid` is the fast way to ask it there.

    Attributes:
        prior: the process that was observed.
        axes, y, noise_scale, observed: the observations.
        weights: w, with 0 where an output is missing.
        relative_residual: |C w - r| / |r| at which conjugate gradients stopped.

    A point is a row of the coordinates of all axes, (N, sum D_i). The mean at N points costs O(N)
    grids; a variance is one more solve by conjugate gradients for each point.
    """

    prior: GridGaussianProcess
    axes: Axes
    y: Grid
    noise_scale: Float[Array, ""]
    observed: Bool[Array, "*n"] | None
    weights: Grid
    relative_residual: Float[Array, ""]

    def on_grid(self, axes: Sequence[ArrayLike] | None = None) -> "GridValues":
        """Return f on the grid of the observations, or on the grid of other axes."""
        if axes is None:
            return GridValues(self, self.axes, is_own=True)
        points = tuple(as_points(f"x[{i}]", axis) for i, axis in enumerate(axes))
        return GridValues(self, points, is_own=False)

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, sum D_i)."""
        return _mean_at(self, self._split(x))

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, sum D_i)."""
        points = self._split(x)
        # A variance below zero is rounding: the data determine f there to all digits.
        return _mean_at(self, points), jnp.maximum(_variance(self, points), 0)

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        left = self._split(x)
        return _covariance(self, left, left if y is None else self._split(y))

    def _split(self, x: ArrayLike) -> Axes:
        """Return the coordinates of each axis, (N, D_i)."""
        points = as_points("x", x)
        widths = [axis.shape[1] for axis in self.axes]
        check_width(points, sum(widths))
        ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
        return tuple(jnp.split(points, ends, axis=1))


class GridValues(eqx.Module):
    """The values of a process on a grid: what `on_grid` returns."""

    posterior: GridPosterior
    axes: Axes
    is_own: bool = eqx.field(static=True)

    @property
    def mean(self) -> Grid:
        """The mean of f, (n_1, ..., n_d)."""
        return _mean(self.posterior, self.axes)

    def sample(self, key: PRNGKeyArray, num_samples: int = 1) -> Float[Array, "S *n"]:
        """Return draws of f on the grid of the observations, (num_samples, n_1, ..., n_d).

        A draw of the prior is moved by the mean of what it is missing (Matheron's rule): one
        solve by conjugate gradients for each. Standard deviations are had from draws.

        Raises:
            ValueError: on another grid.
        """
        if not self.is_own:
            raise ValueError("draws are had on the grid of the observations: call `on_grid()`.")
        return _sample(self.posterior, jax.random.split(key, num_samples))


class _Spectrum(NamedTuple):
    matrices: tuple[Array, ...]  # K_i, differentiable
    vectors: tuple[Array, ...]  # U_i, held fixed
    values: Grid  # products of the l_i, differentiable


def _spectrum(gp: GridGaussianProcess, axes: Axes) -> _Spectrum:
    matrices = tuple(kernel.gram(axis) for kernel, axis in zip(gp.kernels, axes, strict=True))
    vectors = tuple(jnp.linalg.eigh(jax.lax.stop_gradient(matrix))[1] for matrix in matrices)
    roots = [jnp.sum(u * jnp.matmul(k, u), axis=0) for k, u in zip(matrices, vectors, strict=True)]
    # An eigenvalue below zero is rounding.
    values = reduce(jnp.multiply.outer, [jnp.maximum(root, 0) for root in roots])
    return _Spectrum(matrices, vectors, values)


def _apply(matrices: Sequence[Array], tensor: Array) -> Array:
    """Return the product of a Kronecker product with a tensor on the grid."""
    for axis, matrix in enumerate(matrices):
        moved = jnp.tensordot(matrix, tensor, axes=(1, axis), precision="highest")
        tensor = jnp.moveaxis(moved, 0, axis)
    return tensor


class _System(NamedTuple):
    """C on the grid; tensors are 0 where outputs are missing, and products keep them so."""

    spectrum: _Spectrum
    noise_variance: Float[Array, ""]
    present: Grid  # 1 where an output was observed

    def product(self, w: Grid) -> Grid:
        return self.present * _apply(self.spectrum.matrices, w) + self.noise_variance * w

    def precondition(self, r: Grid) -> Grid:
        vectors = self.spectrum.vectors
        inner = _apply([u.T for u in vectors], r)
        inner = inner / (jax.lax.stop_gradient(self.spectrum.values) + self.noise_variance)
        return self.present * _apply(vectors, inner)

    def solve(self, r: Grid, gp: GridGaussianProcess) -> Grid:
        """Return C^-1 r, without derivatives."""
        frozen, right = jax.lax.stop_gradient((self, r))

        def on_columns(apply: Callable[[Grid], Grid]) -> Callable[[Array], Array]:
            return lambda column: apply(column.reshape(r.shape)).reshape(-1, 1)

        solution = conjugate_gradients(
            on_columns(frozen.product),
            right.reshape(-1, 1),
            precondition=on_columns(frozen.precondition),
            tolerance=gp.tolerance,
            max_iterations=gp.max_iterations,
        )
        return solution.x.reshape(r.shape)


def _system(
    gp: GridGaussianProcess, axes: Axes, y: Grid, noise_scale: Array, observed: Any
) -> tuple[_System, Grid]:
    present = jnp.ones_like(y) if observed is None else observed.astype(y.dtype)
    mean = gp.prior_mean.at(axes[0][:1])[0]
    return _System(_spectrum(gp, axes), noise_scale**2, present), present * (y - mean)


@eqx.filter_jit
def _log_evidence(
    gp: GridGaussianProcess,
    axes: Axes,
    y: Grid,
    noise_scale: Float[Array, ""],
    observed: Bool[Array, "*n"] | None,
) -> Float[Array, ""]:
    system, residual = _system(gp, axes, y, noise_scale, observed)
    w = system.solve(residual, gp)
    reached = system.product(w)
    quadratic = 2 * jnp.sum(w * residual) - jnp.sum(w * reached)
    is_solved = _norm(reached - residual) <= UNSOLVED * _norm(residual)
    quadratic = jnp.where(is_solved, quadratic, jnp.nan)
    num = jnp.sum(system.present)
    log_det = _log_determinant(system.spectrum.values, system.noise_variance, num)
    return -0.5 * (quadratic + log_det + num * math.log(2 * math.pi))


def _norm(tensor: Grid) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(jax.lax.stop_gradient(tensor) ** 2))


def _log_determinant(values: Grid, noise_variance: Array, num: Array) -> Float[Array, ""]:
    """Return the sum of log(l N_o/N + s^2) over the N_o largest eigenvalues l."""
    flat = values.reshape(-1)
    ordered = jnp.sort(flat)[::-1]
    kept: Int[Array, " N"] = jnp.arange(flat.size)
    logs = jnp.log(ordered * num / flat.size + noise_variance)
    return jnp.sum(jnp.where(kept < num, logs, 0))


@eqx.filter_jit
def _condition(
    gp: GridGaussianProcess,
    axes: Axes,
    y: Grid,
    noise_scale: Float[Array, ""],
    observed: Bool[Array, "*n"] | None,
) -> GridPosterior:
    system, residual = _system(gp, axes, y, noise_scale, observed)
    weights = system.solve(residual, gp)
    left = _norm(system.product(weights) - residual)
    size = jnp.maximum(_norm(residual), jnp.finfo(y.dtype).tiny)
    return GridPosterior(gp, axes, y, noise_scale, observed, weights, left / size)


@eqx.filter_jit
def _mean(posterior: GridPosterior, axes: Axes) -> Grid:
    prior = posterior.prior
    cross = [
        kernel.gram(new, old)
        for kernel, new, old in zip(prior.kernels, axes, posterior.axes, strict=True)
    ]
    return prior.prior_mean.at(axes[0][:1])[0] + _apply(cross, posterior.weights)


def _crosses(posterior: GridPosterior, points: Axes) -> list[Float[Array, "N n"]]:
    """Return the covariance of each axis between points, (N, D_i), and the grid's."""
    triples = zip(posterior.prior.kernels, points, posterior.axes, strict=True)
    return [kernel.gram(new, old) for kernel, new, old in triples]


@eqx.filter_jit
def _mean_at(posterior: GridPosterior, points: Axes) -> Float[Array, " N"]:
    first, *others = _crosses(posterior, points)
    value = jnp.tensordot(first, posterior.weights, axes=(1, 0), precision="highest")
    for cross in others:
        value = jnp.einsum("ij,ij...->i...", cross, value, precision="highest")
    return posterior.prior.prior_mean.at(points[0][:1])[0] + value


def _solved(posterior: GridPosterior, points: Axes) -> tuple[Float[Array, "N *n"], Array]:
    """Return c, the covariances of points with the observed outputs, and C^-1 c, point by point."""
    gp, axes = posterior.prior, posterior.axes
    system, _ = _system(gp, axes, posterior.y, posterior.noise_scale, posterior.observed)

    def one(rows: list[Array]) -> tuple[Grid, Grid]:
        cross = system.present * reduce(jnp.multiply.outer, rows)
        return cross, system.solve(cross, gp)

    return jax.lax.map(one, _crosses(posterior, points))


@eqx.filter_jit
def _variance(posterior: GridPosterior, points: Axes) -> Float[Array, " N"]:
    pairs = zip(posterior.prior.kernels, points, strict=True)
    prior = math.prod(kernel.diag(coordinates) for kernel, coordinates in pairs)
    cross, solved = _solved(posterior, points)
    return prior - jnp.sum(cross * solved, axis=tuple(range(1, cross.ndim)))


@eqx.filter_jit
def _covariance(posterior: GridPosterior, left: Axes, right: Axes) -> Float[Array, "N M"]:
    triples = zip(posterior.prior.kernels, left, right, strict=True)
    prior = math.prod(kernel.gram(a, b) for kernel, a, b in triples)
    cross, _ = _solved(posterior, left)
    _, solved = _solved(posterior, right)
    axes = tuple(range(1, cross.ndim))
    return prior - jnp.tensordot(cross, solved, axes=(axes, axes), precision="highest")


@eqx.filter_jit
def _sample(posterior: GridPosterior, keys: Array) -> Float[Array, "S *n"]:
    gp, axes = posterior.prior, posterior.axes
    system, residual = _system(gp, axes, posterior.y, posterior.noise_scale, posterior.observed)
    factors = [safe_cholesky(matrix).factor for matrix in system.spectrum.matrices]
    mean = gp.prior_mean.at(axes[0][:1])[0]

    def one(key: Array) -> Array:
        function_key, noise_key = jax.random.split(key)
        shape, dtype = posterior.y.shape, posterior.y.dtype
        prior = _apply(factors, jax.random.normal(function_key, shape, dtype))
        noise = posterior.noise_scale * jax.random.normal(noise_key, shape, dtype)
        w = system.solve(residual - system.present * (prior + noise), gp)
        return mean + prior + _apply(system.spectrum.matrices, w)

    return jax.lax.map(one, keys)
