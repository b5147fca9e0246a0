"""The named estimators: one spectral filter each, around the same eigenfunctions.

    s(x) = s0(x) + sum_j f(l_j / l_1) beta_j psi_j(x)

Levels and iteration counts are relative to the largest eigenvalue l_1, so samples, kernels and M
may be rescaled without a divergence. Zhou, Shi, Zhu, "Nonparametric score estimators", ICML 2020.
"""

from typing import Any

from jax.typing import ArrayLike

from implicitppl._core.checks import check_positive
from implicitppl.kernels import RBF, Kernel, Matern12
from implicitppl.score._reference import ReferenceLike
from implicitppl.score._spectral.conjugate_gradients import ConjugateGradients
from implicitppl.score._spectral.estimator import KernelEstimator, KernelFamily
from implicitppl.score._spectral.filters import (
    Cutoff,
    LandweberFilter,
    NuFilter,
    RelativeRidge,
    Ridge,
    SpectralFilter,
    TikhonovFilter,
)


class Tikhonov(KernelEstimator):
    """Solve (L + lam) s = -zeta, lam = level t_1: f = t / (t + level t_1).

    Args:
        kernel: a family such as `RBF`, or a ready kernel, in data units.
        level: regularisation as a share of the largest eigenvalue.
        solver: "spectral", by eigenfunctions, or "conjugate gradients", which gives the same on the
            samples (with a largest eigenvalue that is up to 2% low) and Tikhonov's own extension
            elsewhere, keeps all samples, and needs no memory of size M x M.
        tolerance: relative residual at which conjugate gradients stop.
        max_iterations: and their largest number.
        **options: `lengthscale`, `lengthscale_factor`, `metric`, `reference`,
            `max_eigenfunctions`, `num_landmarks` of `KernelEstimator`.

    Raises:
        ValueError: if `level` is negative, an unknown solver, landmarks or eigenfunctions for
            conjugate gradients, or as for `KernelEstimator`.

    Cost as for `SSGE`; with `num_landmarks` this is its Nystrom form; by conjugate gradients
    O(M^2 D) for each step, and below a level of 1e-4 float32 loses digits. On the samples equal
    to `Stein(ridge=level l_1)`.

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.1.

    Example:
        >>> import jax
        >>> from implicitppl.score import Tikhonov
        >>> samples = jax.random.normal(jax.random.key(0), (200, 1))
        >>> round(float(Tikhonov().fit(samples)(samples[:1] * 0 + 1.0)[0, 0]), 0)  # truth -1
        -1.0
    """

    def __init__(
        self,
        kernel: Kernel | KernelFamily = RBF,
        *,
        level: ArrayLike = 1e-2,
        solver: str = "spectral",
        tolerance: float = 1e-6,
        max_iterations: int = 200,
        **options: Any,
    ):
        if solver not in ("spectral", "conjugate gradients"):
            raise ValueError(
                f'`solver` must be "spectral" or "conjugate gradients"; got {solver!r}.'
            )
        if solver == "spectral":
            super().__init__(RelativeRidge(level), kernel, **options)
            return
        if isinstance(kernel, Matern12) or kernel is Matern12:
            raise ValueError(
                "`kernel` must have a continuous gradient for conjugate gradients, whose extension "
                "contains it; got Matern12."
            )
        for name in ("num_landmarks", "max_eigenfunctions"):
            if options.get(name) is not None:
                raise ValueError(
                    f'`{name}` belongs to the solver "spectral"; conjugate gradients keep all '
                    "samples and no eigenfunctions."
                )
        method = ConjugateGradients(level, 1.0, tolerance, max_iterations)
        super().__init__(method, kernel, **options)


class SpectralCutoff(KernelEstimator):
    """Keep the leading eigenfunctions and nothing of the others: SSGE by its number alone.

    Args:
        kernel: a family such as `RBF`, or a ready kernel, in data units.
        num_eigenfunctions: J; takes precedence over `explained`.
        explained: share of the trace of the Gram matrix that they carry at least.
        **options: see `Tikhonov`.

    Raises:
        ValueError: if `num_eigenfunctions` < 1 or `explained` is outside (0, 1].

    Cost as for `SSGE`. Eigenvalues at rounding level are never kept, whatever `explained` says.

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.1; Shi, Sun, Zhu, ICML 2018.

    Example:
        >>> import jax
        >>> from implicitppl.score import SpectralCutoff
        >>> samples = jax.random.normal(jax.random.key(0), (200, 1))
        >>> int(SpectralCutoff(num_eigenfunctions=4).fit(samples).info.num_eigenfunctions)
        4
    """

    def __init__(
        self,
        kernel: Kernel | KernelFamily = RBF,
        *,
        num_eigenfunctions: int | None = None,
        explained: float | int = 0.9,
        **options: Any,
    ):
        super().__init__(Cutoff(num_eigenfunctions, explained), kernel, **options)


class Landweber(KernelEstimator):
    """Gradient descent on L s = -zeta, stopped after n steps: f = 1 - (1 - t / t_1)^n.

    Args:
        kernel: a family such as `RBF`, or a ready kernel, in data units.
        num_iterations: n; regularisation is about t_1 / n.
        step: relative to 1 / t_1, in (0, 2).
        **options: see `Tikhonov`.

    Raises:
        ValueError: if `num_iterations` < 1 or `step` is outside (0, 2).

    Cost as for `SSGE`: the iteration has a closed form in the eigenbasis.

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.2.

    Example:
        >>> import jax
        >>> from implicitppl.score import Landweber
        >>> samples = jax.random.normal(jax.random.key(0), (200, 1))
        >>> round(float(Landweber().fit(samples)(samples[:1] * 0 + 1.0)[0, 0]), 0)  # truth -1
        -1.0
    """

    def __init__(
        self,
        kernel: Kernel | KernelFamily = RBF,
        *,
        num_iterations: int = 100,
        step: float = 1.0,
        **options: Any,
    ):
        super().__init__(LandweberFilter(num_iterations, step), kernel, **options)


class NuMethod(KernelEstimator):
    """The nu-method: what `Landweber` reaches in n^2 steps, in n.

    Args:
        kernel: a family such as `RBF`, or a ready kernel, in data units.
        num_iterations: n; regularisation is about t_1 / n^2.
        nu: qualification, > 0.
        **options: see `Tikhonov`.

    Raises:
        ValueError: if `num_iterations` < 1 or `nu` is not positive.

    Cost as for `SSGE`.

    Reference: Zhou, Shi, Zhu, ICML 2020, section 3.2.

    Example:
        >>> import jax
        >>> from implicitppl.score import NuMethod
        >>> samples = jax.random.normal(jax.random.key(0), (200, 1))
        >>> round(float(NuMethod().fit(samples)(samples[:1] * 0 + 1.0)[0, 0]), 0)  # truth -1
        -1.0
    """

    def __init__(
        self,
        kernel: Kernel | KernelFamily = RBF,
        *,
        num_iterations: int = 10,
        nu: float = 1.0,
        **options: Any,
    ):
        super().__init__(NuFilter(num_iterations, nu), kernel, **options)


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
            TikhonovFilter(ridge),
            kernel,
            lengthscale=lengthscale,
            lengthscale_factor=lengthscale_factor,
            metric=metric,
            reference=reference,
            max_eigenfunctions=max_eigenfunctions,
            num_landmarks=num_landmarks,
        )


def _is_zero(ridge: ArrayLike) -> bool:
    """Return whether a ridge is known to be absent; a traced or array ridge never is."""
    return isinstance(ridge, int | float) and ridge == 0
