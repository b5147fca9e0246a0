"""Non-centred values of a Gaussian process, for samplers that move in them.

    f = m(x) + L u,   u ~ N(0, I),   L L' = k(x, x)

A posterior of (f, hyper-parameters) has the shape of a funnel: how far f may move depends on the
kernel's variance. That of (u, hyper-parameters) has not, where the data say little about each f_i.
"""

from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array
from numpyro.distributions import Normal
from numpyro.infer.reparam import Reparam

from implicitppl.processes._gaussian.values import GaussianProcessValues


class WhitenReparam(Reparam):
    """Samples the values of a Gaussian process as f = m + L u, with u standard normal.

    Use it as NumPyro's other reparameterisations, for latent sites that hold `gp(x)`:

        model = numpyro.handlers.reparam(model, config={"f": WhitenReparam()})

    The sampled site is then `f_base`, and `f` a deterministic one.

    Raises:
        ValueError: if the site is observed, or not the values of a Gaussian process.

    Reference: Murray and Adams, Slice sampling covariance hyperparameters, NeurIPS 2010, section 2.

    Example:
        >>> import numpyro
        >>> from jax import random, numpy as jnp
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> from implicitppl.processes import WhitenReparam
        >>> def model(x):
        ...     return numpyro.sample("f", GaussianProcess(RBF())(x))
        >>> white = numpyro.handlers.reparam(model, config={"f": WhitenReparam()})
        >>> seeded = numpyro.handlers.seed(white, 0)
        >>> sorted(numpyro.handlers.trace(seeded).get_trace(jnp.arange(3.0)))
        ['f', 'f_base']
    """

    def __call__(self, name: str, fn: Any, obs: Array | None) -> tuple[None, Array]:
        """Return no distribution and the value built from the sampled `<name>_base`."""
        if obs is not None:
            raise ValueError(f"site `{name}` is observed: only latent functions can be whitened.")
        values, expand_shape, _ = self._unwrap(fn)
        if not isinstance(values, GaussianProcessValues):
            raise ValueError(
                f"site `{name}` must hold the values of a Gaussian process, `gp(x)`; "
                f"got {type(values).__name__}."
            )
        size = values.event_shape[0]
        # A 0-d standard normal, expanded, keeps plates as they are.
        base = self._wrap(Normal(0, 1).expand((size,)).to_event(1), expand_shape, fn.event_dim)
        noise = numpyro.sample(f"{name}_base", base)
        spread = jnp.matmul(noise, values.scale_tril.T, precision="highest")
        return None, values.mean + spread
