"""Score estimators as data: a kernel, a spectral filter, a metric and a reference.

    s(x) = s0(x) + k(x, Y) C,    C from `spectral_fit`, Y the samples or landmarks.

The named estimators of `_ssge` and `_family` are this one with their filter.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_positive
from implicitppl._core.frames import Frame, check_metric, metric_frame
from implicitppl._core.moments import Moments, moments
from implicitppl.kernels import RBF, Kernel
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._checks import check_weighted, join_covariates, or_equal
from implicitppl.score._fitted import FittedScore, fit_info
from implicitppl.score._reference import (
    ReferenceLike,
    StaticFunction,
    as_reference,
    fit_reference,
    reference_name,
)
from implicitppl.score._spectral.conjugate_gradients import (
    ConjugateGradients,
    TikhonovExpansion,
    solve,
)
from implicitppl.score._spectral.expansion import Expansion
from implicitppl.score._spectral.filters import Cutoff, RelativeRidge, SpectralFilter
from implicitppl.score._spectral.fit import solver_name, spectral_fit

# Beyond this many samples their Gram matrix (100 MB in float32) gives way to landmarks.
ALL_SAMPLES, DEFAULT_LANDMARKS = 5000, 300

KernelFamily = Callable[[Float[Array, ""]], Kernel]


class KernelEstimator(eqx.Module):
    """A score estimator from a kernel and a spectral filter: the seam for further filters.

    Args:
        filter: multiplier of each eigenfunction, see `implicitppl.linalg`.
        kernel: a family such as `RBF`, called with the lengthscale, or a ready kernel, which is
            used as it is, in data units.
        lengthscale: in data units, a scalar or one for each coordinate (covariates first, where
            there are any); None for the median
            distance between the samples, in the coordinates of `metric`, times
            `lengthscale_factor`.
        lengthscale_factor: of the automatic lengthscale.
        metric: coordinates in which an automatic kernel measures distance: "isotropic" (a rotated
            sample gives the rotated score), "diagonal" or "whitened".
        reference: score of which only the residual is estimated: None, "gaussian" (fitted to the
            samples), or a function of one point (D,) -> (D,), called with its covariates (C,) too
            where there are any.
        max_eigenfunctions: most eigenpairs that are computed. Default all up to M = 1000, beyond
            that 200, by subspace iteration.
        num_landmarks: m, how many samples span the eigenfunctions; every sample still enters
            their coefficients. Default all up to M = 5000, beyond that 300.

    Raises:
        ValueError: for a value outside its range, an unknown metric or reference, or a lengthscale
            or ready kernel together with a metric that would change its unit.

    Example:
        >>> import jax
        >>> from implicitppl.score import Ridge
        >>> from implicitppl.score import KernelEstimator
        >>> estimator = KernelEstimator(Ridge(0.1))
        >>> estimator.fit(jax.random.normal(jax.random.key(0), (20, 2))).info.metric
        'isotropic'
    """

    filter: SpectralFilter
    kernel: Kernel | KernelFamily
    lengthscale: ArrayLike | None
    lengthscale_factor: ArrayLike
    metric: str = eqx.field(static=True)
    reference: eqx.Module | None
    max_eigenfunctions: int | None = eqx.field(static=True)
    num_landmarks: int | None = eqx.field(static=True)

    def __init__(
        self,
        filter: SpectralFilter,
        kernel: Kernel | KernelFamily = RBF,
        *,
        lengthscale: ArrayLike | None = None,
        lengthscale_factor: ArrayLike = 1.0,
        metric: str = "isotropic",
        reference: ReferenceLike = None,
        max_eigenfunctions: int | None = None,
        num_landmarks: int | None = None,
    ):
        check_metric(metric)
        _check_options(kernel, lengthscale, lengthscale_factor, metric)
        if max_eigenfunctions is not None and max_eigenfunctions < 1:
            raise ValueError(f"`max_eigenfunctions` must be at least 1; got {max_eigenfunctions}.")
        self.filter = filter
        self.kernel = kernel if isinstance(kernel, Kernel) else StaticFunction(kernel)
        self.lengthscale = lengthscale
        self.lengthscale_factor = lengthscale_factor
        self.metric = metric
        self.reference = as_reference(reference)
        if num_landmarks is not None and num_landmarks < 2:
            raise ValueError(f"`num_landmarks` must be at least 2; got {num_landmarks}.")
        self.max_eigenfunctions = max_eigenfunctions
        self.num_landmarks = num_landmarks

    def fit(
        self,
        samples: ArrayLike,
        *,
        covariates: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        key: Array | None = None,
    ) -> FittedScore:
        """Return the score estimated from samples.

        Args:
            samples: (M, D), M >= 2, finite, each row a draw from q.
            covariates: (M, C), for the conditional score grad_x log q(x | c), which is then
                called as `fitted(x, covariates)`. They need no density: Stein's identity in x
                holds for fixed designs and for categories (as indicator columns) too. The kernel
                is one of (c, x), in standard deviations of each covariate where its lengthscale
                is automatic.
            weights: (M,) non-negative importance weights; None for equal ones.
            key: draws the landmarks without replacement; None for evenly spaced rows, so shuffle
                sorted samples first. Not used without landmarks.

        Returns:
            A `FittedScore`; its `info` tells what was chosen.

        Raises:
            ValueError: for a wrong rank, fewer than two samples, or values that are not finite.
                Inside `jit` values are unknown: `info.finite` is False instead.

        Cost O(M^2 D + M^3), the second term replaced by O(M^2 J) where subspace iteration takes
        over; O(M m (m + D) + m^3) and no array of size M x M with landmarks. Frame that are
        constant in the samples get the score 0, as does every coordinate when all samples
        coincide.
        """
        samples, weights = check_weighted(samples, weights)
        joint, num_covariates = join_covariates(samples, covariates)
        rows = _landmark_rows(self.num_landmarks, samples.shape[0], key)
        return _fit(self, joint, weights, rows, num_covariates)


@eqx.filter_jit
def _fit(
    estimator: KernelEstimator,
    samples: Array,
    weights: Array | None,
    landmarks: Array | None,
    num_covariates: int,
) -> FittedScore:
    """Fit with everything under stop-gradient: derivatives go through the query only."""
    estimator, samples, weights = _stop_gradient((estimator, samples, weights))
    size, dimension = samples.shape
    m = moments(samples, or_equal(weights, samples))
    where = _coordinates(estimator, m, num_covariates)
    z = where.to(samples)
    kernel, lengthscale = _kernel(estimator, z, where)
    kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, z.dtype), kernel)
    reference = fit_reference(estimator.reference, m, num_covariates)
    scores = None if reference is None else where.score_to(reference.score(samples))
    expansion: Expansion | TikhonovExpansion
    if isinstance(estimator.filter, ConjugateGradients):
        expansion, found = _by_conjugate_gradients(
            estimator.filter, kernel, where, z, or_equal(weights, z), scores
        )
    else:
        expansion, found = _by_eigenfunctions(
            estimator, kernel, where, z, weights, scores, landmarks
        )
    info = fit_info(
        type(estimator).__name__,
        size,
        m.size,
        jnp.all(jnp.isfinite(samples)) & jnp.all(jnp.isfinite(expansion.coefficients)),
        metric=estimator.metric,
        reference=reference_name(estimator.reference),
        lengthscale=lengthscale,
        **found,
    )
    return FittedScore(
        info, expansion, reference, dimension - num_covariates, num_covariates=num_covariates
    )


def _by_eigenfunctions(
    estimator: KernelEstimator,
    kernel: Kernel,
    where: Frame,
    z: Array,
    weights: Array | None,
    scores: Array | None,
    landmarks: Array | None,
) -> tuple[Expansion, dict[str, Any]]:
    """Return the kernel part, and what the info says of it."""
    centres = None if landmarks is None else z[landmarks]
    most = estimator.max_eigenfunctions
    result = spectral_fit(kernel, estimator.filter, z, weights, scores, most, centres)
    return Expansion(kernel, where, result.centres, result.coefficients), {
        "solver": solver_name(z.shape[0], centres, estimator.filter, most),
        "num_eigenfunctions": result.num_eigenfunctions,
        "explained": result.explained,
        "ridge": jnp.asarray(_ridge(estimator.filter, result.largest), z.dtype),
    }


def _by_conjugate_gradients(
    method: ConjugateGradients,
    kernel: Kernel,
    where: Frame,
    z: Array,
    weights: Array,
    scores: Array | None,
) -> tuple[TikhonovExpansion, dict[str, Any]]:
    """Return the kernel part, and what the info says of it."""
    coefficients, lam, residual = solve(method, kernel, z, weights, scores)
    return TikhonovExpansion(kernel, where, z, coefficients, weights, lam), {
        "solver": "conjugate gradients",
        "num_eigenfunctions": jnp.asarray(z.shape[0], jnp.int32),
        "explained": jnp.ones_like(lam),
        "ridge": z.shape[0] * lam,
        "residual": residual,
    }


def _ridge(spectral_filter: SpectralFilter, largest: Float[Array, ""]) -> ArrayLike:
    """Return what `ScoreInfo.ridge` says."""
    if isinstance(spectral_filter, RelativeRidge):
        return jnp.asarray(spectral_filter.level, largest.dtype) * largest
    if isinstance(spectral_filter, Cutoff):
        return 0.0
    return getattr(spectral_filter, "ridge", jnp.nan)


def _landmark_rows(num: int | None, size: int, key: Array | None) -> Array | None:
    """Return the rows of the landmarks; None where all samples span the eigenfunctions."""
    if num is None:
        num = size if size <= ALL_SAMPLES else DEFAULT_LANDMARKS
    if num >= size:
        return None
    if key is not None:
        return jax.random.permutation(key, size)[:num]
    return jnp.asarray(np.linspace(0, size - 1, num).round().astype(np.int32))


def _stop_gradient(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, tree)


def _coordinates(estimator: KernelEstimator, m: Moments, num_covariates: int) -> Frame:
    """Return the coordinates of the metric; for a kernel in data units, centred data units."""
    if estimator.lengthscale is None and not isinstance(estimator.kernel, Kernel):
        return metric_frame(estimator.metric, m, num_covariates)
    return Frame(m.mean, jnp.ones_like(m.size), num_covariates=num_covariates)


def _kernel(
    estimator: KernelEstimator, z: Float[Array, "M D"], where: Frame
) -> tuple[Kernel, Array]:
    """Return the kernel on z and the lengthscale to report."""
    if isinstance(estimator.kernel, Kernel):
        return estimator.kernel, jnp.asarray(jnp.nan, z.dtype)
    if estimator.lengthscale is not None:
        lengthscale = jnp.asarray(estimator.lengthscale, z.dtype)
        return estimator.kernel(lengthscale), lengthscale
    lengthscale = median_lengthscale(z) * jnp.asarray(estimator.lengthscale_factor, z.dtype)
    unit = jnp.ones_like(lengthscale)
    if estimator.metric == "isotropic":
        unit = where.scale if where.scale.ndim == 0 else where.scale[-1]
    return estimator.kernel(lengthscale), lengthscale * unit


def _check_options(
    kernel: object, lengthscale: object, lengthscale_factor: object, metric: str
) -> None:
    """Raise for options that are out of range or exclude each other."""
    if not isinstance(kernel, Kernel) and not callable(kernel):
        raise ValueError(f"`kernel` must be a kernel or a family such as `RBF`; got {kernel!r}.")
    check_positive("lengthscale_factor", lengthscale_factor)
    if lengthscale is not None:
        check_positive("lengthscale", lengthscale)
        if isinstance(kernel, Kernel):
            raise ValueError(
                "`lengthscale` needs a kernel family such as `RBF`; got a ready kernel, which has "
                "its own."
            )
    if (lengthscale is not None or isinstance(kernel, Kernel)) and metric != "isotropic":
        raise ValueError(
            "`lengthscale` and ready kernels are in data units, which leaves nothing for "
            f"`metric` to decide; got metric={metric!r}. Use `lengthscale_factor`."
        )
