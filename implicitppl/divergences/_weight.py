"""How much of the divergence a minibatch sees, and the weight that makes up for it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_positive
from implicitppl._core.points import as_points
from implicitppl.divergences._divergence import (
    Divergence,
    GaussianKL,
    Pair,
    RegularizedKL,
    exact_moments,
)
from implicitppl.divergences._measurement import DataNoise, Measurement, measurement_points
from implicitppl.processes import Process

DEFAULT_MEASUREMENT = DataNoise(32)


def batch_weight(
    prior: Process,
    posterior: Process,
    x: ArrayLike,
    batch_size: int,
    *,
    key: PRNGKeyArray,
    measurement: Measurement | None = DEFAULT_MEASUREMENT,
    divergence: Divergence | None = None,
    num_batches: int = 16,
) -> Float[Array, ""]:
    """Return the weight at which batches see, on average, the divergence of all rows.

        weight = KL(all rows and M points) / mean over batches of KL(B rows and M points)

    The loss of a minibatch scales the likelihood up to all N rows, but its divergence is that of
    fewer points, and smaller: with `weight=1` predictions are too sure. How much smaller depends on
    prior and data. This is the ratio at a posterior that is known, that of a Gaussian process given
    the data; there the loss of a batch with this weight has the bound at all rows as its mean. It
    is 1 where B points determine the functions, and N/B where rows tell nothing of each other.

    Args:
        prior: of the function, a Gaussian process (or a `MultiOutput` of them).
        posterior: `prior.condition(x, y, noise_scale)`, or another Gaussian process near the
            posterior that is sought.
        x: (N, D) or (N,) inputs of all rows.
        batch_size: B.
        key: random key of batches and points.
        measurement: as in `FunctionalELBO`; None for rows only.
        divergence: `GaussianKL`, the default, or `RegularizedKL`, with the noise of the loss.
            `ScoreKL` is `GaussianKL` here, since both sides are Gaussian.
        num_batches: how many are averaged.

    Raises:
        ValueError: if B is not between 1 and N, a process is not Gaussian, the two have other
            numbers of outputs or do not differ (a posterior that was not conditioned), or the
            divergence is another one.

    Cost O((N + M)^3) time and O((N + M)^2) memory, once, and O(num_batches (B + M)^3).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from implicitppl.divergences import batch_weight
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> x, prior = jnp.linspace(0, 30, 60), GaussianProcess(RBF(0.5))
        >>> posterior = prior.condition(x, jnp.sin(x), noise_scale=0.3)
        >>> weight = batch_weight(prior, posterior, x, 15, key=jax.random.key(0))
        >>> bool(1.2 < weight < 4)
        True
    """
    points = as_points("x", x)
    size, rule = points.shape[0], GaussianKL() if divergence is None else divergence
    check_positive("num_batches", num_batches)
    if not 1 <= batch_size <= size:
        raise ValueError(f"`batch_size` must be between 1 and N = {size}; got {batch_size}.")
    if not isinstance(rule, GaussianKL | RegularizedKL):
        raise ValueError(
            f"`divergence` must be `GaussianKL` or `RegularizedKL`; got {type(rule).__name__}."
        )
    sizes = []
    for name, process in (("prior", prior), ("posterior", posterior)):
        moments = eqx.filter_eval_shape(exact_moments, process, points[:1])
        if moments is None:
            raise ValueError(f"`{name}` must be a Gaussian process, whose moments are known.")
        sizes.append(moments.mean.size)
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`prior` and `posterior` must have as many outputs; got {sizes[0]} and {sizes[1]}."
        )

    def with_measured(rows: Array, key: PRNGKeyArray) -> Array:
        return jnp.concatenate([rows, measurement_points(measurement, key, rows)])

    def batch(key: PRNGKeyArray) -> Array:
        row_key, point_key = jax.random.split(key)
        rows = jax.random.choice(row_key, points, (batch_size,), replace=False)
        return with_measured(rows, point_key)

    whole_key, batch_key = jax.random.split(key)
    batches = jax.vmap(batch)(jax.random.split(batch_key, num_batches))
    of_batches = _mean_divergence(prior, posterior, rule, batches, key)
    rounding = size * jnp.finfo(of_batches.dtype).eps ** 0.5
    if not isinstance(of_batches, jax.core.Tracer) and of_batches <= rounding:
        raise ValueError(
            f"`posterior` must differ from `prior`: their divergence at a batch is "
            f"{float(of_batches):.2g} nats. Is it `prior.condition(x, y, noise_scale)`?"
        )
    whole = with_measured(points, whole_key)
    return _mean_divergence(prior, posterior, rule, whole[None], key) / of_batches


@eqx.filter_jit
def _mean_divergence(
    prior: Process, posterior: Process, rule: Divergence, sets: Array, key: PRNGKeyArray
) -> Array:
    """Return the mean over sets of points, (K, n, D), of the posterior's divergence there."""

    def divergence_at(points: Array) -> Array:
        guide, known = exact_moments(posterior, points), exact_moments(prior, points)
        assert guide is not None and known is not None
        return rule(Pair(guide.mean[None], guide, known, None, is_exact=True), key)

    return jnp.mean(jax.lax.map(divergence_at, sets))
