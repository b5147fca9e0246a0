"""An automatic guide whose posterior is a sampler on unconstrained space.

The model's latent sites are flattened into one unconstrained vector of size D. The default sampler
is a full-rank Gaussian plus a learned residual that ends in a small Gaussian layer
(`implicitppl.distributions.ResidualGenerator`); any other one may be given.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.initialization import init_to_median

from implicitppl.distributions import Implicit, ResidualGenerator, SemiImplicit
from implicitppl.infer._sites import latent_sites

Params = dict[str, Any]
Sampler = Callable[..., Array]


class AutoImplicit(AutoContinuous):
    """A guide that samples the unconstrained posterior with a generator instead of a density.

    Args:
        model: a NumPyro model with continuous latent sites.
        generator: the sampler of the unconstrained vector. None for the default; an `eqx.Module`
            `module(key) -> (D,)`; or a function `(size, *, key, loc) -> eqx.Module`, called once
            with D, a key and the starting point. A `ResidualGenerator` has density bounds; any
            other module is purely implicit and its score is estimated from the particles.
        prefix: of the guide's own sites and parameters.
        init_loc_fn: NumPyro's strategy for the starting point.
        init_scale: starting standard deviation on unconstrained space.
        width: hidden units of the default generator's networks. Default 48 + D.
        create_plates: as in NumPyro.
        forward_mode_differentiation: as in NumPyro.

    Raises:
        ValueError: for a model with discrete or subsampled local latent sites, an `init_scale` that
            is not positive, or a generator that does not return a vector of size D.

    Train it with `implicitppl.infer.ImplicitELBO` (`implicitppl.infer.fit` does). The default
    generator also works with `numpyro.infer.Trace_ELBO`, more slowly; a purely implicit one raises
    `ImplicitDensityError` there.

    Cost: for D <= 32 each particle costs O(D) passes of a network of width 48 + D, and O(D^3).

    Example:
        >>> import jax, numpyro
        >>> import numpyro.distributions as dist
        >>> from implicitppl.infer import AutoImplicit, fit
        >>> def model():
        ...     numpyro.sample("rate", dist.Gamma(3.0, 1.0))
        >>> guide = AutoImplicit(model)
        >>> result = fit(jax.random.key(0), model, guide, num_steps=20, progress_bar=False)
        >>> draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(5,))
        >>> draws["rate"].shape
        (5,)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        generator: eqx.Module | Callable[..., eqx.Module] | None = None,
        prefix: str = "auto",
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        width: int | None = None,
        create_plates: Callable[..., Any] | None = None,
        forward_mode_differentiation: bool = False,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"`init_scale` must be positive; got {init_scale}.")
        if generator is not None and not callable(generator):
            raise ValueError(f"`generator` must be callable; got {generator!r}.")
        self.generator, self.init_scale, self.width = generator, init_scale, width
        super().__init__(
            model,
            prefix=prefix,
            init_loc_fn=init_loc_fn,
            create_plates=create_plates,
            forward_mode_differentiation=forward_mode_differentiation,
        )

    @property
    def has_density_bounds(self) -> bool:
        """True for a semi-implicit generator. Known once the guide has seen the model."""
        return isinstance(self._template(), ResidualGenerator)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Looks at the model once, as every AutoGuide does; refuses discrete latent sites first."""
        _refuse_discrete(self.model, args, kwargs)
        super()._setup_prototype(*args, **kwargs)

    def _make(self, key: PRNGKeyArray) -> Any:
        """Returns a fresh generator; a module given by the user is returned as it is."""
        loc = jnp.asarray(self._init_latent)
        if isinstance(self.generator, eqx.Module):
            return self.generator
        if self.generator is not None:
            return self.generator(self.latent_dim, key=key, loc=loc)
        return ResidualGenerator(
            self.latent_dim, key=key, loc=loc, scale=self.init_scale, width=self.width
        )

    def _template(self) -> Any:
        if self.prototype_trace is None:
            raise RuntimeError("The guide has not seen the model yet: call `SVI.init` or `fit`.")
        return eqx.filter_eval_shape(self._make, jax.random.key(0))

    def _get_posterior(self) -> Distribution:
        @jax.jit
        def initial(key: PRNGKeyArray) -> Any:
            return eqx.filter(self._make(key), eqx.is_inexact_array)

        arrays = numpyro.param(f"{self.prefix}_generator$params", initial)
        static = self._static_part()
        generator = eqx.combine(arrays, static)
        if isinstance(generator, ResidualGenerator):
            return SemiImplicit(generator)
        return Implicit(generator, (self.latent_dim,))

    def _static_part(self) -> Any:
        """Returns the generator without its inexact arrays, which are parameters."""
        if isinstance(self.generator, eqx.Module):
            return eqx.filter(self.generator, eqx.is_inexact_array, inverse=True)

        def is_parameter(leaf: Any) -> bool:
            return isinstance(leaf, jax.ShapeDtypeStruct)

        return eqx.filter(self._template(), is_parameter, inverse=True)

    def get_posterior(self, params: Params) -> Distribution:
        """Returns the distribution on unconstrained space, event shape (D,)."""
        return handlers.substitute(self._get_posterior, data=params)()

    def get_transform(self, params: Params) -> Any:
        """Raises: a sampler is not a transform of a base distribution."""
        raise NotImplementedError(
            "`AutoImplicit` has no transform with a density. `get_posterior(params)` returns the "
            "distribution that can be sampled."
        )

    def sample_unconstrained(
        self, rng_key: PRNGKeyArray, params: Params, num_samples: int = 1000
    ) -> Array:
        """Returns draws of the unconstrained vector, (num_samples, D)."""
        return self.get_posterior(params).sample(rng_key, (num_samples,))

    def log_density_bounds(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        num_samples: int = 1000,
        num_inner: int = 64,
    ) -> tuple[Array, Array, Array]:
        """Returns unconstrained draws (S, D) and a lower and an upper bound of log q at each, (S,).

        Raises:
            ValueError: for a purely implicit generator.
        """
        posterior = self.get_posterior(params)
        if not isinstance(posterior, SemiImplicit):
            raise ValueError(
                "`log_density_bounds` needs a generator with a conditional layer "
                f"(`ResidualGenerator`); got {type(posterior.sampler).__name__}."
            )
        draw_key, inner_key = jax.random.split(rng_key)
        draws, noise = posterior.sample_with_intermediates(draw_key, (num_samples,))
        bounds = posterior.log_density_bounds(inner_key, noise, num_inner=num_inner)
        return draws, bounds.lower, bounds.upper

    def sample_posterior(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Returns draws of the latent and deterministic sites, on the model's own scale."""
        latent = self.get_posterior(params).sample(rng_key, sample_shape)
        return self._unpack_and_constrain(latent, params)

    def quantiles(
        self,
        params: Params,
        quantiles: Any,
        *,
        num_samples: int = 10_000,
        rng_key: PRNGKeyArray | None = None,
    ) -> dict[str, Array]:
        """Returns quantiles of each site from draws, leading dimension that of `quantiles`.

        Args:
            params: of the guide.
            quantiles: one or several numbers in [0, 1].
            num_samples: draws; the Monte Carlo error of a median is about 1.25 sd / sqrt(draws).
            rng_key: of the draws. Default `jax.random.key(0)`, so that calls agree.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        draws = self.sample_posterior(key, params, sample_shape=(num_samples,))
        levels = jnp.asarray(quantiles)
        return {name: jnp.quantile(value, levels, axis=0) for name, value in draws.items()}

    def median(self, params: Params, **options: Any) -> dict[str, Array]:
        """Returns the median of each site from draws; options as in `quantiles`."""
        return self.quantiles(params, 0.5, **options)


def _refuse_discrete(model: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Raises for a discrete latent site. The model is traced abstractly; nothing is computed."""
    found: list[str] = []

    def look() -> None:
        with handlers.block():
            seeded = handlers.seed(model, jax.random.key(0))
            sites = latent_sites(handlers.trace(seeded).get_trace(*args, **kwargs))
        found.extend(name for name, site in sites.items() if site["fn"].support.is_discrete)

    jax.eval_shape(look)
    if found:
        raise ValueError(
            f"`model` must have continuous latent sites only; got discrete {found}. Sum them out, "
            "or hide them from this guide and give them another one (`AutoGuideList`)."
        )
