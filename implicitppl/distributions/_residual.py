"""A full-rank Gaussian plus a learned residual, ending in a small Gaussian layer.

    w = m(e) = exp(a(y)) o e + b(y),     y = e, or y = U^T e with r columns where D is large,
    z = loc + A w,                       A = L T, both lower triangular.

e ~ N(0, I_D); a and b are the outputs of one network that starts at zero, so the sampler starts as
the Gaussian N(loc, A A^T) and the family contains every Gaussian. The network is free: no coupling,
no autoregressive order. L and loc are the *frame*: held fixed while the rest is trained, so that
the residual is learned in coordinates in which the posterior has unit scale.

Jacobian. With y = U^T e, A' = da/dy and B' = db/dy (both D x r),

    J = m'(e) = diag(exp a) (I + C U^T),   C = e o A' + exp(-a) o B',
    log|det J| = sum(a) + log|det(I_r + U^T C)|,

so a density costs r directional derivatives of the network and an r x r inverse. The second term is
the *margin*: 0 at the start, and minus infinity where the map is about to fold.

Small Gaussian layer. The noise is split, e* = e + sigma n with e ~ N(0, (1 - sigma^2) I) and
n ~ N(0, I), and a draw is w = m(e) + sigma J(e) n: the tangent of m at e stands in for m itself on
the small part. Given e the draw is Gaussian, N(m(e), sigma^2 J J^T), so the marginal is
semi-implicit (Yin and Zhou 2018) and its density has bounds whatever m does. Because the layer
follows the tangent it blurs nothing: w = m(e*) up to O(sigma^2) in units of the local scale.

No NumPyro here: pure functions of arrays.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl.linalg._inverse import small_inverse

LOG_2PI = 1.8378770664093453
MAX_LOG_RATIO = 6.0
MAX_FEATURES = 32
NUM_STARTS = 512
NEWTON_STEPS = 24
STEP_SIZES = (1.0, 0.5, 0.2, 0.05)

Vector = Float[Array, " D"]


class Jacobian(NamedTuple):
    """J = diag(exp log_ratio) (I + low U^T) at one point, with the inverse of I_r + U^T low."""

    log_ratio: Vector
    low: Float[Array, "D R"]
    inverse: Float[Array, "R R"]
    margin: Float[Array, ""]
    sign: Float[Array, ""]
    features: Float[Array, "D R"] | None

    @property
    def log_abs_det(self) -> Float[Array, ""]:
        """Log |det J|."""
        return jnp.sum(self.log_ratio) + self.margin

    def apply(self, v: Vector) -> Vector:
        """Return J v."""
        return jnp.exp(self.log_ratio) * (v + self.low @ self._down(v))

    def solve(self, v: Vector) -> Vector:
        """Return J^-1 v (Woodbury)."""
        v = jnp.exp(-self.log_ratio) * v
        return v - self.low @ (self.inverse @ self._down(v))

    def solve_transposed(self, v: Vector) -> Vector:
        """Return J^-T v."""
        v = v - self._up(self.inverse.T @ (self.low.T @ v))
        return jnp.exp(-self.log_ratio) * v

    def _down(self, v: Array) -> Array:
        return v if self.features is None else self.features.T @ v

    def _up(self, v: Array) -> Array:
        return v if self.features is None else self.features @ v


class ResidualGenerator(eqx.Module):
    """A full-rank Gaussian plus a learned residual, ending in a small Gaussian layer.

    Args:
        size: D, of the draw and of the noise.
        key: for the network's first layers; the last one starts at zero.
        loc: centre of the frame, (D,). Default zero.
        scale_tril: lower triangular scale of the frame, (D, D), or a standard deviation for all
            coordinates. Default 1.
        sigma: share of the noise in the last Gaussian layer. Small, so that the layer follows the
            map: the default changes log densities by less than a thousandth of a nat.
        width: units of the two hidden layers. Default 32, or D where that is more.
        num_features: r, directions of the noise that the network sees. Default D up to 32, and 32
            beyond: a density costs O(r) passes of the network.

    Raises:
        ValueError: for a size below 1, a scale that is not positive, a sigma that is not in
            (0, 1), or more features than dimensions.

    Cost: a draw is two passes of the network and O(D^2); a density r passes and O(r^3 + D r).

    Reference: Yin and Zhou (2018), section 2.1, for the family; the map and its layer are ours.

    Example:
        >>> import jax
        >>> from implicitppl.distributions import ResidualGenerator
        >>> generator = ResidualGenerator(3, key=jax.random.key(0), scale_tril=2.0)
        >>> generator(jax.random.key(1)).shape
        (3,)
    """

    frame_loc: Vector
    frame_tril: Float[Array, "D D"]
    shift: Vector
    log_scale: Vector
    lower: Float[Array, "D D"]
    network: eqx.nn.MLP
    features: Float[Array, "D R"] | None
    size: int = eqx.field(static=True)
    sigma: float = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        key: PRNGKeyArray,
        loc: Vector | None = None,
        scale_tril: Float[Array, "D D"] | float = 1.0,
        sigma: float = 0.03,
        width: int | None = None,
        num_features: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"`size` must be at least 1; got {size}.")
        if isinstance(scale_tril, int | float) and not scale_tril > 0:
            raise ValueError(f"`scale_tril` must be positive; got {scale_tril}.")
        if not 0 < sigma < 1:
            raise ValueError(f"`sigma` must be between 0 and 1; got {sigma}.")
        if num_features is None:
            num_features = min(size, MAX_FEATURES)
        if not 1 <= num_features <= size:
            raise ValueError(f"`num_features` must be between 1 and {size}; got {num_features}.")
        network_key, feature_key = jax.random.split(key)
        self.size, self.sigma = size, sigma
        self.frame_loc = as_vector(size, loc)
        dtype = self.frame_loc.dtype
        self.frame_tril = jnp.asarray(scale_tril, dtype) * jnp.eye(size, dtype=dtype)
        if jnp.ndim(scale_tril) == 2:
            self.frame_tril = jnp.asarray(scale_tril, dtype)
        self.shift = jnp.zeros_like(self.frame_loc)
        self.log_scale = jnp.zeros_like(self.frame_loc)
        self.lower = jnp.zeros((size, size), dtype)
        width = max(32, size) if width is None else width
        network = eqx.nn.MLP(
            num_features, 2 * size, width, 2, activation=jax.nn.silu, dtype=dtype, key=network_key
        )
        self.network = zero_last_layer(network)
        self.features = None
        if num_features < size:
            directions = jax.random.normal(feature_key, (size, num_features), dtype)
            self.features = directions / math.sqrt(size)

    def with_frame(self, loc: Vector, scale_tril: Float[Array, "D D"]) -> "ResidualGenerator":
        """Return the same residual on another frame."""
        frame = (jnp.asarray(loc), jnp.asarray(scale_tril))
        return eqx.tree_at(lambda g: (g.frame_loc, g.frame_tril), self, frame)

    @property
    def loc(self) -> Vector:
        """Centre: z at w = 0."""
        frame_loc, frame_tril = jax.lax.stop_gradient((self.frame_loc, self.frame_tril))
        return frame_loc + frame_tril @ self.shift

    @property
    def scale_tril(self) -> Float[Array, "D D"]:
        """A = L T, lower triangular; row i of T is exp(log_scale_i) times (lower_i, 1)."""
        unit = jnp.tril(self.lower, -1) + jnp.eye(self.size, dtype=self.lower.dtype)
        return jax.lax.stop_gradient(self.frame_tril) @ (jnp.exp(self.log_scale)[:, None] * unit)

    @property
    def log_abs_det(self) -> Float[Array, ""]:
        """Log |det A|."""
        frame = jax.lax.stop_gradient(jnp.diagonal(self.frame_tril))
        return jnp.sum(self.log_scale) + jnp.sum(jnp.log(jnp.abs(frame)))

    def push(self, w: Vector) -> Vector:
        """Return z = loc + A w."""
        return self.loc + self.scale_tril @ w

    def pull(self, z: Vector) -> Vector:
        """Return w = A^-1 (z - loc)."""
        return solve_triangular(self.scale_tril, z - self.loc, lower=True)

    def map(self, noise: Vector) -> Vector:
        """Return w = m(noise)."""
        log_ratio, shift = self._residual(self._features(noise))
        return jnp.exp(log_ratio) * noise + shift

    def jacobian(self, noise: Vector) -> Jacobian:
        """Return m'(noise) in factored form."""
        y = self._features(noise)
        log_ratio, _, ratios, shifts = self._residual_along(y)
        low = noise[:, None] * ratios + jnp.exp(-log_ratio)[:, None] * shifts
        small = low if self.features is None else self.features.T @ low
        inverse, margin, sign = small_inverse(jnp.eye(y.shape[0], dtype=y.dtype) + small)
        return Jacobian(log_ratio, low, inverse, margin, sign, self.features)

    def split(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """Return the large and the small part of the noise, each (*shape, D)."""
        large, small = jax.random.normal(key, (2, *shape, self.size), self.frame_loc.dtype)
        return math.sqrt(1.0 - self.sigma**2) * large, small

    def draw(self, large: Vector, small: Vector) -> Vector:
        """Return w = m(large) + sigma m'(large) small."""
        small = self.sigma * small
        direction = self._features(small)[:, None]
        log_ratio, shift, ratios, shifts = self._residual_along(self._features(large), direction)
        scaled = large + small + large * ratios[:, 0]
        return jnp.exp(log_ratio) * scaled + shift + shifts[:, 0]

    def __call__(self, key: PRNGKeyArray) -> Vector:
        """Return one draw."""
        return self.push(self.draw(*self.split(key)))

    def log_density_at(self, noise: Vector) -> tuple[Float[Array, ""], Jacobian]:
        """Return log N(noise; 0, I) - log|det A J|, and J: the density of z if m is one-to-one."""
        jacobian = self.jacobian(noise)
        value = standard_normal(noise) - jacobian.log_abs_det - self.log_abs_det
        return value, jacobian

    def score_at(self, noise: Vector) -> tuple[Float[Array, ""], Vector, Jacobian]:
        """Return that log density, its gradient in z, and J: grad_z = A^-T J^-T grad_noise."""
        (value, jacobian), slope = jax.value_and_grad(self.log_density_at, has_aux=True)(noise)
        inner = jacobian.solve_transposed(slope)
        return value, solve_triangular(self.scale_tril, inner, lower=True, trans=1), jacobian

    def log_joint(self, large: Vector, w: Vector) -> Float[Array, ""]:
        """Return log N(large; 0, (1 - sigma^2) I) + log N(w; m(large), sigma^2 J J^T)."""
        jacobian = self.jacobian(large)
        spread = math.sqrt(1.0 - self.sigma**2)
        small = jacobian.solve(w - self.map(large)) / self.sigma
        logs = self.size * math.log(spread * self.sigma)
        return (
            standard_normal(large / spread) + standard_normal(small) - jacobian.log_abs_det - logs
        )

    def invert(self, w: Vector) -> Vector:
        """Return a point that m takes to w: damped Newton steps from the nearest of a fixed set.

        It depends on w alone. Where several points lead to w it is one of them; where the method
        fails it is a point whose image is near.
        """
        starts = jax.random.normal(jax.random.key(0), (NUM_STARTS, self.size), w.dtype)
        images = jax.vmap(self.map)(starts)
        distance = jnp.sum(((images - w) / jnp.std(images, axis=0)) ** 2, axis=1)

        def residual(noise: Vector) -> Vector:
            return self.jacobian(noise).solve(w - self.map(noise))

        def size_of(noise: Vector) -> Array:
            return jnp.sum(((self.map(noise) - w) / jnp.std(images, axis=0)) ** 2)

        def step(_: Array, noise: Vector) -> Vector:
            move = residual(noise)
            move = move * jnp.minimum(1.0, 2.0 / (jnp.linalg.norm(move) + 1e-12))
            trials = noise + jnp.asarray(STEP_SIZES, w.dtype)[:, None] * move
            sizes = jax.vmap(size_of)(trials)
            best = jnp.argmin(jnp.where(jnp.isfinite(sizes), sizes, jnp.inf))
            return jnp.where(jnp.isfinite(sizes[best]), trials[best], noise)

        return jax.lax.fori_loop(0, NEWTON_STEPS, step, starts[jnp.argmin(distance)])

    def _features(self, noise: Array) -> Array:
        return noise if self.features is None else self.features.T @ noise

    def _residual(self, y: Array) -> tuple[Array, Array]:
        """Return a and b; a is capped smoothly at `MAX_LOG_RATIO`."""
        log_ratio, shift = jnp.split(self.network(y), 2)
        return MAX_LOG_RATIO * jnp.tanh(log_ratio / MAX_LOG_RATIO), shift

    def _residual_along(
        self, y: Array, directions: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Return a, b and their slopes (D, K) along the columns of `directions`, or a', b' (D, R).

        The slopes go through the layers beside the values. `jax.linearize` gives the same numbers,
        and a tenth more to compile.
        """
        value, slopes = y, directions
        *hidden, last = self.network.layers
        for layer in hidden:
            z = layer(value)
            gate = jax.nn.sigmoid(z)
            slope = gate * (1 + z * (1 - gate))  # of silu(z) = z gate
            value = z * gate
            slopes = slope[:, None] * _along(layer.weight, slopes)
        log_ratio, shift = jnp.split(last(value), 2)
        ratios, shifts = jnp.split(_along(last.weight, slopes), 2)
        capped = jnp.tanh(log_ratio / MAX_LOG_RATIO)
        return MAX_LOG_RATIO * capped, shift, (1 - capped**2)[:, None] * ratios, shifts


def _along(weight: Array, directions: Array | None) -> Array:
    """Return the slopes of a linear layer along columns; along the axes for None."""
    return weight if directions is None else weight @ directions


def standard_normal(x: Vector) -> Float[Array, ""]:
    """Return log N(x; 0, I)."""
    return -0.5 * (jnp.sum(x**2) + x.shape[0] * LOG_2PI)


def as_vector(size: int, loc: Vector | None) -> Vector:
    """Return a float vector of that size without a weak type; zeros for None."""
    start = jnp.zeros(size) if loc is None else jnp.asarray(loc)
    return jax.lax.convert_element_type(start, jnp.result_type(float, start))


def zero_last_layer(network: eqx.nn.MLP) -> eqx.nn.MLP:
    """Return the network with its last layer at zero, so that it starts as the constant 0."""
    last = network.layers[-1]
    zeros = jax.tree.map(jnp.zeros_like, (last.weight, last.bias))
    return eqx.tree_at(lambda net: (net.layers[-1].weight, net.layers[-1].bias), network, zeros)
