"""The values of a Gaussian process at finitely many points, as a NumPyro distribution.

    f(x) ~ N(m(x), k(x, x) + diag(s^2))

Nothing is factorised before it is needed: `mean` and `variance` cost no N x N matrix, `log_prob`
one factorisation for any number of values, and so does `sample`.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.util import is_prng_key

from implicitppl._core.cholesky import SafeCholesky, safe_cholesky
from implicitppl.distributions._pytree import OrderedDistribution, split_callable
from implicitppl.linalg import normal_log_density
from implicitppl.linalg._extended import with_noise

Shape = tuple[int, ...]


class GaussianProcessValues(OrderedDistribution):
    """Values of a Gaussian process at N points; made by calling the process.

    Attributes:
        x: (N, D), the points.
        noise_variance: (N,), added to the diagonal of the covariance.
        observed: (N,) booleans, or None: outputs that `log_prob` reads; others take no part in it.
        is_noisy: whether these are values with noise, and not those of the function.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    support = constraints.real_vector
    data_names = ("_arrays", "x", "noise_variance", "observed")
    aux_names = ("_static", "is_noisy")
    _known: tuple[Array, Array] | None = None

    def __init__(
        self,
        process: Any,
        x: Float[Array, "N D"],
        noise_variance: Float[Array, " N"],
        observed: Bool[Array, " N"] | None = None,
        *,
        is_noisy: bool = True,
        validate_args: bool | None = None,
    ) -> None:
        self._arrays, self._static = split_callable(process)
        self.x = x
        self.noise_variance = noise_variance
        self.observed = observed
        self.is_noisy = is_noisy
        super().__init__((), (x.shape[0],), validate_args=validate_args)

    @property
    def process(self) -> Any:
        """The process whose values these are."""
        return eqx.combine(self._arrays, self._static)

    @property
    def has_rsample(self) -> bool:
        """True: draws are differentiable in the parameters of the kernel."""
        return True

    @property
    def mean(self) -> Float[Array, " N"]:
        """The mean at every point, at O(N) kernel values (times the data, for a posterior)."""
        return self._mean_and_variance()[0]

    @property
    def variance(self) -> Float[Array, " N"]:
        """The variance at every point, noise included; no N x N matrix is formed."""
        return self._mean_and_variance()[1]

    def _mean_and_variance(self) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return both, which share their cost; what was computed outside a program is kept."""
        if self._known is not None:
            return self._known
        found = _moments(self.process, self.x, self.noise_variance)
        if not isinstance(found[0], jax.core.Tracer):
            self._known = found
        return found

    @property
    def covariance_matrix(self) -> Float[Array, "N N"]:
        """The (N, N) covariance, noise included."""
        return _covariance(self.process, self.x, self.noise_variance)

    @property
    def scale_tril(self) -> Float[Array, "N N"]:
        """The Cholesky factor of the covariance, with the least jitter that it needs."""
        return _factor(self.process, self.x, self.noise_variance).factor

    @property
    def jitter(self) -> Float[Array, ""]:
        """What has to be added to the variances to factorise the covariance; mostly 0."""
        return _factor(self.process, self.x, self.noise_variance).jitter

    def sample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Float[Array, "*S N"]:
        """Return draws of shape `sample_shape + (N,)`."""
        assert is_prng_key(key)
        return _draw(self.process, self.x, self.noise_variance, key, tuple(sample_shape))

    def rsample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Float[Array, "*S N"]:
        """Return differentiable draws, as `sample` does."""
        return self.sample(key, sample_shape)

    def log_prob(
        self, value: Float[Array, "*S N"], intermediates: list[Any] | None = None
    ) -> Float[Array, "*S"]:
        """Return the log density of values (..., N); missing ones are integrated out."""
        value = jnp.asarray(value)
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"`value` must end in {self.event_shape}; got shape {value.shape}.")
        rows = value.reshape(-1, value.shape[-1])
        densities = _log_density(self.process, self.x, self.noise_variance, self.observed, rows)
        return densities.reshape(value.shape[:-1])


@eqx.filter_jit
def _moments(process: Any, x: Array, noise_variance: Array) -> tuple[Array, Array]:
    mean, variance = process.moments(x)
    return mean, variance + noise_variance


@eqx.filter_jit
def _covariance(process: Any, x: Array, noise_variance: Array) -> Array:
    return process.covariance(x) + jnp.diag(noise_variance)


@eqx.filter_jit
def _factor(process: Any, x: Array, noise_variance: Array) -> SafeCholesky:
    return safe_cholesky(_covariance(process, x, noise_variance))


@eqx.filter_jit
def _draw(process: Any, x: Array, noise_variance: Array, key: Any, shape: Shape) -> Array:
    if process.has_weight_space:
        values = process.draw(key, math.prod(shape))(x).reshape(*shape, x.shape[0])
        noise = jax.random.normal(jax.random.fold_in(key, 1), values.shape, values.dtype)
        # The root has no slope at 0, where there is no noise.
        noisy = noise_variance > 0
        return values + jnp.where(noisy, jnp.sqrt(jnp.where(noisy, noise_variance, 1)), 0) * noise
    factor = _factor(process, x, noise_variance).factor
    noise = jax.random.normal(key, (*shape, x.shape[0]), x.dtype)
    return process.moments(x)[0] + jnp.matmul(noise, factor.T, precision="highest")


@eqx.filter_jit
def _log_density(
    process: Any, x: Array, noise_variance: Array, observed: Array | None, values: Array
) -> Array:
    covariance = with_noise(process.covariance(x), noise_variance, observed)
    residuals = values - process.mean_at(x)[None, :]
    missing = jnp.zeros((), int)
    if observed is not None:
        residuals = jnp.where(observed[None, :], residuals, 0)
        missing = jnp.sum(~observed)
    return normal_log_density(residuals, covariance) + 0.5 * missing * math.log(2 * math.pi)
