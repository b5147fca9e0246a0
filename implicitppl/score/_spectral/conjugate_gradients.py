"""Tikhonov by conjugate gradients: the exact extension, and nothing of size M x M in memory.

    (S K S + lam) u = -S (zeta + K w s0),   S = diag(sqrt(w)),
    s(x) = s0(x) - (1/lam) [zeta(x) + sum_m k(x, x_m) (w_m s0(x_m) + sqrt(w_m) u_m)],

the system of `_kef` with a diagonal kernel in place of a curl-free one. On the samples it equals
the spectral form f = t/(t + lam); elsewhere it is the solution itself, where the spectral form is
its projection on the eigenfunctions kept. The two terms are O(1/lam) and cancel.

Zhou, Shi, Zhu, ICML 2020, section 3.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl._core.frames import Frame
from implicitppl.kernels import Kernel
from implicitppl.score._spectral.filters import RelativeRidge

# Kernel values that are kept between steps; beyond, blocks of as many are computed anew.
KEPT, _BLOCK = 2**25, 2**22
_POWER_STEPS = 10


class ConjugateGradients(RelativeRidge):
    """The filter t / (t + level t_1), by an iteration that needs no eigenfunctions.

    Args:
        level: regularisation as a share of the largest eigenvalue.
        tolerance: relative residual at which the iteration stops.
        max_steps: and its largest number of steps.

    Raises:
        ValueError: for a value that is not positive.

    Example:
        >>> from implicitppl.score._spectral.conjugate_gradients import ConjugateGradients
        >>> ConjugateGradients(0.1).max_steps
        200
    """

    tolerance: float = eqx.field(static=True, default=1e-6)
    max_steps: int = eqx.field(static=True, default=200)

    def __check_init__(self) -> None:
        check_positive("level", self.level)
        check_positive("tolerance", self.tolerance)
        check_positive("max_steps", self.max_steps)


class TikhonovExpansion(eqx.Module):
    """s_z = k(z, Z) C - zeta(z) / lam, in the metric's coordinates."""

    kernel: Kernel
    coordinates: Frame
    centres: Float[Array, "M D"]
    coefficients: Float[Array, "M D"]
    weights: Float[Array, " M"]
    ridge: Float[Array, ""]

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the kernel part of the score for every row."""
        z = self.coordinates.to(x)
        gram = self.kernel.gram(z, self.centres)
        zeta = self.kernel.mean_gradient(z, self.centres, self.weights)
        values = jnp.matmul(gram, self.coefficients, precision="highest") - zeta / self.ridge
        return self.coordinates.score_back(values)

    def divergence(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return its divergence for every row: one directional derivative for each coordinate."""

        def one(row: Float[Array, " D"]) -> Float[Array, ""]:
            return jnp.trace(jax.jacfwd(lambda point: self.score(point[None, :])[0])(row))

        block = max(1, _BLOCK // (self.centres.shape[0] * x.shape[1]))
        return jax.lax.map(one, x, batch_size=block)


class Solution(NamedTuple):
    """Coefficients C (M, D), lam, and the relative residual at the end."""

    coefficients: Float[Array, "M D"]
    ridge: Float[Array, ""]
    residual: Float[Array, ""]


def solve(
    method: ConjugateGradients,
    kernel: Kernel,
    z: Float[Array, "M D"],
    weights: Float[Array, " M"],
    reference_scores: Float[Array, "M D"] | None,
) -> Solution:
    """Return the coefficients of `TikhonovExpansion`.

    Args:
        method: level and stopping rule.
        kernel: on z.
        z: samples in the metric's coordinates.
        weights: of the samples, sum to one.
        reference_scores: s0 at the samples in these coordinates, or None.

    Cost O(M^2 D) for each step.
    """
    return solve_tikhonov(
        gram_product(kernel, z),
        in_blocks(lambda rows: kernel.mean_gradient(rows, z, weights), z),
        weights,
        reference_scores,
        method.level,
        method.tolerance,
        method.max_steps,
    )


def gram_product(kernel: Kernel, z: Float[Array, "M D"]) -> Callable[[Array], Array]:
    """Return the function V -> K V; K is kept where it is small enough."""
    if z.shape[0] ** 2 <= KEPT:
        gram = kernel.gram(z)
        return lambda v: jnp.matmul(gram, v, precision="highest")
    return lambda v: in_blocks(
        lambda rows: jnp.matmul(kernel.gram(rows, z), v, precision="highest"), z
    )


def solve_tikhonov(
    times: Callable[[Array], Array],
    zeta: Float[Array, "M D"],
    weights: Float[Array, " M"],
    reference_scores: Float[Array, "M D"] | None,
    level: ArrayLike,
    tolerance: float,
    max_steps: int,
) -> Solution:
    """Solve the system of the module's first lines; `times` is V -> K V for any kind of kernel."""
    known = jnp.zeros_like(zeta)
    if reference_scores is not None:
        known = weights[:, None] * reference_scores
        zeta = zeta + times(known)
    root = jnp.sqrt(weights)[:, None]
    target = -root * zeta

    def operator(u: Array) -> Array:
        return root * times(root * u)

    lam = jnp.asarray(level, zeta.dtype) * _largest_eigenvalue(operator, target)
    lam = jnp.where(lam > 0, lam, 1)
    solution, _ = jax.scipy.sparse.linalg.cg(
        lambda u: operator(u) + lam * u, target, tol=tolerance, maxiter=max_steps
    )
    residual = operator(solution) + lam * solution - target
    size = jnp.maximum(jnp.linalg.norm(target), 1e-30)
    coefficients = -(known + root * solution) / lam
    return Solution(coefficients, lam, jnp.linalg.norm(residual) / size)


def in_blocks(evaluate: Callable[[Array], Array], z: Float[Array, "M D"]) -> Array:
    """Evaluate rows in blocks whose kernel values fit the block."""
    block = max(1, _BLOCK // z.shape[0])
    if block >= z.shape[0]:
        return evaluate(z)
    return jax.lax.map(lambda row: evaluate(row[None, :])[0], z, batch_size=block)


def _largest_eigenvalue(operator: Any, like: Float[Array, "M D"]) -> Float[Array, ""]:
    """Return the largest eigenvalue, by power iteration from a fixed start; a few percent low."""
    start = jax.random.normal(jax.random.key(0), like.shape, like.dtype)

    def advance(v: Array, _: None) -> tuple[Array, Array]:
        image = operator(v)
        norm = jnp.linalg.norm(image)
        return image / jnp.where(norm > 0, norm, 1), norm

    start = start / jnp.linalg.norm(start)
    _, norms = jax.lax.scan(advance, start, None, length=_POWER_STEPS)
    return norms[-1]
