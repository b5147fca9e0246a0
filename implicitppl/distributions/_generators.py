"""Samplers with parameters: a residual on a full-rank Gaussian, and plain noise through a network.

`ResidualGenerator` (noise e ~ N(0, I_D), small noise n ~ N(0, I_D), draw z in R^D):

    m(e) = exp(a(e)) o e + b(e),   s(e) = exp(a(e)) o sigma,   u = m(e) + s(e) o n,   z = loc + L u.

sigma is learned below a cap (`MAX_SIGMA`): without one it may grow until the last layer alone
makes the draw, and a Gaussian is all that is left.

a and b are the outputs of one network whose last layer starts at zero, so that training starts from
the Gaussian N(loc, (1 + sigma^2) L L^T) and the family contains every Gaussian. z given e is
Gaussian, which makes the marginal semi-implicit (Yin and Zhou 2018). A second network proposes e
from u: r(e | u) = N(mu(u), Lambda(u)^-1), one Gauss-Newton step from e0 = u / (1 + sigma^2) + c(u),

    J = m'(e0) / s(e0),   Lambda = I + J^T J,   mu = e0 + Lambda^-1 (J^T (u - m(e0)) / s(e0) - e0).

It is exact when m is linear. Because r depends on u alone, and not on the e that made it, the
bounds in `implicitppl.distributions.SemiImplicit` hold even where m folds.

No NumPyro here: pure functions of arrays.
"""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

LOG_2PI = 1.8378770664093453
MAX_LOG_RATIO = 3.0
MAX_SIGMA = 1.0
MAX_FULL_JACOBIAN = 32

Vector = Float[Array, " D"]


def zero_last_layer(network: eqx.nn.MLP) -> eqx.nn.MLP:
    """Returns the network with its last layer at zero, so that it starts as the constant 0."""
    last = network.layers[-1]
    zeros = jax.tree.map(jnp.zeros_like, (last.weight, last.bias))
    return eqx.tree_at(lambda net: (net.layers[-1].weight, net.layers[-1].bias), network, zeros)


class Reverse(eqx.Module):
    """A Gaussian proposal for the noise given the draw: mean, and Cholesky factor of the precision.

    `factor` is (D, D) lower triangular, or (D,) where the precision is diagonal.
    """

    mean: Vector
    factor: Float[Array, "D D"] | Float[Array, " D"]

    def log_prob(self, noise: Vector) -> Float[Array, ""]:
        """Returns log r(noise)."""
        diagonal = self.factor if self.factor.ndim == 1 else jnp.diagonal(self.factor)
        standard = self.whiten(noise)
        return jnp.sum(jnp.log(diagonal) - 0.5 * standard**2 - 0.5 * LOG_2PI)

    def whiten(self, noise: Vector) -> Vector:
        """Returns factor^T (noise - mean), standard normal under r."""
        shift = noise - self.mean
        return self.factor * shift if self.factor.ndim == 1 else self.factor.T @ shift

    def colour(self, standard: Vector) -> Vector:
        """Returns the noise whose whitened value is `standard`."""
        if self.factor.ndim == 1:
            return self.mean + standard / self.factor
        return self.mean + solve_triangular(self.factor, standard, lower=True, trans=1)


class ResidualGenerator(eqx.Module):
    """A full-rank Gaussian plus a learned residual, ending in a small Gaussian layer.

    Args:
        size: D, of the draw and of the noise.
        key: for the networks' first layers; the last ones start at zero.
        loc: starting mean, (D,). Default zero.
        scale: starting standard deviation of every coordinate.
        sigma: starting scale of the last Gaussian layer, relative to `scale`; learned, below 1.
        width: units of the two hidden layers of both networks. Default 48 + D.
        jacobian: "full" for the D x D Jacobian in the reverse proposal, "diagonal" for exp(a) in
            its place (O(D) instead of O(D^3), looser bounds), "auto" for "full" up to D = 32.

    Raises:
        ValueError: for a size below 1, a scale that is not positive, a sigma that is not in
            (0, 1), an unknown jacobian.

    Cost: a draw is one pass of the network and O(D^2); `reverse` with the full Jacobian is D passes
    and O(D^3).

    Example:
        >>> import jax
        >>> from implicitppl.distributions import ResidualGenerator
        >>> generator = ResidualGenerator(3, key=jax.random.key(0), scale=2.0)
        >>> generator(jax.random.key(1)).shape
        (3,)
    """

    loc: Vector
    log_scale: Vector
    lower: Float[Array, "D D"]
    raw_sigma: Vector
    forward: eqx.nn.MLP
    backward: eqx.nn.MLP
    size: int = eqx.field(static=True)
    jacobian: Literal["full", "diagonal"] = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        key: PRNGKeyArray,
        loc: Vector | None = None,
        scale: float = 1.0,
        sigma: float = 0.1,
        width: int | None = None,
        jacobian: Literal["full", "diagonal", "auto"] = "auto",
    ) -> None:
        if size < 1:
            raise ValueError(f"`size` must be at least 1; got {size}.")
        if not scale > 0:
            raise ValueError(f"`scale` must be positive; got {scale}.")
        if not 0 < sigma < MAX_SIGMA:
            raise ValueError(f"`sigma` must be between 0 and {MAX_SIGMA}; got {sigma}.")
        if jacobian not in ("full", "diagonal", "auto"):
            raise ValueError(f"`jacobian` must be 'full', 'diagonal' or 'auto'; got {jacobian!r}.")
        if jacobian == "auto":
            jacobian = "full" if size <= MAX_FULL_JACOBIAN else "diagonal"
        width = 48 + size if width is None else width
        forward_key, backward_key = jax.random.split(key)
        self.size, self.jacobian = size, jacobian
        self.loc = _vector(size, loc)
        self.log_scale = jnp.full_like(self.loc, math.log(scale))
        self.lower = jnp.zeros((size, size), self.loc.dtype)
        self.raw_sigma = jnp.full_like(self.loc, math.log(sigma / (MAX_SIGMA - sigma)))
        dtype = self.loc.dtype
        self.forward = _network(size, 2 * size, width, dtype, forward_key)
        self.backward = _network(size, size, width, dtype, backward_key)

    @property
    def scale_tril(self) -> Float[Array, "D D"]:
        """L, lower triangular: row i is scale_i times (a strictly lower row, 1)."""
        unit = jnp.tril(self.lower, -1) + jnp.eye(self.size, dtype=self.lower.dtype)
        return jnp.exp(self.log_scale)[:, None] * unit

    @property
    def sigma(self) -> Vector:
        """Relative scale of the last Gaussian layer, (D,), between 0 and `MAX_SIGMA`."""
        return MAX_SIGMA * jax.nn.sigmoid(self.raw_sigma)

    @property
    def log_abs_det(self) -> Float[Array, ""]:
        """Log |det L|."""
        return jnp.sum(self.log_scale)

    def conditional(self, noise: Vector) -> tuple[Vector, Vector]:
        """Returns the mean m and standard deviation s of u given the noise."""
        log_ratio, shift = jnp.split(self.forward(noise), 2)
        log_ratio = MAX_LOG_RATIO * jnp.tanh(log_ratio / MAX_LOG_RATIO)
        return jnp.exp(log_ratio) * noise + shift, jnp.exp(log_ratio) * self.sigma

    def push(self, u: Vector) -> Vector:
        """Returns z = loc + L u."""
        return self.loc + self.scale_tril @ u

    def pull(self, z: Vector) -> Vector:
        """Returns u = L^-1 (z - loc)."""
        return solve_triangular(self.scale_tril, z - self.loc, lower=True)

    def __call__(self, key: PRNGKeyArray) -> Vector:
        """Returns one draw."""
        noise, small = jax.random.normal(key, (2, self.size), self.loc.dtype)
        mean, scale = self.conditional(noise)
        return self.push(mean + scale * small)

    def log_joint(self, noise: Vector, u: Vector) -> Float[Array, ""]:
        """Returns log N(noise; 0, I) + log N(u; m(noise), s(noise)^2)."""
        mean, scale = self.conditional(noise)
        standard = (u - mean) / scale
        return jnp.sum(-0.5 * noise**2 - 0.5 * standard**2 - jnp.log(scale) - LOG_2PI)

    def reverse(self, u: Vector) -> Reverse:
        """Returns the proposal r(noise | u), one Gauss-Newton step from the second network."""
        start = u / (1.0 + self.sigma**2) + self.backward(u)
        mean, scale = self.conditional(start)
        residual = (u - mean) / scale
        if self.jacobian == "diagonal":
            slope = 1.0 / self.sigma
            precision = 1.0 + slope**2
            return Reverse(start + (slope * residual - start) / precision, jnp.sqrt(precision))
        slope = jax.jacfwd(lambda noise: self.conditional(noise)[0])(start) / scale[:, None]
        precision = jnp.eye(self.size, dtype=slope.dtype) + slope.T @ slope
        factor = jnp.linalg.cholesky(precision)
        return Reverse(start + cho_solve((factor, True), slope.T @ residual - start), factor)


class NoiseGenerator(eqx.Module):
    """A purely implicit sampler: z = loc + scale o (A e + V tanh(W e + w)), e ~ N(0, I).

    The noise may be wider than the draw, so there is no density and no conditional layer: scores
    come from samples only.

    Args:
        size: D, of the draw.
        key: for the starting weights.
        noise_size: of e. Default 2 D.
        width: hidden tanh units.
        loc: starting mean, (D,).
        scale: starting standard deviation.

    Raises:
        ValueError: if `noise_size` is below `size` (the draws would fill a subspace only).

    Example:
        >>> import jax
        >>> from implicitppl.distributions import NoiseGenerator
        >>> NoiseGenerator(3, key=jax.random.key(0))(jax.random.key(1)).shape
        (3,)
    """

    loc: Vector
    log_scale: Vector
    linear: Float[Array, "D E"]
    network: eqx.nn.MLP
    size: int = eqx.field(static=True)
    noise_size: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        key: PRNGKeyArray,
        noise_size: int | None = None,
        width: int = 40,
        loc: Vector | None = None,
        scale: float = 1.0,
    ) -> None:
        noise_size = 2 * size if noise_size is None else noise_size
        if noise_size < size:
            raise ValueError(f"`noise_size` must be at least size = {size}; got {noise_size}.")
        self.size, self.noise_size = size, noise_size
        self.loc = _vector(size, loc)
        self.log_scale = jnp.full_like(self.loc, math.log(scale))
        self.linear = jnp.eye(size, noise_size, dtype=self.loc.dtype)
        network = eqx.nn.MLP(
            noise_size, size, width, 1, activation=jnp.tanh, dtype=self.loc.dtype, key=key
        )
        self.network = zero_last_layer(network)

    def __call__(self, key: PRNGKeyArray) -> Vector:
        """Returns one draw."""
        noise = jax.random.normal(key, (self.noise_size,), self.loc.dtype)
        centred = self.linear @ noise + self.network(noise)
        return self.loc + jnp.exp(self.log_scale) * centred


def _vector(size: int, loc: Vector | None) -> Vector:
    """Returns the starting mean as a float vector, without a weak type."""
    start = jnp.zeros(size) if loc is None else jnp.asarray(loc)
    return jax.lax.convert_element_type(start, jnp.result_type(float, start))


def _network(size: int, out: int, width: int, dtype: Any, key: PRNGKeyArray) -> eqx.nn.MLP:
    network = eqx.nn.MLP(size, out, width, 2, activation=jax.nn.silu, dtype=dtype, key=key)
    return zero_last_layer(network)
