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
from implicitppl.linalg._cg import conjugate_gradients
from implicitppl.score._field import Field
from implicitppl.score._sample import Sample
from implicitppl.score._spectral.filters import RelativeRidge

# Kernel values that are kept between steps; beyond, blocks of as many are computed anew.
KEPT, _BLOCK = 2**25, 2**22
_POWER_STEPS = 10


class ConjugateGradients(RelativeRidge):
    """The filter t / (t + level t_1), by an iteration that needs no eigenfunctions.

    Args:
        level: regularisation as a share of the largest eigenvalue.
        tolerance: relative residual at which the iteration stops.
        max_iterations: and the largest number of its steps.

    Raises:
        ValueError: for a value that is not positive.

    Example:
        >>> from implicitppl.score._spectral.conjugate_gradients import ConjugateGradients
        >>> ConjugateGradients(0.1).max_iterations
        200
    """

    tolerance: float = eqx.field(static=True, default=1e-6)
    max_iterations: int = eqx.field(static=True, default=200)

    def __check_init__(self) -> None:
        check_positive("level", self.level)
        check_positive("tolerance", self.tolerance)
        check_positive("max_iterations", self.max_iterations)


class TikhonovExpansion(Field):
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

    def jacobians_at_once(self, num_coordinates: int) -> int:
        return max(1, _BLOCK // (self.centres.shape[0] * num_coordinates))


class Solution(NamedTuple):
    """Coefficients C (M, D), lam, and the relative residual at the end."""

    coefficients: Float[Array, "M D"]
    ridge: Float[Array, ""]
    residual: Float[Array, ""]


def solve(
    method: ConjugateGradients,
    kernel: Kernel,
    sample: Sample,
    reference_scores: Float[Array, "M D"] | None,
) -> Solution:
    """Return the coefficients of `TikhonovExpansion`.

    Args:
        method: level and stopping rule.
        kernel: on the rows of the sample.
        sample: in the metric's coordinates.
        reference_scores: s0 at the samples in these coordinates, or None.

    Cost O(M^2 D) for each step.
    """
    z, weights = sample.rows, sample.weights
    return solve_tikhonov(
        gram_product(kernel, z),
        in_blocks(lambda rows: kernel.mean_gradient(rows, z, weights), z),
        weights,
        reference_scores,
        method.level,
        method.tolerance,
        method.max_iterations,
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
    max_iterations: int,
) -> Solution:
    """Solve the system of the module's first lines; `times` is V -> K V for any kind of kernel."""
    weighted_scores = jnp.zeros_like(zeta)
    if reference_scores is not None:
        weighted_scores = weights[:, None] * reference_scores
        zeta = zeta + times(weighted_scores)
    root = jnp.sqrt(weights)[:, None]
    target = -root * zeta

    def operator(u: Array) -> Array:
        return root * times(root * u)

    lam = jnp.asarray(level, zeta.dtype) * _largest_eigenvalue(operator, target)
    lam = jnp.where(lam > 0, lam, 1)

    def system(u: Array) -> Array:
        return operator(u) + lam * u

    # One system of M D unknowns: a curl-free kernel couples the coordinates.
    column = conjugate_gradients(
        lambda v: system(v.reshape(target.shape)).reshape(-1, 1),
        target.reshape(-1, 1),
        tolerance=tolerance,
        max_iterations=max_iterations,
    ).x
    u = column.reshape(target.shape)
    size = jnp.maximum(jnp.linalg.norm(target), 1e-30)
    residual = jnp.linalg.norm(system(u) - target) / size
    return Solution(-(weighted_scores + root * u) / lam, lam, residual)


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
