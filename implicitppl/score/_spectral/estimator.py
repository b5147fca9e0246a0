"""Score estimators as data: a kernel, a spectral filter, a metric and a reference.

    s(x) = s0(x) + k(x, Y) C,    C from `spectral_fit`, Y the samples or landmarks.

The named estimators of `family` are this one with their filter.
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
from implicitppl._core.frames import Frame, check_metric
from implicitppl.kernels import RBF, Kernel
from implicitppl.kernels._distances import median_lengthscale
from implicitppl.score._contract import Estimator
from implicitppl.score._fitted import FittedScore, make_fitted, reported_lengthscale, score_info
from implicitppl.score._reference import (
    ReferenceLike,
    StaticFunction,
    as_reference,
    fit_reference,
    reference_name,
)
from implicitppl.score._sample import Sample
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


class KernelEstimator(Estimator):
    """A score estimator from a kernel and a spectral filter: the seam for further filters.

    Args:
        filter: multiplier of each eigenfunction, see `SpectralFilter`.
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

    The `key` of `fit` draws the landmarks without replacement; without one they are evenly spaced
    rows, so shuffle sorted samples first. With covariates the kernel is one of (c, x), in standard
    deviations of each covariate where its lengthscale is automatic.

    Cost of `fit` O(M^2 D + M^3), the second term replaced by O(M^2 J) where subspace iteration
    takes over; O(M m (m + D) + m^3) and no array of size M x M with landmarks.

    Example:
        >>> import jax
        >>> from implicitppl.score import KernelEstimator
        >>> from implicitppl.score._spectral.filters import Ridge
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

    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        frame = self._frame(sample)
        standard = sample.seen_in(frame)
        kernel, lengthscale = self._kernel(standard.rows, frame)
        reference = fit_reference(self.reference, sample)
        scores = None if reference is None else frame.score_to(reference.score(sample.rows))
        expansion: Expansion | TikhonovExpansion
        if isinstance(self.filter, ConjugateGradients):
            expansion, details = _by_conjugate_gradients(
                self.filter, kernel, frame, standard, scores
            )
        else:
            landmarks = _landmarks(self.num_landmarks, standard.rows, key)
            expansion, details = _by_eigenfunctions(
                self, kernel, frame, standard, scores, landmarks
            )
        info = score_info(
            type(self).__name__,
            sample,
            expansion.coefficients,
            metric=self.metric,
            reference=reference_name(self.reference),
            lengthscale=lengthscale,
            **details,
        )
        return make_fitted(sample, info, reference, expansion)

    def _frame(self, sample: Sample) -> Frame:
        """Return the coordinates of the metric; for a kernel in data units, centred data units."""
        if self.lengthscale is None and not isinstance(self.kernel, Kernel):
            return sample.frame(self.metric)
        one = jnp.ones((), sample.dtype)
        return Frame(sample.moments.mean, one, num_covariates=sample.num_covariates)

    def _kernel(self, z: Float[Array, "M R"], frame: Frame) -> tuple[Kernel, Array]:
        """Return the kernel on z, its fields in the dtype of z, and the lengthscale to report."""
        if isinstance(self.kernel, Kernel):
            kernel, reported = self.kernel, jnp.asarray(jnp.nan, z.dtype)
        elif self.lengthscale is not None:
            reported = jnp.asarray(self.lengthscale, z.dtype)
            kernel = self.kernel(reported)
        else:
            lengthscale = median_lengthscale(z) * jnp.asarray(self.lengthscale_factor, z.dtype)
            kernel = self.kernel(lengthscale)
            reported = reported_lengthscale(lengthscale, self.metric, frame)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, z.dtype), kernel), reported


def _by_eigenfunctions(
    estimator: KernelEstimator,
    kernel: Kernel,
    frame: Frame,
    sample: Sample,
    scores: Array | None,
    landmarks: Array | None,
) -> tuple[Expansion, dict[str, Any]]:
    """Return the kernel part, and what the info says of it."""
    most = estimator.max_eigenfunctions
    result = spectral_fit(kernel, estimator.filter, sample, scores, most, landmarks)
    return Expansion(kernel, frame, result.centres, result.coefficients), {
        "solver": solver_name(sample.size, landmarks, estimator.filter, most),
        "num_eigenfunctions": result.num_eigenfunctions,
        "explained": result.explained,
        "ridge": jnp.asarray(_ridge(estimator.filter, result.largest), sample.dtype),
    }


def _by_conjugate_gradients(
    method: ConjugateGradients,
    kernel: Kernel,
    frame: Frame,
    sample: Sample,
    scores: Array | None,
) -> tuple[TikhonovExpansion, dict[str, Any]]:
    """Return the kernel part, and what the info says of it."""
    coefficients, lam, residual = solve(method, kernel, sample, scores)
    expansion = TikhonovExpansion(kernel, frame, sample.rows, coefficients, sample.weights, lam)
    return expansion, {
        "solver": "conjugate gradients",
        "num_eigenfunctions": jnp.asarray(sample.size, jnp.int32),
        "explained": jnp.ones_like(lam),
        "ridge": sample.size * lam,
        "residual": residual,
    }


def _ridge(spectral_filter: SpectralFilter, largest: Float[Array, ""]) -> ArrayLike:
    """Return what `ScoreInfo.ridge` says."""
    if isinstance(spectral_filter, RelativeRidge):
        return jnp.asarray(spectral_filter.level, largest.dtype) * largest
    if isinstance(spectral_filter, Cutoff):
        return 0.0
    return getattr(spectral_filter, "ridge", jnp.nan)


def _landmarks(
    num: int | None, z: Float[Array, "M R"], key: Array | None
) -> Float[Array, "m R"] | None:
    """Return the landmarks; None where all samples span the eigenfunctions."""
    size = z.shape[0]
    if num is None:
        num = size if size <= ALL_SAMPLES else DEFAULT_LANDMARKS
    if num >= size:
        return None
    if key is not None:
        return z[jax.random.permutation(key, size)[:num]]
    return z[np.linspace(0, size - 1, num).round().astype(np.int32)]


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
