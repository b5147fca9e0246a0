"""A fixed-step Runge-Kutta solution of the Lotka-Volterra equations, for use inside a model.

    u' = (alpha - beta v) u,    v' = (-gamma + delta u) v,    theta = (alpha, beta, gamma, delta)

solved for (log u, log v), which keeps both positive, by the classical fourth-order method with
`steps_per_unit` steps per unit of time. Observation times are whole numbers of steps. The cost is
that of a scan. At 10 steps the relative error near the hare-lynx posterior is below
1e-5 (tested against an adaptive solver).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_CEILING = 20.0  # populations beyond e^20 only occur in wild trial points; keeps these finite


def _slope(theta: Float[Array, " 4"], log_z: Float[Array, " 2"]) -> Float[Array, " 2"]:
    u, v = jnp.exp(jnp.minimum(log_z, LOG_CEILING))
    return jnp.stack([theta[0] - theta[1] * v, -theta[2] + theta[3] * u])


def lotka_volterra(
    theta: Float[Array, " 4"],
    log_z: Float[Array, " 2"],
    times: Sequence[float],
    steps_per_unit: int = 10,
) -> Float[Array, "T 2"]:
    """Return log populations at the times, from log populations at time 0.

    Args:
        theta: rates (alpha, beta, gamma, delta).
        log_z: log of both populations at time 0.
        times: 1, 2, ..., T (static): yearly counts.
        steps_per_unit: Runge-Kutta steps between two times.

    Raises:
        ValueError: when the times are not 1, 2, ..., T.
    """
    if list(times) != list(range(1, len(times) + 1)):
        raise ValueError(f"`times` must be 1, 2, ..., T; got {list(times)}.")
    h = 1.0 / steps_per_unit

    def step(y: Array, _: None) -> tuple[Array, None]:
        k1 = _slope(theta, y)
        k2 = _slope(theta, y + h / 2 * k1)
        k3 = _slope(theta, y + h / 2 * k2)
        k4 = _slope(theta, y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def year(y: Array, _: None) -> tuple[Array, Array]:
        y, _ = jax.lax.scan(step, y, None, length=steps_per_unit, unroll=2)
        return y, y

    return jax.lax.scan(year, log_z, None, length=len(times))[1]
