"""Arc-cosine kernels: the covariance of a wide layer of threshold or rectified units.

For weights w and a bias b, Gaussian with variances s and s0, put z = (sqrt(s) x, sqrt(s0)), of
length r(x), and let theta be the angle between z(x) and z(y). Then

    k_n(x, y) = v r(x)^n r(y)^n J_n(theta) / pi = 2 v E[h(w.x + b) h(w.y + b)],  h(a) = max(a, 0)^n

    J_0 = pi - theta
    J_1 = sin(theta) + (pi - theta) cos(theta)
    J_2 = 3 sin(theta) cos(theta) + (pi - theta) (1 + 2 cos(theta)^2).

The angle is computed from the squared chord t = |z(x)/r(x) - z(y)/r(y)|^2 = 2 - 2 cos(theta):
arccos of an inner product has no digits near 0 and an infinite derivative at 0. In t the profiles
form a chain, dJ_n/dt = -(n^2 / 2) J_(n-1), of which only dJ_0/dt is singular, at t = 0 and t = 4;
there the one-sided derivatives of k cancel and 0 is returned.

Cho and Saul, Kernel methods for deep learning, NeurIPS 2009, equations (1) to (7).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl._core.checks import check_non_negative, check_positive
from implicitppl.kernels._base import Kernel
from implicitppl.kernels._distances import squared_distances
from implicitppl.kernels._fields import positive
from implicitppl.kernels._values import PerCoordinate, Scalar, per_coordinate, scalar


def _root(t: Array) -> Array:
    """Return sqrt(t), with derivative 0 where t is not positive."""
    is_positive = t > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, t, 1)), 0)


def _sine_cosine_rest(t: Array) -> tuple[Array, Array, Array]:
    """Return sin(theta), cos(theta) and pi - theta of a squared chord."""
    t = jnp.clip(t, 0, 4)
    half_sine, half_cosine = _root(t) / 2, _root(4 - t) / 2
    rest = 2 * jnp.arctan2(half_cosine, half_sine)
    return 2 * half_sine * half_cosine, 1 - t / 2, rest


@jax.custom_jvp
def _j0(t: Array) -> Array:
    return _sine_cosine_rest(t)[2]


@_j0.defjvp
def _j0_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    inside = (t > 0) & (t < 4)
    safe = jnp.where(inside, t, 2)
    slope = jnp.where(inside, -1 / jnp.sqrt(safe * (4 - safe)), 0)  # -1 / (2 sin(theta))
    return _j0(t), slope * dt


@jax.custom_jvp
def _j1(t: Array) -> Array:
    sine, cosine, rest = _sine_cosine_rest(t)
    return sine + rest * cosine


@_j1.defjvp
def _j1_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    return _j1(t), -0.5 * _j0(t) * dt


@jax.custom_jvp
def _j2(t: Array) -> Array:
    sine, cosine, rest = _sine_cosine_rest(t)
    return 3 * sine * cosine + rest * (1 + 2 * cosine * cosine)


@_j2.defjvp
def _j2_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    return _j2(t), -2 * _j1(t) * dt


_PROFILES = (_j0, _j1, _j2)
_AT_COINCIDING = (1.0, 1.0, 3.0)  # J_n(0) / pi


class ArcCosine(Kernel):
    """Arc-cosine kernel of order 0, 1 or 2: an infinitely wide layer of units max(a, 0)^n.

    Args:
        variance: v.
        weight_variance: s, of the weights, in inverse squared units of the inputs; a scalar, or
            one for each coordinate (D,).
        bias_variance: s0 >= 0, of the bias. With 0 (the form of the paper) functions are
            homogeneous, k(a x, y) = a^n k(x, y), and order 0 has no value at x = 0.
        order: n. 0 gives steps, 1 (rectified units) functions with kinks smoothed once, 2 smoother
            ones. Part of the structure: not learned.

    Raises:
        ValueError: if `order` is not 0, 1 or 2, or another argument is out of its range.

    Cost of `gram` O(N M D), one matrix product. k(x, x) = v r(x)^(2n), 3 times that for order 2:
    not stationary, growing along rays like a network's prior. Order 0 has no derivative at
    coinciding points, where 0 is returned; in float32 its error between nearly parallel points
    is about 1e-4.

    Reference: Cho and Saul (2009), Kernel methods for deep learning, equations (1) to (7).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import ArcCosine
        >>> k = ArcCosine(bias_variance=0.0, order=0)  # 1 - theta / pi
        >>> round(float(k(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))), 4)
        0.5
    """

    variance: Scalar = positive(1.0, kind="variance")
    weight_variance: PerCoordinate = positive(1.0, kind="variance")
    bias_variance: Scalar = positive(1.0, kind="bias")
    order: int = eqx.field(default=1, static=True)

    def __check_init__(self) -> None:
        check_positive("variance", self.variance)
        check_positive("weight_variance", self.weight_variance)
        check_non_negative("bias_variance", self.bias_variance)
        if self.order not in (0, 1, 2):
            raise ValueError(f"`order` must be 0, 1 or 2; got {self.order}.")

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        (x_length, x_unit), (y_length, y_unit) = self._polar(x), self._polar(y)
        chord = x_unit - y_unit
        profile = self._profile(jnp.sum(chord * chord), x)
        return (x_length * y_length) ** self.order * profile

    def gram(self, X: Float[Array, "N D"], Y: Float[Array, "M D"] | None = None) -> Array:
        Y = None if X is Y else Y
        length, unit = self._polar(X)
        other_length, other_unit = (length, None) if Y is None else self._polar(Y)
        lengths = length[:, None] * other_length[None, :]
        return lengths**self.order * self._profile(squared_distances(unit, other_unit), X)

    def diag(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        length, _ = self._polar(X)
        variance = scalar("variance", self.variance, X)
        return variance * _AT_COINCIDING[self.order] * length ** (2 * self.order)

    def _profile(self, t: Array, x: Array) -> Array:
        return scalar("variance", self.variance, x) * (_PROFILES[self.order](t) / jnp.pi)

    def _polar(self, x: Array) -> tuple[Array, Array]:
        """Return the lengths (...) and the directions (..., D + 1) of z."""
        weights = jnp.sqrt(per_coordinate("weight_variance", self.weight_variance, x)) * x
        bias = _root(scalar("bias_variance", self.bias_variance, x))
        z = jnp.concatenate([weights, jnp.broadcast_to(bias, (*x.shape[:-1], 1))], axis=-1)
        length = _root(jnp.sum(z * z, axis=-1))
        return length, z / jnp.where(length > 0, length, 1)[..., None]
