"""An automatic guide whose posterior is a sampler on unconstrained space.

The model's latent sites are flattened into one unconstrained vector of size D. The default sampler
is a full-rank Gaussian plus a learned residual that ends in a small Gaussian layer
(`implicitppl.distributions.ResidualGenerator`); any other one may be given. The Gaussian is fitted
when the guide is initialised, by natural gradients (`AutoImplicit.gaussian_start`), and the
residual is then learned in its frame.
"""

import contextlib
from collections.abc import Callable, Iterator
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

from implicitppl._train.programs import ONCE, Captured, Compiled, effort_once
from implicitppl.distributions import Implicit, ResidualGenerator, SemiImplicit
from implicitppl.infer._guides.gaussian import GaussianFit, fit_gaussian
from implicitppl.infer._guides.starts import prior_starts
from implicitppl.models._call import Call, refuse_discrete
from implicitppl.models._target import flat_log_density

_OTHER_GUIDE = (
    "Sum them out, or hide them from this guide and give them another one (`AutoGuideList`)."
)
START_RADIUS = 2.0  # NumPyro's own default for a uniform start

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
        width: hidden units of the default generator's network. Default 32, or D where that is more.
        num_starts: places from which `gaussian_start` explores: that of `init_loc_fn`, and the
            likeliest of 200 prior draws (uniform ones in (-2, 2) where a prior is flat). 1 stays
            with `init_loc_fn`; 0 leaves the Gaussian start out, and training begins at
            `init_loc_fn` with `init_scale`.
        create_plates: as in NumPyro.
        forward_mode_differentiation: as in NumPyro.

    Raises:
        ValueError: for a model with discrete or subsampled local latent sites, an `init_scale` that
            is not positive, a negative `num_starts`, or a generator that does not return a vector
            of size D.

    Train it with `implicitppl.infer.fit`, or with `numpyro.infer.SVI`, the loss
    `implicitppl.infer.ImplicitELBO`, and Adam at 0.005 or below (`fit` takes back steps after which
    the sampler folds; `SVI` cannot). The default generator also works with
    `numpyro.infer.Trace_ELBO`, less reliably; a purely implicit one raises `ImplicitDensityError`
    there. Weight decay would shrink the frame, which is among the parameters: use none.

    Cost: each particle costs min(D, 32) passes of the network, the cube of that, and O(D^2).

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
        num_starts: int = 4,
        create_plates: Callable[..., Any] | None = None,
        forward_mode_differentiation: bool = False,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"`init_scale` must be positive; got {init_scale}.")
        if num_starts < 0:
            raise ValueError(f"`num_starts` must not be negative; got {num_starts}.")
        if generator is not None and not callable(generator):
            raise ValueError(f"`generator` must be callable; got {generator!r}.")
        self.generator, self.init_scale, self.width = generator, init_scale, width
        self.num_starts = num_starts
        self._fits_at_init = num_starts > 0
        self._programs: dict[str, tuple[Captured, Compiled]] = {}
        super().__init__(
            model,
            prefix=prefix,
            init_loc_fn=init_loc_fn,
            create_plates=create_plates,
            forward_mode_differentiation=forward_mode_differentiation,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled programs, which cannot be copied or pickled."""
        return {**super().__getstate__(), "_programs": {}}

    def _kept(self, method: Callable[..., Any]) -> Compiled:
        """Return the compiled form of a method, the same one until the model's globals change."""
        captured = Captured(self.model, self.generator)
        held, program = self._programs.get(method.__name__, (None, None))
        if program is None or held != captured:
            program = Compiled(method, ONCE)
            self._programs[method.__name__] = captured, program
        return program

    @property
    def has_density_bounds(self) -> bool:
        """True for a semi-implicit generator. Known once the guide has seen the model."""
        return isinstance(self._template(), ResidualGenerator)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Looks at the model once, as every AutoGuide does; refuses discrete latent sites first."""
        refuse_discrete(Call(self.model, args, kwargs), _OTHER_GUIDE)
        super()._setup_prototype(*args, **kwargs)
        self._programs = {}
        given = self._template()
        if isinstance(given, ResidualGenerator) and given.size != self.latent_dim:
            raise ValueError(
                f"`generator` must have the size of the latent vector, {self.latent_dim}; "
                f"got a `ResidualGenerator` of size {given.size}."
            )

    def _make(self, key: PRNGKeyArray) -> Any:
        """Return a fresh generator; a module given by the user is returned as it is."""
        loc = jnp.asarray(self._init_latent)
        if isinstance(self.generator, eqx.Module):
            return self.generator
        if self.generator is not None:
            return self.generator(self.latent_dim, key=key, loc=loc)
        return ResidualGenerator(
            self.latent_dim, key=key, loc=loc, scale_tril=self.init_scale, width=self.width
        )

    def _template(self) -> Any:
        if self.prototype_trace is None:
            raise RuntimeError("The guide has not seen the model yet: call `SVI.init` or `fit`.")
        return eqx.filter_eval_shape(self._make, jax.random.key(0))

    @property
    def _site(self) -> str:
        """Name of the parameter that holds the generator's arrays."""
        return f"{self.prefix}_generator$params"

    @contextlib.contextmanager
    def plain_init(self) -> Iterator[None]:
        """Inside, initialising the guide leaves the Gaussian start out: the caller does it."""
        fits, self._fits_at_init = self._fits_at_init, False
        try:
            yield
        finally:
            self._fits_at_init = fits

    @property
    def starts_from_a_gaussian(self) -> bool:
        """Whether initialising it fits a Gaussian. Known once the guide has seen the model."""
        return self.num_starts > 0 and self.has_density_bounds

    def _sample_latent(self, *args: Any, **kwargs: Any) -> Any:
        """As in NumPyro; hands the model's arguments to the Gaussian start."""
        sample_shape = kwargs.pop("sample_shape", ())
        return numpyro.sample(
            f"_{self.prefix}_latent",
            self._posterior_at(args, kwargs),
            sample_shape=sample_shape,
            infer={"is_auxiliary": True},
        )

    def _posterior_at(self, args: Any, kwargs: Any) -> Distribution:
        """The posterior, whose parameters may not exist yet: they then start at the Gaussian."""

        def initial(key: PRNGKeyArray) -> Any:
            if self._fits_at_init and self.has_density_bounds:
                return Compiled(
                    lambda key: self._started(key, args, kwargs), effort_once((args, kwargs))
                )(key)
            return self._kept(self._fresh)(key)

        return self._get_posterior(initial)

    def _fresh(self, key: PRNGKeyArray) -> Any:
        """Return the arrays of a fresh generator."""
        return eqx.filter(self._make(key), eqx.is_inexact_array)

    def _started(self, key: PRNGKeyArray, args: Any, kwargs: Any) -> Any:
        """Return the arrays of a fresh generator, on the best Gaussian as its frame."""
        trace = self.prototype_trace
        params = {k: v["value"] for k, v in trace.items() if v["type"] == "param"}
        start_key = jax.random.fold_in(key, 1)
        params = {**params, self._site: self._fresh(key)}
        started, _ = self.gaussian_start(start_key, params, *args, **kwargs)
        return started[self._site]

    def _get_posterior(self, initial: Callable[[PRNGKeyArray], Any] | None = None) -> Distribution:
        arrays = numpyro.param(self._site, initial)
        generator = eqx.combine(arrays, self._static_part())
        if isinstance(generator, ResidualGenerator):
            return SemiImplicit(generator)
        return Implicit(generator, (self.latent_dim,))

    def _static_part(self) -> Any:
        """Return the generator without its inexact arrays, which are parameters."""
        if isinstance(self.generator, eqx.Module):
            return eqx.filter(self.generator, eqx.is_inexact_array, inverse=True)

        template = self._template()
        shapes = [x for x in jax.tree.leaves(template) if isinstance(x, jax.ShapeDtypeStruct)]
        if any(not jnp.issubdtype(x.dtype, jnp.inexact) for x in shapes):
            made = self._make(jax.random.key(0))  # integer arrays are not parameters: keep them
            return eqx.filter(made, eqx.is_inexact_array, inverse=True)

        def is_parameter(leaf: Any) -> bool:
            return isinstance(leaf, jax.ShapeDtypeStruct)

        return eqx.filter(template, is_parameter, inverse=True)

    def get_posterior(self, params: Params) -> Distribution:
        """Return the distribution on unconstrained space, event shape (D,).

        Raises:
            ValueError: if `params` has no parameters of this guide.
        """
        if not isinstance(params, dict) or self._site not in params:
            got = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(
                f"`params` must hold the guide's parameters '{self._site}', as `result.params` "
                f"does; got {got}."
            )
        return handlers.substitute(self._get_posterior, data=params)()

    def get_transform(self, params: Params) -> Any:
        """Raises: a sampler is not a transform of a base distribution."""
        raise NotImplementedError(
            "`AutoImplicit` has no transform with a density. `get_posterior(params)` returns the "
            "distribution that can be sampled."
        )

    def gaussian_start(
        self, rng_key: PRNGKeyArray, params: Params, *args: Any, **kwargs: Any
    ) -> tuple[Params, GaussianFit]:
        """Return the parameters with the best full-rank Gaussian as the generator's frame.

        A few starts are explored by natural gradients, and the best is kept
        (`GaussianFit.losses` holds the losses of all, so that a second mode shows). Training then
        starts where `AutoMultivariateNormal` ends, in coordinates in which the posterior has unit
        scale. Initialising the guide does this; where no Gaussian with a finite loss is found, the
        parameters stay as they are.

        Args:
            rng_key: random key.
            params: from `svi.get_params(svi.init(...))`; other parameters are left as they are.
            *args: of the model.
            **kwargs: of the model.

        Raises:
            ValueError: for a purely implicit generator, which has no frame, or `num_starts` 0.

        Cost: for each start some 100 to 500 steps of max(64, 2 D) gradients of the model.
        """
        if not self.has_density_bounds:
            raise ValueError("`gaussian_start` needs a `ResidualGenerator`; got another generator.")
        if self.num_starts == 0:
            raise ValueError("`gaussian_start` needs `num_starts` of at least 1; got 0.")
        start_key, fit_key = jax.random.split(rng_key)
        model_params = {k: v for k, v in params.items() if k != self._site}
        sites = {k: v for k, v in self.prototype_trace.items() if k in self._init_locs}
        call = Call(self.model, args, kwargs, model_params)
        density = flat_log_density(call, sites, self._unpack_latent)
        starts = jnp.asarray(self._init_latent)[None]
        more = self.num_starts - 1
        if more:
            try:
                others = prior_starts(start_key, call, density, self._ravel, more)
            except NotImplementedError:  # a prior that cannot be drawn from
                shape, radius = (more, self.latent_dim), START_RADIUS
                others = jax.random.uniform(start_key, shape, starts.dtype, -radius, radius)
            starts = jnp.concatenate([starts, others])
        gaussian = fit_gaussian(fit_key, density, starts, init_scale=self.init_scale)
        found = jnp.isfinite(gaussian.loss)
        generator = eqx.combine(params[self._site], self._static_part())
        moved = generator.with_frame(gaussian.loc, gaussian.scale_tril)
        arrays = jax.tree.map(
            lambda new, old: jnp.where(found, new, old),
            eqx.filter(moved, eqx.is_inexact_array),
            params[self._site],
        )
        loss = jnp.where(found, gaussian.loss, jnp.inf)
        return {**params, self._site: arrays}, gaussian._replace(loss=loss)

    def _ravel(self, values: dict[str, Array]) -> Array:
        return jnp.concatenate([jnp.ravel(values[name]) for name in self._init_locs])

    def fold_share(self, rng_key: PRNGKeyArray, params: Params, num_samples: int = 1000) -> Array:
        """Return the share of draws at which the default sampler reverses orientation.

        It should be 0: a sampler that folds is not one-to-one, and the loss is then too low.
        """
        posterior = self.get_posterior(params)
        if not isinstance(posterior, SemiImplicit):
            return jnp.zeros(())
        return posterior.fold_share(rng_key, num_samples)

    def sample_unconstrained(
        self, rng_key: PRNGKeyArray, params: Params, num_samples: int = 1000
    ) -> Array:
        """Return draws of the unconstrained vector, (num_samples, D)."""
        return self._kept(self._latent_draws)(rng_key, params, int(num_samples))

    def _latent_draws(self, rng_key: PRNGKeyArray, params: Params, num_samples: int) -> Array:
        return self.get_posterior(params).sample(rng_key, (num_samples,))

    def log_density_bounds(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        num_samples: int = 1000,
        num_inner: int = 16,
    ) -> tuple[Array, Array, Array]:
        """Return unconstrained draws (S, D) and a lower and an upper bound of log q at each, (S,).

        Raises:
            ValueError: for a purely implicit generator.
        """
        posterior = self.get_posterior(params)
        if not isinstance(posterior, SemiImplicit):
            raise ValueError(
                "`log_density_bounds` needs a generator with a conditional layer "
                f"(`ResidualGenerator`); got {type(posterior.sampler).__name__}."
            )
        program = self._kept(self._bounded_draws)
        return program(rng_key, params, int(num_samples), int(num_inner))

    def _bounded_draws(
        self, rng_key: PRNGKeyArray, params: Params, num_samples: int, num_inner: int
    ) -> tuple[Array, Array, Array]:
        posterior = self.get_posterior(params)
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
        """Return draws of the latent and deterministic sites, on the model's own scale."""
        shape = tuple(int(size) for size in sample_shape)
        return self._kept(self._constrained_draws)(rng_key, params, shape)

    def _constrained_draws(
        self, rng_key: PRNGKeyArray, params: Params, sample_shape: tuple[int, ...]
    ) -> dict[str, Array]:
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
        """Return quantiles of each site from draws, leading dimension that of `quantiles`.

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
        """Return the median of each site from draws; options as in `quantiles`."""
        return self.quantiles(params, 0.5, **options)
