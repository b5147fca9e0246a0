"""The entropy surrogate: a number that is 0 and has the gradient of E log q.

For x = g(noise, phi) a reparameterised draw from q_phi, with density q_phi(x),

    d/dphi E[log q_phi(x)] = E[ grad_x log q(x) . dx/dphi ] + E[ (d/dphi log q_phi)(x) ],

and the last term is  int q (dq/dphi)/q dx = d/dphi int q dx = 0.  So only the score s = grad log q
at the draws is needed, as a constant: mean_i stop(s_i) . (x_i - stop(x_i)) has the value 0 and
this gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from implicitppl.score._checks import as_floating
from implicitppl.score._fitted import FittedScore


def entropy_surrogate(score: FittedScore | ArrayLike, x: ArrayLike) -> Float[Array, ""]:
    """Return a scalar of value 0 whose gradient is that of E log q, the negative entropy of q.

    Proof: d/dphi E log q_phi(x) = E[s(x) . dx/dphi] + E[d log q_phi/dphi], where the second term is
    the derivative of int q_phi = 1 and vanishes. The surrogate is
    mean_i stop_gradient(s(x_i)) . (x_i - stop_gradient(x_i)), whose derivative is the first term.

    To minimise KL(q || p): loss = mean(-log p(x)) + entropy_surrogate(fitted, x). For
    q = N(0, a^2), p = N(0, 1) the gradient in a is a - 1/a.

    Args:
        score: a fitted score, or its values at `x`, of the shape of `x`.
        x: reparameterised draws from q, (D,) or (..., D); leading axes are averaged.

    Returns:
        A scalar, exactly 0 (NaN if the score is not finite). Its value means nothing: never print
        it as an ELBO, nor use it in an accept step, importance weight or stopping rule.

    Raises:
        ValueError: if score values do not have the shape of `x`.

    Works in forward and reverse mode; second derivatives are 0. Cost of the score at `x`.

    Reference: Roeder, Wu, Duvenaud, "Sticking the landing", NeurIPS 2017, equation (7); Shi, Sun,
    Zhu, ICML 2018, section 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import entropy_surrogate
        >>> noise = jnp.array([[-1.0], [1.0]])
        >>> f = lambda a: entropy_surrogate(-a * noise / a**2, a * noise)  # score of N(0, a^2)
        >>> float(f(2.0)), float(jax.grad(f)(2.0))  # d/da E log q = -1/a
        (0.0, -0.5)
    """
    x = as_floating(x)
    frozen = jax.lax.stop_gradient(x)
    values = score(frozen) if callable(score) else jnp.asarray(score)
    if values.shape != x.shape or x.ndim < 1:
        raise ValueError(
            f"`score` must have the shape of `x`, (D,) or (..., D); got {values.shape} and "
            f"{x.shape}."
        )
    values = jax.lax.stop_gradient(values.astype(x.dtype))
    return jnp.mean(jnp.sum(values * (x - frozen), axis=-1))
