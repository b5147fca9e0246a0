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
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl._core.frames import check_metric
from implicitppl.kernels import RBF, Matern12, Matern32, Matern52, Radial
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._contract import Estimator
from implicitppl.score._curl_free import CurlFreeExpansion, apply, mean_divergence, profile
from implicitppl.score._fitted import FittedScore, make_fitted, reported_lengthscale, score_info
from implicitppl.score._reference import ReferenceLike, as_reference, fit_reference, reference_name
from implicitppl.score._sample import Sample
from implicitppl.score._spectral.conjugate_gradients import KEPT, in_blocks, solve_tikhonov


class KEF(Estimator):
    """Kernel exponential family estimator: a score that is a gradient, with its log density.

    Args:
        family: `RBF`, `InverseMultiquadric` or another smooth radial family.
        level: regularisation lam as a share of the operator's largest eigenvalue.
        lengthscale_factor: times the median distance in the metric's coordinates.
        metric: "isotropic", "diagonal" or "whitened".
        reference: None, "gaussian" or a function of one point: what is not expanded.
        tolerance: relative residual at which conjugate gradients stop.
        max_iterations: and their largest number.

    Raises:
        ValueError: for a value outside its range, an unknown metric or reference.

    Cost of `fit` O(M^2 D) for each of at most `max_iterations` steps, beyond 5,800 samples without
    any array of size M x M; of a query O(M D). It takes no covariates and uses no `key`. The two
    terms of a query are O(1/lam) and cancel: below a level of 1e-4 float32 loses digits. Without a
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

    takes_covariates: ClassVar[bool] = False
    family: Any = eqx.field(static=True, default=RBF)
    level: ArrayLike = 3e-3
    lengthscale_factor: ArrayLike = 2.0
    metric: str = eqx.field(static=True, default="isotropic")
    reference: Any = None
    tolerance: float = eqx.field(static=True, default=1e-6)
    max_iterations: int = eqx.field(static=True, default=200)

    def __init__(
        self,
        family: Any = RBF,
        *,
        level: ArrayLike = 3e-3,
        lengthscale_factor: ArrayLike = 2.0,
        metric: str = "isotropic",
        reference: ReferenceLike = None,
        tolerance: float = 1e-6,
        max_iterations: int = 200,
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
        if max_iterations < 1:
            raise ValueError(f"`max_iterations` must be at least 1; got {max_iterations}.")
        self.family = family
        self.level = level
        self.lengthscale_factor = lengthscale_factor
        self.metric = metric
        self.reference = as_reference(reference)
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        del key
        frame = sample.frame(self.metric)
        z = frame.to(sample.rows)
        lengthscale = median_lengthscale(z) * jnp.asarray(self.lengthscale_factor, z.dtype)
        kernel = self.family(lengthscale)
        reference = fit_reference(self.reference, sample)
        solution = solve_tikhonov(
            _operator(kernel, z),
            _zeta(kernel, z, sample.weights),
            sample.weights,
            None if reference is None else frame.score_to(reference.score(sample.rows)),
            self.level,
            self.tolerance,
            self.max_iterations,
        )
        ridge, coefficients = solution.ridge, solution.coefficients
        expansion = CurlFreeExpansion(kernel, frame, z, coefficients, -sample.weights / ridge)
        info = score_info(
            "KEF",
            sample,
            coefficients,
            metric=self.metric,
            reference=reference_name(self.reference),
            solver="conjugate gradients",
            lengthscale=reported_lengthscale(lengthscale, self.metric, frame),
            num_eigenfunctions=jnp.asarray(z.size, jnp.int32),
            explained=jnp.asarray(jnp.nan, z.dtype),
            ridge=ridge,
            residual=solution.residual,
        )
        return make_fitted(sample, info, reference, expansion)


def _operator(kernel: Radial, z: Float[Array, "M D"]) -> Callable[[Array], Array]:
    """Return the function C -> sum_m Kmat(z_i, z_m) c_m; small profiles are kept."""
    if z.shape[0] ** 2 <= KEPT:
        p = profile(kernel, z, None)
        return lambda c: apply(p, z, z, c)
    return lambda c: in_blocks(lambda rows: apply(profile(kernel, rows, z), rows, z, c), z)


def _zeta(kernel: Radial, z: Float[Array, "M D"], weights: Float[Array, " M"]) -> Array:
    """Return the mean divergence of the kernel under the samples, at each of them."""
    return in_blocks(lambda rows: mean_divergence(profile(kernel, rows, z), rows, z, weights), z)
