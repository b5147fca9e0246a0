"""The rest of the family: one spectral filter each, around the same eigenfunctions.

    s(x) = s0(x) + sum_j f(l_j / l_1) beta_j psi_j(x)

Levels and iteration counts are relative to the largest eigenvalue l_1, so samples, kernels and M
may be rescaled without a divergence. Zhou, Shi, Zhu, "Nonparametric score estimators", ICML 2020.
"""

from typing import Any

from jax.typing import ArrayLike

from implicitppl.kernels import RBF, Kernel, Matern12
from implicitppl.linalg import Cutoff, LandweberFilter, NuFilter, RelativeRidge
from implicitppl.score._estimators import KernelEstimator, KernelFamily
from implicitppl.score._tikhonov import ConjugateGradients


class Tikhonov(KernelEstimator):
    """Solve (L + lam) s = -zeta, lam = level t_1: f = t / (t + level t_1).

    Args:
        kernel: a family such as `RBF`, or a ready kernel, in data units.
        level: regularisation as a share of the largest eigenvalue.
        solver: "spectral", by eigenfunctions, or "conjugate gradients", which gives the same on the
            samples (with a largest eigenvalue that is up to 2% low) and Tikhonov's own extension
            elsewhere, keeps all samples, and needs no memory of size M x M.
        tolerance: relative residual at which conjugate gradients stop.
        max_steps: and their largest number.
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
        max_steps: int = 200,
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
        super().__init__(ConjugateGradients(level, 1.0, tolerance, max_steps), kernel, **options)


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
