"""Kernel exponential family: a log density in a reproducing kernel space, by score matching.

With the operator (L s)(x) = sum_m w_m Kmat(x, x_m) s(x_m) of a curl-free kernel and zeta its
divergence, Tikhonov's (L + lam) s = -zeta - L s0 for the residual of a reference s0 becomes, for
u = sqrt(w) s at the samples, a symmetric system of size M D that is never formed:

    (S Kmat S + lam) u = -S (zeta + Kmat w s0),   S = diag(sqrt(w)),
    s(x) = s0(x) - (1/lam) [zeta(x) + sum_m Kmat(x, x_m) (w_m s0(x_m) + sqrt(w_m) u_m)].

Sriperumbudur et al., "Density estimation in infinite dimensional exponential families", JMLR 18
(2017); Zhou, Shi, Zhu, ICML 2020, sections 3.1 and 4.2 (the conjugate-gradient form).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl._core.frames import check_metric, metric_frame
from implicitppl._core.moments import moments
from implicitppl.kernels import RBF, Matern12, Matern32, Matern52, Radial
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._checks import check_weighted, or_equal
from implicitppl.score._curl_free import CurlFreeExpansion, apply, mean_divergence, profile
from implicitppl.score._fitted import FittedScore, fit_info
from implicitppl.score._reference import ReferenceLike, as_reference, fit_reference, reference_name
from implicitppl.score._spectral.conjugate_gradients import KEPT, in_blocks, solve_tikhonov


class KEF(eqx.Module):
    """Kernel exponential family estimator: a score that is a gradient, with its log density.

    Args:
        family: `RBF`, `InverseMultiquadric` or another smooth radial family.
        level: regularisation lam as a share of the operator's largest eigenvalue.
        lengthscale_factor: times the median distance in the metric's coordinates.
        metric: "isotropic", "diagonal" or "whitened".
        reference: None, "gaussian" or a function of one point: what is not expanded.
        tolerance: relative residual at which conjugate gradients stop.
        max_steps: and their largest number.

    Raises:
        ValueError: for a value outside its range, an unknown metric or reference.

    Cost of `fit` O(M^2 D) for each of at most `max_steps` steps, beyond 5,800 samples without any
    array of size M x M; of a query O(M D). The two terms
    of a query are O(1/lam) and cancel: below a level of 1e-4 float32 loses digits. Without a
    reference the density is constant away from the samples, and cannot be normalised.

    Reference: Sriperumbudur et al., JMLR 18 (2017), theorem 4; Zhou, Shi, Zhu, ICML 2020.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import KEF
        >>> fitted = KEF().fit(jax.random.normal(jax.random.key(0), (200, 1)))
        >>> log_density = fitted.unnormalized_log_density(jnp.array([[0.0], [1.0]]))
        >>> bool(log_density[0] > log_density[1])
        True
    """

    family: Any = eqx.field(static=True, default=RBF)
    level: ArrayLike = 3e-3
    lengthscale_factor: ArrayLike = 2.0
    metric: str = eqx.field(static=True, default="isotropic")
    reference: Any = None
    tolerance: float = eqx.field(static=True, default=1e-6)
    max_steps: int = eqx.field(static=True, default=200)

    def __init__(
        self,
        family: Any = RBF,
        *,
        level: ArrayLike = 3e-3,
        lengthscale_factor: ArrayLike = 2.0,
        metric: str = "isotropic",
        reference: ReferenceLike = None,
        tolerance: float = 1e-6,
        max_steps: int = 200,
    ):
        check_metric(metric)
        check_positive("level", level)
        check_positive("lengthscale_factor", lengthscale_factor)
        check_positive("tolerance", tolerance)
        if not (isinstance(family, type) and issubclass(family, Radial)):
            raise ValueError(f"`family` must be a radial kernel class such as RBF; got {family!r}.")
        if issubclass(family, Matern12 | Matern32 | Matern52):
            raise ValueError(
                "`family` must have four derivatives, as RBF, InverseMultiquadric and "
                f"RationalQuadratic have; got {family.__name__}."
            )
        if max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1; got {max_steps}.")
        self.family = family
        self.level = level
        self.lengthscale_factor = lengthscale_factor
        self.metric = metric
        self.reference = as_reference(reference)
        self.tolerance = tolerance
        self.max_steps = max_steps

    def fit(
        self, samples: ArrayLike, *, weights: ArrayLike | None = None, key: Array | None = None
    ) -> FittedScore:
        """Return the score estimated from samples, with `unnormalized_log_density`.

        Args:
            samples: (M, D), M >= 2, finite, each row a draw from q.
            weights: (M,) non-negative importance weights; None for equal ones.
            key: not used.

        Returns:
            A `FittedScore`.

        Raises:
            ValueError: for a wrong rank, fewer than two samples, or values that are not finite.
        """
        del key
        samples, weights = check_weighted(samples, weights)
        return _fit(self, samples, weights)


@eqx.filter_jit
def _fit(estimator: KEF, samples: Array, weights: Array | None) -> FittedScore:
    samples, weights = jax.lax.stop_gradient((samples, weights))
    size, dimension = samples.shape
    w = or_equal(weights, samples)
    m = moments(samples, w)
    where = metric_frame(estimator.metric, m)
    z = where.to(samples)
    factor = jnp.asarray(estimator.lengthscale_factor, z.dtype)
    kernel = estimator.family(median_lengthscale(z) * factor)
    reference = fit_reference(estimator.reference, m)
    known = None if reference is None else where.score_to(reference.score(samples))
    coefficients, lam, residual = solve_tikhonov(
        _operator(kernel, z),
        in_blocks(lambda rows: mean_divergence(profile(kernel, rows, z), rows, z, w), z),
        w,
        known,
        estimator.level,
        estimator.tolerance,
        estimator.max_steps,
    )
    unit = where.scale if estimator.metric == "isotropic" else jnp.ones_like(lam)
    info = fit_info(
        "KEF",
        size,
        m.size,
        jnp.all(jnp.isfinite(samples)) & jnp.all(jnp.isfinite(coefficients)),
        metric=estimator.metric,
        reference=reference_name(estimator.reference),
        solver="conjugate gradients",
        lengthscale=jnp.asarray(kernel.lengthscale, z.dtype) * unit,
        num_eigenfunctions=jnp.asarray(size * dimension, jnp.int32),
        explained=jnp.asarray(jnp.nan, z.dtype),
        ridge=lam,
        residual=residual,
    )
    expansion = CurlFreeExpansion(kernel, where, z, coefficients, -w / lam)
    return FittedScore(info, expansion, reference, dimension)


def _operator(kernel: Radial, z: Float[Array, "M D"]) -> Callable[[Array], Array]:
    """Return the function C -> sum_m Kmat(z_i, z_m) c_m; small profiles are kept."""
    if z.shape[0] ** 2 <= KEPT:
        p = profile(kernel, z, None)
        return lambda c: apply(p, z, z, c)
    return lambda c: in_blocks(lambda rows: apply(profile(kernel, rows, z), rows, z, c), z)
