"""Exact Gaussian processes without a factor: conjugate gradients, preconditioned, in row blocks.

    C = K + S,  S = diag(s^2);     C w = r    and    C u_j = z_j,  z_j ~ N(0, P),  j = 1, ..., p
    P = F F' + S    (pivoted Cholesky),    log|C| ~ log|P| + mean_j (z_j' P^-1 z_j) e' log(T_j) e

All p + 1 systems share every product with K, which is made a block of rows at a time: memory
O(N block), never N^2. Derivatives hold the solutions fixed,

    r' C^-1 r = 2 w'r - w' C w,      d log|C| ~ mean_j u_j' dC P^-1 z_j,

which is unbiased over the probes z_j. They are drawn once from `key`, so that the objective is the
same function at every step.

Gardner, Pleiss, Bindel, Weinberger, Wilson, GPyTorch: blackbox matrix-matrix Gaussian process
inference, NeurIPS 2018; Wenger et al., Preconditioning for scalable Gaussian process
hyperparameter optimization, ICML 2022.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from implicitppl._core.checks import check_positive
from implicitppl._core.points import as_noise_variance, as_points, check_points
from implicitppl.gp._exact import GaussianProcess
from implicitppl.gp._nugget import nugget
from implicitppl.linalg import pivoted_cholesky
from implicitppl.linalg._cg import conjugate_gradients, log_of_tridiagonal
from implicitppl.processes import AbstractGaussianProcess

UNSOLVED = 1e-2
"""Relative residual above which an evidence is not given."""


class IterativeGaussianProcess(eqx.Module):
    """A Gaussian process for some thousand to 1e5 observations, without approximating its kernel.

    Args:
        process: a `GaussianProcess` without observations.
        rank: columns of the preconditioner; more make fewer iterations.
        num_probes: probes of the log determinant. Its standard error falls as 1/sqrt(num_probes)
            and with a better preconditioner.
        tolerance: relative residual of a solution.
        max_iterations: of conjugate gradients.
        block: rows of the covariance held at once.
        key: of the probes.

    `log_evidence` is an estimate: the quadratic form is accurate to the square of `tolerance`, the
    log determinant to the error of its probes. It is NaN where conjugate gradients do not get to a
    relative residual of 1e-2; `fit` steps back from there.

    Raises:
        ValueError: if the process was observed, or an option is not positive.

    Cost O(N^2 D) kernel values and O(N^2 num_probes) products for each iteration, memory
    O(N (block + rank + num_probes)); exact processes of the same N cost O(N^3) and O(N^2). First
    derivatives only. Small noise makes many iterations: raise `rank`.

    Reference: Gardner et al. (2018), sections 3 and 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.gp import IterativeGaussianProcess
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> x = jnp.linspace(0, 6, 200)
        >>> gp = IterativeGaussianProcess(GaussianProcess(RBF()), key=jax.random.key(0))
        >>> posterior = gp.condition(x, jnp.sin(x), noise_scale=0.1)
        >>> round(float(posterior(jnp.array([1.5])).mean[0]), 1)
        1.0
    """

    process: GaussianProcess
    key: PRNGKeyArray
    rank: int = eqx.field(static=True)
    num_probes: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
    max_iterations: int = eqx.field(static=True)
    block: int = eqx.field(static=True)

    def __init__(
        self,
        process: GaussianProcess,
        *,
        key: PRNGKeyArray,
        rank: int = 100,
        num_probes: int = 16,
        tolerance: float = 1e-4,
        max_iterations: int = 200,
        block: int = 1000,
    ):
        if not isinstance(process, GaussianProcess) or process.evidence is not None:
            raise ValueError("`process` must be a `GaussianProcess` without observations.")
        for name, value in (
            ("rank", rank),
            ("num_probes", num_probes),
            ("tolerance", tolerance),
            ("max_iterations", max_iterations),
            ("block", block),
        ):
            check_positive(name, value)
        self.process = process
        self.key = key
        self.rank = rank
        self.num_probes = num_probes
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.block = block

    def check_data(
        self, x: ArrayLike, y: ArrayLike, observed: ArrayLike | None
    ) -> tuple[Float[Array, "N D"], Float[Array, " N"], Bool[Array, " N"] | None]:
        """Return inputs, outputs and mask as arrays, or raise `ValueError`."""
        if observed is not None:
            raise ValueError("`observed` is not supported here: leave missing rows out of x and y.")
        return check_points(x, y, None)

    def log_evidence(
        self,
        x: ArrayLike,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """Return an estimate of log p(y), in nats.

        Args:
            x: (N, D) or (N,) inputs.
            y: (N,) outputs.
            noise_scale: standard deviation of the noise, positive; a number or (N,).
            observed: must be None.

        Raises:
            ValueError: if shapes do not fit or known values are not finite.
        """
        return _log_evidence(self, *self._data(x, y, noise_scale, observed))

    def condition(
        self,
        x: ArrayLike,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> "IterativePosterior":
        """Return the process given the observations; arguments as for `log_evidence`."""
        return _condition(self, *self._data(x, y, noise_scale, observed))

    def _data(self, x: Any, y: Any, noise_scale: Any, observed: Any) -> tuple[Array, Array, Array]:
        check_positive("noise_scale", noise_scale)
        points, values, _ = self.check_data(x, y, observed)
        return points, values, as_noise_variance(noise_scale, points.shape[0], points.dtype)


class IterativePosterior(AbstractGaussianProcess):
    """A Gaussian process given observations, by conjugate gradients.

    Attributes:
        prior: the process that was observed.
        x, noise_variance: of the observations.
        weights: w, (N,).
        relative_residual: at which conjugate gradients stopped for w.
        num_iterations: how many they made.

    The mean at M points costs O(N M); a variance is one more solve, so M of them cost M columns.
    """

    prior: IterativeGaussianProcess
    x: Float[Array, "N D"]
    noise_variance: Float[Array, " N"]
    weights: Float[Array, " N"]
    relative_residual: Float[Array, ""]
    num_iterations: Array

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        points = as_points("x", x)
        kernel, mean = self.prior.process.kernel, self.prior.process.prior_mean
        return mean.at(points) + _product(kernel, points, self.x, self.weights, self.prior.block)

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        points = as_points("x", x)
        cross = self.prior.process.kernel.gram(self.x, points)
        variance = self.prior.process.kernel.diag(points) - jnp.sum(cross * self._solve(cross), 0)
        mean = self.prior.process.prior_mean.at(points) + jnp.matmul(self.weights, cross)
        return mean, jnp.maximum(variance, 0)

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        kernel, left = self.prior.process.kernel, as_points("x", x)
        right = None if y is None else as_points("y", y)
        cross = kernel.gram(self.x, left)
        other = cross if right is None else kernel.gram(self.x, right)
        return kernel.gram(left, right) - self._solve(cross).T @ other

    def _solve(self, right: Array) -> Array:
        system = _System(self.prior, self.x, self.noise_variance)
        return system.solve(right, system.preconditioner()).x


class _Preconditioner(NamedTuple):
    """P = F F' + S and the factor of I + F' S^-1 F."""

    low_rank: Float[Array, "N R"]
    noise_variance: Float[Array, " N"]
    inner: Float[Array, "R R"]

    def solve(self, right: Array) -> Array:
        scaled = right / self.noise_variance[:, None]
        small = cho_solve((self.inner, True), self.low_rank.T @ scaled)
        return scaled - (self.low_rank @ small) / self.noise_variance[:, None]

    def log_determinant(self) -> Array:
        logs = 2 * jnp.sum(jnp.log(jnp.diagonal(self.inner)))
        return logs + jnp.sum(jnp.log(self.noise_variance))

    def sample(self, key: PRNGKeyArray, num: int) -> Float[Array, "N num"]:
        first, second = jax.random.split(key)
        size, rank = self.low_rank.shape
        smooth = self.low_rank @ jax.random.normal(first, (rank, num), self.low_rank.dtype)
        rough = jax.random.normal(second, (size, num), self.low_rank.dtype)
        return smooth + jnp.sqrt(self.noise_variance)[:, None] * rough


class _System(NamedTuple):
    """C for one set of inputs; everything but `bilinear` is without derivatives."""

    gp: IterativeGaussianProcess
    x: Float[Array, "N D"]
    noise_variance: Float[Array, " N"]

    def product(self, columns: Float[Array, "N S"]) -> Float[Array, "N S"]:
        smooth = _product(self.gp.process.kernel, self.x, self.x, columns, self.gp.block)
        return smooth + self.noise_variance[:, None] * columns

    def preconditioner(self) -> _Preconditioner:
        gp, x, noise = jax.lax.stop_gradient((self.gp, self.x, self.noise_variance))
        kernel = gp.process.kernel

        def column(i: Array) -> Array:
            return kernel.gram(x, x[i][None, :])[:, 0]

        low_rank = pivoted_cholesky(column, kernel.diag(x) - nugget(kernel, x), gp.rank)
        scaled = low_rank / jnp.sqrt(noise)[:, None]
        inner = jnp.eye(low_rank.shape[1], dtype=x.dtype) + scaled.T @ scaled
        return _Preconditioner(low_rank, noise, jnp.linalg.cholesky(inner))

    def solve(self, right: Array, preconditioner: _Preconditioner) -> Any:
        frozen = jax.lax.stop_gradient(self)
        return conjugate_gradients(
            frozen.product,
            jax.lax.stop_gradient(right),
            precondition=preconditioner.solve,
            tolerance=self.gp.tolerance,
            max_iterations=self.gp.max_iterations,
        )

    def bilinear(self, left: Float[Array, "N S"], right: Float[Array, "N S"]) -> Array:
        """Return left_s' C right_s for every column, differentiable in kernel and noise."""
        moved = _product(self.gp.process.kernel, self.x, self.x, right, self.gp.block)
        return jnp.sum(left * (moved + self.noise_variance[:, None] * right), axis=0)


def _product(kernel: Any, x: Array, y: Array, columns: Array, block: int) -> Array:
    """Return k(x, y) columns, `block` rows at a time; reverse mode computes each block anew."""
    size = x.shape[0]
    if size <= block:
        return jnp.matmul(kernel.gram(x, y), columns, precision="highest")
    count = -(-size // block)
    padding = jnp.broadcast_to(x[-1:], (count * block - size, x.shape[1]))
    blocks = jnp.concatenate([x, padding]).reshape(count, block, x.shape[1])

    def rows(points: Array) -> Array:
        return jnp.matmul(kernel.gram(points, y), columns, precision="highest")

    made = jax.lax.map(jax.checkpoint(rows, prevent_cse=False), blocks)
    return made.reshape(count * block, *columns.shape[1:])[:size]


@eqx.filter_jit
def _log_evidence(
    gp: IterativeGaussianProcess,
    x: Float[Array, "N D"],
    y: Float[Array, " N"],
    noise_variance: Float[Array, " N"],
) -> Float[Array, ""]:
    noise_variance = noise_variance + nugget(gp.process.kernel, x)
    system = _System(gp, x, noise_variance)
    residual = y - gp.process.prior_mean.at(x)
    preconditioner = system.preconditioner()
    probes = preconditioner.sample(gp.key, gp.num_probes)
    found = system.solve(jnp.concatenate([residual[:, None], probes], 1), preconditioner)
    w = found.x[:, :1]
    near = preconditioner.solve(probes)
    logs = log_of_tridiagonal(found.diagonals[1:], found.off_diagonals[1:])
    log_det = preconditioner.log_determinant() + jnp.mean(jnp.sum(probes * near, axis=0) * logs)
    # One pass over the kernel serves both terms: w' C w, and the trace that has the determinant's
    # derivative and not its value.
    forms = system.bilinear(found.x, jnp.concatenate([w, near], 1))
    quadratic = 2 * jnp.sum(w[:, 0] * residual) - forms[0]
    trace = jnp.mean(forms[1:])
    log_det = jax.lax.stop_gradient(log_det - trace) + trace
    # Unsolved systems make the evidence too high: learning would move to where solving fails.
    solved_well = jnp.max(found.relative_residuals) <= UNSOLVED
    quadratic = jnp.where(solved_well, quadratic, jnp.nan)
    return -0.5 * (quadratic + log_det + x.shape[0] * math.log(2 * math.pi))


@eqx.filter_jit
def _condition(
    gp: IterativeGaussianProcess,
    x: Float[Array, "N D"],
    y: Float[Array, " N"],
    noise_variance: Float[Array, " N"],
) -> IterativePosterior:
    noise_variance = noise_variance + nugget(gp.process.kernel, x)
    system = _System(gp, x, noise_variance)
    residual = y - gp.process.prior_mean.at(x)
    found = system.solve(residual[:, None], system.preconditioner())
    return IterativePosterior(
        gp, x, noise_variance, found.x[:, 0], found.relative_residuals[0], found.num_iterations
    )
