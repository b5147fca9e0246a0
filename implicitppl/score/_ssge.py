"""The two published estimators, which differ in their filter only: SSGE and the Stein estimator."""

from jax.typing import ArrayLike

from implicitppl.kernels import RBF, Kernel
from implicitppl.linalg import Cutoff, Ridge, SpectralFilter, Tikhonov, check_positive
from implicitppl.score._estimators import KernelEstimator, KernelFamily
from implicitppl.score._reference import ReferenceLike


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


def _is_zero(ridge: ArrayLike) -> bool:
    """Return whether a ridge is known to be absent; a traced or array ridge never is."""
    return isinstance(ridge, int | float) and ridge == 0
