"""A fitted score: a callable PyTree, O(M D) for each query.

    s(x) = s0(x) + T k(z(x), Z) C,     Z (M, D) the samples in the metric's coordinates,

with the coefficients C (M, D) computed once by the fit. The divergence has a closed form of the
same cost: div s(x) = div s0(x) + sum_m grad_z k(z, z_m) . (T^T T C_m).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.frames import Frame
from implicitppl.score._checks import check_query, join_query
from implicitppl.score._field import Field, GradientField
from implicitppl.score._sample import Sample
from implicitppl.score._support import Support

# Queries are evaluated in blocks of at most this many kernel values (64 MiB in float32).
_BLOCK = 2**24


class FitInfo(eqx.Module):
    """What every fit says of itself.

    Attributes:
        estimator: name of the estimator.
        solver: how it was solved, in words; "none" where there was nothing to solve.
        num_samples: M.
        dtype: of the samples, and of the scores.
        effective_size: 1 / sum w^2, M without weights.
        finite: False where a sample or something fitted is not finite; the score is then NaN.
    """

    estimator: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)
    effective_size: Float[Array, ""]
    finite: Bool[Array, ""]


class ScoreInfo(FitInfo):
    """What a fit chose and found; arrays, except for the names.

    Attributes:
        estimator: name of the estimator.
        solver: "none", "full" (all samples and eigenpairs), "subspace" (all samples, leading
            eigenpairs by iteration), "landmarks" or "conjugate gradients".
        num_samples: M.
        dtype: of the samples, and of the scores.
        effective_size: 1 / sum w^2, M without weights.
        finite: False where a sample or a coefficient is not finite; the score is then NaN.
        metric: coordinates in which the kernel measures distance.
        reference: "none", "gaussian" or "callable".
        lengthscale: of the kernel, in data units for the isotropic metric, in standard deviations
            for the others; NaN without a kernel or where the kernel was given ready-made.
        num_eigenfunctions: how many are used: multiplier > 0 and above the rounding floor.
        explained: share of the trace of the Gram matrix that they carry.
        ridge: eta of the filter, 0 for a pure cut-off, NaN for an iteration.
        residual: relative residual of an iterative solver at its end, 0 for the others.
    """

    metric: str = eqx.field(static=True)
    reference: str = eqx.field(static=True)
    lengthscale: Float[Array, "..."]
    num_eigenfunctions: Int[Array, ""]
    explained: Float[Array, ""]
    ridge: Float[Array, ""]
    residual: Float[Array, ""]


def base_info(estimator: str, sample: Sample, *fitted: Array) -> dict[str, Any]:
    """Return what a `FitInfo` says besides its solver, for arrays that were fitted to a sample."""
    return {
        "estimator": estimator,
        "num_samples": sample.size,
        "dtype": sample.dtype,
        "effective_size": sample.effective_size,
        "finite": all_finite(sample.rows, *fitted),
    }


def score_info(estimator: str, sample: Sample, *fitted: Array, **details: Any) -> ScoreInfo:
    """Return a `ScoreInfo`; what is not given is "none", 0 or, for the lengthscale, NaN."""
    zero = jnp.zeros((), sample.dtype)
    defaults = {
        "metric": "none",
        "reference": "none",
        "solver": "none",
        "lengthscale": zero * jnp.nan,
        "num_eigenfunctions": jnp.zeros((), jnp.int32),
        "explained": zero,
        "ridge": zero,
        "residual": zero,
    }
    return ScoreInfo(**(base_info(estimator, sample, *fitted) | defaults | details))


def reported_lengthscale(
    lengthscale: Float[Array, ""], metric: str, frame: Frame
) -> Float[Array, ""]:
    """Return a lengthscale in data units for the isotropic metric, else as it is."""
    if metric != "isotropic":
        return lengthscale
    # With covariates, which have units of their own, the last coordinate is one of x.
    return lengthscale * (frame.scale if frame.scale.ndim == 0 else frame.scale[-1])


def all_finite(*arrays: Array) -> Bool[Array, ""]:
    """Return whether all values of all arrays are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))


class FittedScore(eqx.Module):
    """An estimate of grad log q, fitted on samples of q; made by the `fit` of an estimator.

    Calling it evaluates the score. Derivatives go through the query; those with respect to the
    samples it was fitted on are zero by construction.

    Attributes:
        info: what the fit chose: a `ScoreInfo`, a `SelectionInfo` from `select`, or a
            `NetworkInfo`.
        parts: the fields whose sum the score is: the reference, where there is one, then what was
            estimated.
        dimension: D.
        num_covariates: C, for a conditional score; it is then called with the covariates too.
        support: where there were samples, see `off_support`; None unless made by `select`.

    Cost O(M D) for each query. Without a reference the estimate decays to 0 away from the samples.

    Reference: Shi, Sun, Zhu, ICML 2018, equation (11), rearranged so that the eigenfunctions are
    summed once in the fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import Gaussian
        >>> fitted = Gaussian().fit(jax.random.normal(jax.random.key(0), (500, 2)))
        >>> fitted(jnp.zeros(2)).shape, fitted(jnp.zeros((4, 3, 2))).shape
        ((2,), (4, 3, 2))
        >>> fitted.info.estimator
        'Gaussian'
    """

    # Each estimator has its own kind; a union would have to be taken apart at every use.
    info: Any
    parts: tuple[Field, ...]
    dimension: int = eqx.field(static=True)
    support: Support | None = None
    num_covariates: int = eqx.field(static=True, default=0)

    def __call__(self, x: ArrayLike, covariates: ArrayLike | None = None) -> Float[Array, "..."]:
        """Return the score at `x`.

        Args:
            x: one point (D,), or points (..., D).
            covariates: (C,) or (..., C), for a score that was fitted with covariates.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: if the last axis of `x` is not D, or covariates are missing, unexpected or
                not C.
        """
        return _evaluate(self, *self._query(x, covariates))

    def divergence(self, x: ArrayLike, covariates: ArrayLike | None = None) -> Float[Array, "..."]:
        """Return div s(x) = sum_d ds_d/dx_d, of shape () or (...).

        Args:
            x: one point (D,), or points (..., D).
            covariates: as for the score.

        Returns:
            One number for each point.

        Raises:
            ValueError: as for the score.

        Cost O(M D) for each point, in closed form; D directional derivatives for a callable
        reference, a network, or Tikhonov by conjugate gradients.
        """
        return _evaluate_divergence(self, *self._query(x, covariates))

    def unnormalized_log_density(self, x: ArrayLike) -> Float[Array, "..."]:
        """Return a log density of which this score is the gradient, up to a constant.

        Args:
            x: one point (D,), or points (..., D).

        Returns:
            One number for each point.

        Raises:
            ValueError: if the last axis of `x` is not D, or the score is not a gradient by
                construction: `KEF`, `ConditionalMixture` and `Gaussian` are, without a
                callable reference and without covariates.
        """
        if self.num_covariates:
            raise ValueError("`unnormalized_log_density` is not defined for a conditional score.")
        for part in self.parts:
            if not isinstance(part, GradientField):
                raise ValueError(
                    "`unnormalized_log_density` needs a score that is a gradient, from `KEF`, "
                    "`ConditionalMixture` or `Gaussian`; a part of this one, "
                    f"{type(part).__name__}, has no log density."
                )
        x, _ = self._query(x, None)
        values = _in_blocks(self, lambda part, block: part.log_density(block), join_query(x, None))
        return values.reshape(x.shape[:-1])

    def off_support(self, x: ArrayLike, covariates: ArrayLike | None = None) -> Bool[Array, "..."]:
        """Return whether `x` is farther from all samples than any sample from the others.

        Args:
            x: one point (D,), or points (..., D).
            covariates: as for the score; distances are then of both together.

        Returns:
            One boolean for each point. For independent samples a point from their distribution
            is flagged with probability of about 1 / (M + 1), at least 1 / 2001, and up to twice
            that with fewer than ten samples for each coordinate. A flagged score rests on the
            Gaussian. Draws of a slowly mixing chain flag more.

        Raises:
            ValueError: if the last axis of `x` is not D, or the score was not made by `select`.

        Distances are in standard deviations. Cost O(M D) for each point, at most 4000 samples.
        """
        if self.support is None:
            raise ValueError(
                "`off_support` needs a score from `select`; this one keeps no support."
            )
        x, covariates = self._query(x, covariates)
        return self.support.off(join_query(x, covariates)).reshape(x.shape[:-1])

    def _query(self, x: ArrayLike, covariates: ArrayLike | None) -> tuple[Array, Array | None]:
        """Return a query and its covariates as checked arrays of the fit's dtype."""
        return check_query(x, self.dimension, self.info.dtype, covariates, self.num_covariates)


def make_fitted(
    sample: Sample, info: FitInfo, *parts: Field | None, support: Support | None = None
) -> FittedScore:
    """Return the score that is the sum of the parts; None is no part."""
    kept = tuple(part for part in parts if part is not None)
    return FittedScore(info, kept, sample.dimension, support, sample.num_covariates)


@eqx.filter_jit
def _evaluate(fitted: FittedScore, x: Array, covariates: Array | None) -> Array:
    rows = join_query(x, covariates)
    score = _in_blocks(fitted, lambda part, block: part.score(block), rows)
    return score[:, fitted.num_covariates :].reshape(x.shape)


@eqx.filter_jit
def _evaluate_divergence(fitted: FittedScore, x: Array, covariates: Array | None) -> Array:
    rows = join_query(x, covariates)
    values = _in_blocks(fitted, lambda part, block: part.divergence(block), rows)
    return values.reshape(x.shape[:-1])


def _in_blocks(
    fitted: FittedScore,
    evaluate: Callable[[Any, Array], Array],
    rows: Float[Array, "N D"],
) -> Array:
    """Sum the parts over rows, in blocks where N M is too large for one Gram matrix."""

    def total(block: Array) -> Array:
        values = [evaluate(part, block) for part in fitted.parts]
        return sum(values[1:], start=values[0])

    block_size = max(1, _BLOCK // max(1, fitted.info.num_samples))
    if rows.shape[0] <= block_size:
        return total(rows)
    return jax.lax.map(lambda row: total(row[None, :])[0], rows, batch_size=block_size)
