"""Scores of mixtures q(x) = mean_k q(x | z_k): semi-implicit samplers, kernel density estimates.

    s(x) = sum_k a_k(x) grad_x log q(x | z_k),   a_k = softmax_k log q(x | z_k) (+ log w_k).

Where a sampler ends in a conditional with a density, x ~ q(x | z), z ~ sampler, this is far more
accurate than anything that sees x alone: it is the exact score of the mixture over the given z, and
with K fresh z the bias to the true score is O(1/K). A kernel density estimate is the case
q(x | z) = N(x; z, h^2) with the samples themselves as z.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl._core.checks import check_non_negative, check_positive
from implicitppl.score._checks import check_weights
from implicitppl.score._contract import Estimator
from implicitppl.score._field import Field, GradientField
from implicitppl.score._fitted import FittedScore, make_fitted, score_info
from implicitppl.score._sample import Sample, make_sample


class MixtureScore(Field):
    """Score of mean_k q(x | z_k), with the density floored at a share of one component's."""

    log_conditional: Callable[[Array, Any], Array]
    components: Any
    log_weights: Float[Array, " K"]
    log_floor: Float[Array, ""]

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return jax.vmap(self._one)(x)

    def _logits(self, x: Float[Array, " D"]) -> Float[Array, " K"]:
        def one(z: Any) -> Array:
            value = jnp.asarray(self.log_conditional(x, z))
            if value.size != 1:
                raise ValueError(
                    "`log_conditional` must return one number for a point and a mixing variable; "
                    f"got shape {value.shape}."
                )
            return value.reshape(())

        return jax.vmap(one)(self.components) + self.log_weights

    def _one(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        log_density, score = jax.value_and_grad(lambda p: jax.nn.logsumexp(self._logits(p)))(x)
        return score * jnp.exp(jnp.minimum(log_density - self.log_floor, 0))


class PlainMixtureScore(MixtureScore, GradientField):
    """The same without a floor, which makes it the gradient of a log density."""

    def log_density(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return log mean_k q(x | z_k) for every row."""
        return jax.vmap(lambda point: jax.nn.logsumexp(self._logits(point)))(x)


class ConditionalMixture(eqx.Module):
    """Score of a hierarchical sampler through its conditional density.

    Args:
        log_conditional: function of one point x (D,) and one mixing variable z to log q(x | z).

    Cost of `fit` O(K), of a query O(K) conditional densities. Biased by O(1/K) towards the given
    mixing variables; use fresh ones, not those that generated the query.

    Reference: Yin, Zhou, "Semi-implicit variational inference", ICML 2018; Titsias, Ruiz,
    "Unbiased implicit variational inference", AISTATS 2019, equation (8).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import ConditionalMixture
        >>> mixing = jax.random.normal(jax.random.key(0), (1000, 2))  # x = z + noise, so N(0, 2 I)
        >>> estimator = ConditionalMixture(lambda x, z: -0.5 * jnp.sum((x - z) ** 2))
        >>> [round(float(s), 1) for s in estimator.fit(mixing)(jnp.array([1.0, 0.0]))]
        [-0.5, 0.0]
    """

    log_conditional: Callable[[Array, Any], Array]

    def __init__(self, log_conditional: Any):
        if not callable(log_conditional):
            raise ValueError(
                "`log_conditional` must be a function of a point and a mixing variable; got "
                f"{type(log_conditional).__name__}."
            )
        is_module = isinstance(log_conditional, eqx.Module)
        self.log_conditional = log_conditional if is_module else _Conditional(log_conditional)

    def fit(
        self,
        mixing: Any,
        *,
        dimension: int | None = None,
        weights: ArrayLike | None = None,
        key: Array | None = None,
    ) -> FittedScore:
        """Return the score of the mixture over the given mixing variables.

        Args:
            mixing: (K, ...) draws of z, or a PyTree of arrays with a leading axis K.
            dimension: D of x; None where x has the dimension of z.
            weights: (K,) non-negative weights; None for equal ones.
            key: not used.

        Returns:
            A `FittedScore`, with `unnormalized_log_density`.

        Raises:
            ValueError: if the leading axes differ, or D cannot be told.
        """
        del key
        leaves = jax.tree.leaves(mixing)
        sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
        if len(sizes) != 1 or sizes == {()}:
            raise ValueError(f"`mixing` must have one leading axis K; got {sorted(sizes)}.")
        if dimension is None:
            if len(leaves) != 1 or jnp.ndim(leaves[0]) != 2:
                raise ValueError("`dimension` of x is needed unless `mixing` is one (K, D) array.")
            dimension = jnp.shape(leaves[0])[1]
        ((size,),) = sizes
        components = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, mixing))
        sample = _weighted_components(components, size, weights)
        never = jnp.asarray(-jnp.inf, sample.dtype)
        log_weights = jnp.log(sample.weights)
        mixture = PlainMixtureScore(self.log_conditional, components, log_weights, never)
        info = score_info("ConditionalMixture", sample, *jax.tree.leaves(components))
        return FittedScore(info, (mixture,), dimension)


def _weighted_components(components: Any, size: int, weights: ArrayLike | None) -> Sample:
    """Return the weights of the mixing variables as those of a sample, whose rows are empty."""
    floats = [a.dtype for a in jax.tree.leaves(components) if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = jnp.result_type(*floats) if floats else jnp.zeros(()).dtype
    rows = jnp.zeros((size, 1), dtype)
    w = None if weights is None else jax.lax.stop_gradient(check_weights(weights, rows))
    return make_sample(rows, weights=w)


class KDE(Estimator):
    """Score of a Gaussian kernel density estimate, floored where there are no samples.

    s(x) = grad p(x) / max(p(x), eps), p(x) = mean_m N(x; x_m, h^2 diag(sd^2)).

    Args:
        factor: of Scott's bandwidth h = M^(-1/(D + 4)), in standard deviations.
        floor: eps as a share of the density that one sample has at its own place; 0 for none,
            then the score far away points to the nearest sample and grows with the distance.

    Raises:
        ValueError: if `factor` is not positive or `floor` is negative.

    Cost of `fit` O(M D), of a query O(M D); it takes no covariates and uses no `key`. Reaches the
    minimax rate for Lipschitz scores, and is weak in practice: a smoothed density has too small a
    score everywhere (slope 1/(1 + h^2) on a Gaussian), more so with every dimension.

    Reference: Wibisono, Wu, Yang, "Optimal score estimation via empirical Bayes smoothing", COLT
    2024; Scott, Multivariate Density Estimation, section 6.3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import KDE
        >>> samples = jax.random.normal(jax.random.key(0), (500, 1))
        >>> round(float(KDE().fit(samples)(jnp.array([1.0]))[0]), 0)  # truth -1
        -1.0
    """

    takes_covariates: ClassVar[bool] = False
    factor: ArrayLike = 1.0
    floor: ArrayLike = 1e-4

    def __check_init__(self) -> None:
        check_positive("factor", self.factor)
        check_non_negative("floor", self.floor)

    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        del key
        m = sample.moments
        share = m.size ** (-1 / (sample.dimension + 4)) * jnp.asarray(self.factor, sample.dtype)
        # A constant coordinate gets an infinite width: it has no score.
        width = jnp.where(m.varies, share * sample.frame("diagonal").scale, jnp.inf)
        log_floor = jnp.log(jnp.asarray(self.floor, sample.dtype)) - jnp.log(m.size)
        conditional = _GaussianConditional(width)
        mixture = MixtureScore(conditional, sample.rows, jnp.log(sample.weights), log_floor)
        return make_fitted(sample, score_info("KDE", sample, lengthscale=width), mixture)


class _GaussianConditional(eqx.Module):
    """log N(x; z, diag(width^2)) up to the constant that makes it 0 at x = z."""

    width: Float[Array, " D"]

    def __call__(self, x: Float[Array, " D"], z: Float[Array, " D"]) -> Float[Array, ""]:
        return -0.5 * jnp.sum(jnp.square((x - z) / self.width))


class _Conditional(eqx.Module):
    """A plain function of two arguments as a PyTree without leaves."""

    function: Callable[[Array, Any], Array] = eqx.field(static=True)

    def __call__(self, x: Array, z: Any) -> Array:
        return self.function(x, z)
