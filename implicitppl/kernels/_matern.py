"""Matern kernels of half-integer order, with derivatives that are right at coinciding points.

With a = sqrt(c t), the profiles and their slopes in t form a chain,

    E2 = (1 + a + a^2/3) exp(-a),  E2' = -(c/6) E1
    E1 = (1 + a) exp(-a),          E1' = -(c/2) E0
    E0 = exp(-a),                  E0' = -(c/2) exp(-a)/a,

of which only the last is singular at t = 0; there the two one-sided gradients of exp(-|x - y|)
cancel and 0 is returned. Each slope is the derivative rule of the line above, so automatic
differentiation of any order never meets sqrt at 0.

Rasmussen and Williams, Gaussian Processes for Machine Learning, equations (4.14) and (4.17).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicitppl.kernels._fields import positive
from implicitppl.kernels._radial import Lengthscale, Radial, Scalar


def _root(t: Array, c: float) -> tuple[Array, Array]:
    """Return sqrt(c t) and whether t > 0, with a finite derivative at t = 0."""
    positive = t > 0
    return jnp.where(positive, jnp.sqrt(c * jnp.where(positive, t, 1)), 0), positive


def _e0(t: Array, c: float) -> Array:
    return jnp.exp(-_root(t, c)[0])


def _e0_slope(t: Array, c: float) -> Array:
    a, positive = _root(t, c)
    return jnp.where(positive, -0.5 * c * jnp.exp(-a) / jnp.where(positive, a, 1), 0)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _e1(t: Array, c: float) -> Array:
    a, _ = _root(t, c)
    return (1 + a) * jnp.exp(-a)


@_e1.defjvp
def _e1_jvp(c: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    return _e1(t, c), -0.5 * c * _e0(t, c) * dt


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _e2(t: Array, c: float) -> Array:
    a, _ = _root(t, c)
    return (1 + a + a * a / 3) * jnp.exp(-a)


@_e2.defjvp
def _e2_jvp(c: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    return _e2(t, c), -(c / 6) * _e1(t, c) * dt


class Matern12(Radial):
    """Exponential kernel v exp(-r), r = |x - y| / l: continuous, not differentiable functions.

    Args:
        lengthscale: l, in data units; scalar or (D,).
        variance: v.

    Cost of `gram` O(N M D). The gradient jumps at coinciding points and is set to 0 there; a
    score estimate built on it is rough, and its divergence has no meaning at the samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Matern12
        >>> round(float(Matern12()(jnp.array([0.0]), jnp.array([1.0]))), 4)
        0.3679
    """

    lengthscale: Lengthscale = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return _e0(t, 1.0)

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return _e0_slope(t, 1.0)


class Matern32(Radial):
    """Matern kernel v (1 + a) exp(-a), a = sqrt(3) |x - y| / l: functions differentiable once.

    Args:
        lengthscale: l, in data units; scalar or (D,).
        variance: v.

    Cost of `gram` O(N M D). Third derivatives jump at coinciding points.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Matern32
        >>> round(float(Matern32()(jnp.array([0.0]), jnp.array([1.0]))), 4)
        0.4834
    """

    lengthscale: Lengthscale = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return _e1(t, 3.0)

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return -1.5 * _e0(t, 3.0)


class Matern52(Radial):
    """Matern kernel v (1 + a + a^2/3) exp(-a), a = sqrt(5) |x - y| / l: differentiable twice.

    Args:
        lengthscale: l, in data units; scalar or (D,).
        variance: v.

    Cost of `gram` O(N M D).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Matern52
        >>> round(float(Matern52()(jnp.array([0.0]), jnp.array([1.0]))), 4)
        0.524
    """

    lengthscale: Lengthscale = positive(1.0, kind="lengthscale")
    variance: Scalar = positive(1.0, kind="variance")

    def profile(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return _e2(t, 5.0)

    def profile_slope(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return -(5.0 / 6.0) * _e1(t, 5.0)
