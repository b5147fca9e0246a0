"""Score estimators as data: a kernel, a spectral filter, a metric and a reference.

Every estimator of this file is s = s0 + k(x, X) C with C from `spectral_fit`; `SSGE` and `Stein`
differ in their filter only.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl.kernels import RBF, Kernel, median_lengthscale
from implicitppl.linalg import (
    Cutoff,
    RelativeRidge,
    Ridge,
    SpectralFilter,
    Tikhonov,
    check_positive,
)
from implicitppl.score._checks import check_samples, check_weights
from implicitppl.score._expansion import Expansion
from implicitppl.score._fitted import FittedScore, ScoreInfo
from implicitppl.score._metric import Coordinates, check_metric, coordinates
from implicitppl.score._moments import Moments, moments
from implicitppl.score._reference import (
    CallableReference,
    Reference,
    StaticFunction,
    gaussian_reference,
)
from implicitppl.score._spectral import solver_name, spectral_fit

# Beyond this many samples their Gram matrix (100 MB in float32) gives way to landmarks.
ALL_SAMPLES, DEFAULT_LANDMARKS = 5000, 300

KernelFamily = Callable[[Float[Array, ""]], Kernel]
ReferenceLike = str | Callable[[Array], Array] | None


class _FittedGaussian(eqx.Module):
    """Stands for `reference="gaussian"`, so that an estimator is a PyTree without strings."""


class KernelEstimator(eqx.Module):
    """A score estimator from a kernel and a spectral filter: the seam for further filters.

    Args:
        filter: multiplier of each eigenfunction, see `implicitppl.linalg`.
        kernel: a family such as `RBF`, called with the lengthscale, or a ready kernel, which is
            used as it is, in data units.
        lengthscale: in data units, a scalar or one for each coordinate; None for the median
            distance between the samples, in the coordinates of `metric`, times
            `lengthscale_factor`.
        lengthscale_factor: of the automatic lengthscale.
        metric: coordinates in which an automatic kernel measures distance: "isotropic" (a rotated
            sample gives the rotated score), "diagonal" or "whitened".
        reference: score of which only the residual is estimated: None, "gaussian" (fitted to the
            samples), or a function of one point (D,) -> (D,).
        max_eigenfunctions: most eigenpairs that are computed. Default all up to M = 1000, beyond
            that 200, by subspace iteration.
        num_landmarks: m, how many samples span the eigenfunctions; every sample still enters
            their coefficients. Default all up to M = 5000, beyond that 300.

    Raises:
        ValueError: for a value outside its range, an unknown metric or reference, or a lengthscale
            or ready kernel together with a metric that would change its unit.

    Example:
        >>> import jax
        >>> from implicitppl.linalg import Ridge
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
        self, samples: ArrayLike, *, weights: ArrayLike | None = None, key: Array | None = None
    ) -> FittedScore:
        """Return the score estimated from samples.

        Args:
            samples: (M, D), M >= 2, finite, each row a draw from q.
            weights: (M,) non-negative importance weights; None for equal ones.
            key: draws the landmarks without replacement; None for evenly spaced rows, so shuffle
                sorted samples first. Not used without landmarks.

        Returns:
            A `FittedScore`; its `info` tells what was chosen.

        Raises:
            ValueError: for a wrong rank, fewer than two samples, or values that are not finite.
                Inside `jit` values are unknown: `info.finite` is False instead.

        Cost O(M^2 D + M^3), the second term replaced by O(M^2 J) where subspace iteration takes
        over; O(M m (m + D) + m^3) and no array of size M x M with landmarks. Coordinates that are
        constant in the samples get the score 0, as does every coordinate when all samples
        coincide.
        """
        samples = check_samples(samples)
        if weights is not None:
            weights = check_weights(weights, samples)
        rows = _landmark_rows(self.num_landmarks, samples.shape[0], key)
        return _fit(self, samples, weights, rows)


class SSGE(KernelEstimator):
    """Spectral Stein gradient estimator: the score expanded in the kernel's eigenfunctions.

    s(x) = s0(x) + sum_{j <= J} f_j beta_j psi_j(x), with psi_j the Nystrom eigenfunctions of the
    kernel on the samples and beta_j from Stein's identity; evaluated as s0(x) + k(x, X) C.

    Args:
        kernel: a family such as `RBF`, called with the lengthscale, or a ready kernel, in data
            units.
        lengthscale: in data units; None for the median distance times `lengthscale_factor`.
        lengthscale_factor: of the automatic lengthscale.
        num_eigenfunctions: J; takes precedence over `explained`.
        explained: share of the Gram matrix's trace that the J eigenfunctions carry at least. The
            default 0.99 is right where the score is used on the samples themselves, as in
            variational inference; for other points a smaller share or a ridge is better.
        ridge: eta added to each eigenvalue that is divided by; a kernel of variance 1 is assumed
            for its scale. 0 is a pure cut-off.
        metric: "isotropic", "diagonal" or "whitened", see `KernelEstimator`.
        reference: None, "gaussian" or a function of one point: what is not expanded.
        filter: a `SpectralFilter` in place of `num_eigenfunctions`, `explained` and `ridge`.
        max_eigenfunctions: most eigenpairs that are computed for large M.
        num_landmarks: m, see `KernelEstimator`.

    Raises:
        ValueError: for a value outside its range, and for options that exclude each other.

    Cost of `fit` O(M^2 D + M^3), of a query O(M D). On the samples the empirical Stein identity
    holds exactly for every kept eigenfunction; on fresh points the default is noisy (slope 1.4
    to the true score for M = 100, D = 10). Away from the samples the kernel part is 0.

    Reference: Shi, Sun, Zhu, "A spectral approach to gradient estimation for implicit
    distributions", ICML 2018, equations (8)-(11).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import SSGE
        >>> samples = 2.0 + jax.random.normal(jax.random.key(0), (200, 1))
        >>> fitted = SSGE(reference="gaussian").fit(samples)
        >>> [round(float(s), 0) for s in fitted(jnp.array([[1.0], [3.0]]))[:, 0]]  # truth 2 - x
        [1.0, -1.0]
    """

    def __init__(
        self,
        kernel: Kernel | KernelFamily = RBF,
        *,
        lengthscale: ArrayLike | None = None,
        lengthscale_factor: ArrayLike = 1.0,
        num_eigenfunctions: int | None = None,
        explained: float | int = 0.99,
        ridge: ArrayLike = 0.0,
        metric: str = "isotropic",
        reference: ReferenceLike = None,
        filter: SpectralFilter | None = None,
        max_eigenfunctions: int | None = None,
        num_landmarks: int | None = None,
    ):
        if filter is None:
            filter = Cutoff(num_eigenfunctions, explained)
            if not _is_zero(ridge):
                filter = filter * Ridge(ridge)
        elif num_eigenfunctions is not None or explained != 0.99 or not _is_zero(ridge):
            raise ValueError(
                "`filter` replaces `num_eigenfunctions`, `explained` and `ridge`; give one or the "
                "other."
            )
        super().__init__(
            filter,
            kernel,
            lengthscale=lengthscale,
            lengthscale_factor=lengthscale_factor,
            metric=metric,
            reference=reference,
            max_eigenfunctions=max_eigenfunctions,
            num_landmarks=num_landmarks,
        )


class Stein(KernelEstimator):
    """Stein gradient estimator: ridge regression on Stein's identity.

    On the samples G = -(K + eta I)^{-1} H with H_i = sum_m grad_{x^m} k(x^i, x^m), which is
    Tikhonov regularisation with lam = eta/M. Elsewhere the Tikhonov extension is used, as the
    filter t/(t + eta/M): equal values on the samples (up to eigenpairs at rounding level) and
    O(M D) for each query, where bordering the matrix costs O(M^2) and is unstable near samples.

    Args:
        kernel: a family such as `RBF`, or a ready kernel, in data units.
        ridge: eta > 0, in the units of the Gram matrix. The default 1 is the best of the published
            settings on standard test densities.
        lengthscale: in data units; None for the median distance times `lengthscale_factor`.
        lengthscale_factor: of the automatic lengthscale.
        metric: "isotropic", "diagonal" or "whitened", see `KernelEstimator`.
        reference: None, "gaussian" or a function of one point: what is not expanded.
        max_eigenfunctions: most eigenpairs that are computed for large M.
        num_landmarks: m, see `KernelEstimator`.

    Raises:
        ValueError: if `ridge` is not positive, or as for `KernelEstimator`.

    Cost of `fit` O(M^2 D + M^3), of a query O(M D). Shrinks towards the reference (or 0): by half
    in directions whose eigenvalue is eta.

    Reference: Li, Turner, "Gradient estimators for implicit models", ICLR 2018, equation (9).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import Stein
        >>> samples = jax.random.normal(jax.random.key(0), (200, 1))
        >>> round(float(Stein(ridge=0.1).fit(samples)(jnp.array([1.0]))[0]), 0)  # truth -1
        -1.0
    """

    def __init__(
        self,
        kernel: Kernel | KernelFamily = RBF,
        *,
        ridge: ArrayLike = 1.0,
        lengthscale: ArrayLike | None = None,
        lengthscale_factor: ArrayLike = 1.0,
        metric: str = "isotropic",
        reference: ReferenceLike = None,
        max_eigenfunctions: int | None = None,
        num_landmarks: int | None = None,
    ):
        check_positive("ridge", ridge)
        super().__init__(
            Tikhonov(ridge),
            kernel,
            lengthscale=lengthscale,
            lengthscale_factor=lengthscale_factor,
            metric=metric,
            reference=reference,
            max_eigenfunctions=max_eigenfunctions,
            num_landmarks=num_landmarks,
        )


@eqx.filter_jit
def _fit(
    estimator: KernelEstimator, samples: Array, weights: Array | None, landmarks: Array | None
) -> FittedScore:
    """Fit with everything under stop-gradient: derivatives go through the query only."""
    estimator, samples, weights = _stop_gradient((estimator, samples, weights))
    size, dimension = samples.shape
    uniform = jnp.full((size,), 1 / size, samples.dtype) if weights is None else weights
    m = moments(samples, uniform)
    where = _coordinates(estimator, m)
    z = where.to_metric(samples)
    kernel, lengthscale = _kernel(estimator, z, where)
    kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, z.dtype), kernel)
    reference = fit_reference(estimator.reference, m)
    scores = None if reference is None else where.score_to_metric(reference.score(samples))
    centres = None if landmarks is None else z[landmarks]
    result = spectral_fit(
        kernel, estimator.filter, z, weights, scores, estimator.max_eigenfunctions, centres
    )
    info = ScoreInfo(
        estimator=type(estimator).__name__,
        metric=estimator.metric,
        reference=reference_name(estimator.reference),
        solver=solver_name(size, centres, estimator.filter, estimator.max_eigenfunctions),
        num_samples=size,
        lengthscale=lengthscale,
        num_eigenfunctions=result.num_eigenfunctions,
        explained=result.explained,
        ridge=jnp.asarray(_ridge(estimator.filter, result.largest), samples.dtype),
        residual=jnp.zeros((), samples.dtype),
        effective_size=m.size,
        finite=jnp.all(jnp.isfinite(samples)) & jnp.all(jnp.isfinite(result.coefficients)),
    )
    return FittedScore(
        info, Expansion(kernel, where, result.centres, result.coefficients), reference, dimension
    )


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


def _coordinates(estimator: KernelEstimator, m: Moments) -> Coordinates:
    """Return the coordinates of the metric; for a kernel in data units, centred data units."""
    if estimator.lengthscale is None and not isinstance(estimator.kernel, Kernel):
        return coordinates(estimator.metric, m)
    return Coordinates(m.mean, jnp.ones_like(m.size))


def _kernel(
    estimator: KernelEstimator, z: Float[Array, "M D"], where: Coordinates
) -> tuple[Kernel, Array]:
    """Return the kernel on z and the lengthscale to report."""
    if isinstance(estimator.kernel, Kernel):
        return estimator.kernel, jnp.asarray(jnp.nan, z.dtype)
    if estimator.lengthscale is not None:
        lengthscale = jnp.asarray(estimator.lengthscale, z.dtype)
        return estimator.kernel(lengthscale), lengthscale
    lengthscale = median_lengthscale(z) * jnp.asarray(estimator.lengthscale_factor, z.dtype)
    unit = where.scale if estimator.metric == "isotropic" else jnp.ones_like(lengthscale)
    return estimator.kernel(lengthscale), lengthscale * unit


def fit_reference(reference: Any, m: Moments) -> Reference | None:
    if reference is None:
        return None
    if isinstance(reference, _FittedGaussian):
        return gaussian_reference(m)
    return CallableReference(reference)


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


def as_reference(reference: ReferenceLike) -> eqx.Module | None:
    """Return a reference that is a PyTree, or raise what is wrong with it."""
    if reference is None or isinstance(reference, eqx.Module):
        return reference
    if isinstance(reference, str):
        if reference != "gaussian":
            raise ValueError(
                f'`reference` must be None, "gaussian" or a callable; got {reference!r}.'
            )
        return _FittedGaussian()
    if not callable(reference):
        raise ValueError(f'`reference` must be None, "gaussian" or a callable; got {reference!r}.')
    return StaticFunction(reference)


def reference_name(reference: eqx.Module | None) -> str:
    """Return what `ScoreInfo.reference` says."""
    if reference is None:
        return "none"
    return "gaussian" if isinstance(reference, _FittedGaussian) else "callable"


def _is_zero(ridge: ArrayLike) -> bool:
    """Return whether a ridge is known to be absent; a traced or array ridge never is."""
    return isinstance(ridge, int | float) and ridge == 0
