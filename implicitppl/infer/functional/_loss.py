"""The functional ELBO: E_q[log p(y | f)] - w KL[q(f(X)) || p(f(X))], a loss for `SVI`.

Model and guide draw functions, `f = numpyro.sample("f", process(x))`. In each particle the guide's
function is drawn once and evaluated at the model's inputs x and at measurement points; X is both
together, the same for all particles of a step. Everything else in model and guide is treated as
`Trace_ELBO` does.

The number is minus a bound of the log evidence only if X contains every training input, if the
divergence is exact and w = 1. A minibatch compares functions on part of the inputs, where the
divergence is smaller: its value is an objective and no bound. `FunctionalELBO.report` says which.

Sun, Zhang, Shi, Grosse, "Functional variational Bayesian neural networks", ICLR 2019,
arXiv 1903.05779, equations (6) and (12).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import ELBO
from numpyro.util import check_model_guide_match

from implicitppl.infer._elbo import Estimator, Params
from implicitppl.infer._plates import shared_plates
from implicitppl.infer._sites import kind_of, latent_sites, site_log_prob
from implicitppl.infer.functional._divergence import (
    Divergence,
    GaussianKL,
    GridKL,
    Pair,
    RegularizedKL,
    flat,
    make_pair,
)
from implicitppl.infer.functional._measurement import DataNoise, Measurement, measurement_points
from implicitppl.infer.functional._report import FunctionalReport, caveats, growth
from implicitppl.infer.functional._score import ScoreKL
from implicitppl.infer.functional._sites import (
    batch_ratio,
    check_functions,
    function_draws,
    function_values,
    is_function,
    joined,
)
from implicitppl.linalg import check_non_negative
from implicitppl.processes import Process

ModelLike = Callable[..., Any]
NAMED = ("score", "gaussian", "regularized", "grid")
NUM_MEASURED = 32
NOISE, STRENGTH = 0.01, 1e-4
PER_BATCH = "N/B"


class _Particle(NamedTuple):
    """One particle: minus log likelihood and other sites, values of functions, mutable state."""

    loss: Array
    values: dict[str, Array]
    mutable: Params


class _Shared(NamedTuple):
    """What must not differ between particles: inputs, and arrays of priors and guides."""

    x: dict[str, Array]
    priors: dict[str, Any]
    guides: dict[str, Any]


class Comparison(NamedTuple):
    """What a step compares at one function.

    Attributes:
        x: (n, D) all points, the model's inputs first.
        num_inputs: how many of them are the model's.
        values: (S, n) the guide's functions there.
        guide, prior: the two processes.
    """

    x: Array
    num_inputs: int
    values: Array
    guide: Process
    prior: Process


class FunctionalELBO(ELBO):
    """A loss for `numpyro.infer.SVI` whose prior and guide are distributions over functions.

    Args:
        measurement: where functions are compared besides the model's inputs: `DataNoise`,
            `UniformBox`, `HeldInputs`, or any function `(key, x) -> (M, D)`; None for no other
            points. Default `DataNoise(32)`: inputs of the model and noise of half their spread.
        divergence: "score" (`ScoreKL`), "gaussian" (`GaussianKL`), "regularized"
            (`RegularizedKL`), "grid" (`GridKL`), or such an object.
        weight: of the divergence, which is in nats of the full data: 1 for the bound; "N/B" for
            the ratio of subsampled plates, as the original code has it, which counts the prior
            N/B times and widens predictions by about sqrt(N/B).
        num_particles: functions that the guide draws in a step, at least 2; more than there are
            points, where moments or scores are estimated from them.
        estimator: of scores, for "score".
        noise: standard deviation of the noise added to both sides, in units of the prior's. 0.01
            needs float64 beyond some 50 points; take 0.1 in float32.

    Raises:
        ValueError: for values outside their range. When traced: for a function inside a plate, a
            subsampled plate that the guide lacks, sites that do not match, a prior or inputs that
            depend on a latent variable, discrete or implicit sites that are no functions.

    Cost of a step: S evaluations of the guide's functions at n points, O(n^3) for the moments, and
    for scores a decomposition of S x S. A second step with equal shapes compiles nothing.

    Reference: Sun et al. (2019), equations (6) and (12).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, optax
        >>> import numpyro.distributions as dist
        >>> from implicitppl.infer import FunctionalELBO
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.processes import BayesianNetwork, GaussianProcess
        >>> x = jnp.linspace(-1, 1, 8)
        >>> net = BayesianNetwork(1, 8, key=jax.random.key(0))
        >>> def model(x, y):
        ...     f = numpyro.sample("f", GaussianProcess(RBF())(x))
        ...     numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)
        >>> def guide(x, y):
        ...     q = numpyro.contrib.module.eqx_module("q", net)
        ...     numpyro.sample("f", q(x))
        >>> loss = FunctionalELBO(num_particles=50)
        >>> svi = numpyro.infer.SVI(model, guide, optax.adam(1e-2), loss)
        >>> result = svi.run(jax.random.key(1), 3, x, x**2, progress_bar=False)
        >>> result.losses.shape
        (3,)
    """

    def __init__(
        self,
        measurement: Measurement | Callable[..., Any] | None | str = "default",
        divergence: str | Divergence = "score",
        weight: float | str = 1.0,
        num_particles: int = 100,
        *,
        estimator: Estimator | None = None,
        noise: float = NOISE,
    ) -> None:
        if num_particles < 2:
            raise ValueError(f"`num_particles` must be at least 2; got {num_particles}.")
        if isinstance(weight, str) and weight != PER_BATCH:
            raise ValueError(f"`weight` must be a number or {PER_BATCH!r}; got {weight!r}.")
        if not isinstance(weight, str):
            check_non_negative("weight", weight)
        if isinstance(measurement, str) and measurement != "default":
            raise ValueError(f"`measurement` must be a function or None; got {measurement!r}.")
        super().__init__(num_particles=num_particles)
        self.measurement: Any = DataNoise(NUM_MEASURED) if measurement == "default" else measurement
        self.divergence = _divergence(divergence, estimator, noise)
        self.weight = weight

    def loss_with_mutable_state(
        self,
        rng_key: PRNGKeyArray,
        param_map: Params,
        model: ModelLike,
        guide: ModelLike,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the loss and the mutable state after the step, as NumPyro's losses do."""
        particle_key, divergence_key = jax.random.split(rng_key)
        loss, ratio, compared, mutable = self._sample(
            particle_key, param_map, model, guide, args, kwargs
        )
        total = jnp.zeros(())
        for index, found in enumerate(compared.values()):
            key = jax.random.fold_in(divergence_key, index)
            total = total + self.divergence(self._pair(found, key), key)
        weight = ratio if isinstance(self.weight, str) else self.weight
        return {"loss": loss + weight * total, "mutable_state": mutable or None}

    def report(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        model: ModelLike,
        guide: ModelLike,
        *args: Any,
        strength: float = STRENGTH,
        **kwargs: Any,
    ) -> FunctionalReport:
        """Return what the loss is at some parameters: its parts, its settings, what it bounds.

        Args:
            rng_key, params, model, guide, args, kwargs: as for `loss`.
            strength: g of the regularised divergence that is shown beside the noisy one.

        The report shows how the divergence grows with 2 and 4 times the measurement points.
        """
        loss, ratio, compared, _ = self._sample(rng_key, params, model, guide, args, kwargs)
        values, growths, warnings = [], [], []
        for index, (name, found) in enumerate(compared.items()):
            key = jax.random.fold_in(rng_key, index)
            pair = self._pair(found, key)
            values.append(float(self.divergence(pair, key)))
            warnings += caveats(name, pair, self.divergence.added_variance(pair))
            x = found.x[: found.num_inputs]
            noise = getattr(self.divergence, "noise", NOISE)
            growths.append(
                growth(name, found.guide, found.prior, x, self.measurement, key, noise, strength)
            )
        weight = ratio if isinstance(self.weight, str) else float(self.weight)
        return FunctionalReport(
            objective=_objective(weight, ratio),
            divergence=self.divergence.describe(),
            weight=weight,
            num_particles=self.num_particles,
            expected_log_density=-float(loss),
            divergence_value=sum(values),
            growth=tuple(growths),
            warnings=tuple(warnings),
        )

    def _pair(self, found: Comparison, key: PRNGKeyArray) -> Pair:
        prior_key = jax.random.fold_in(key, 1)
        return make_pair(found.values, found.guide, found.prior, found.x, prior_key)

    def _sample(
        self,
        key: PRNGKeyArray,
        params: Params,
        model: ModelLike,
        guide: ModelLike,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Array, float, dict[str, Comparison], Params]:
        """Return the explicit part of the loss, N/B, what is compared, and mutable state."""
        plate_key, measure_key, particles_key = jax.random.split(key, 3)
        static: dict[str, Any] = {}

        def particle(key: PRNGKeyArray) -> tuple[_Particle, _Shared]:
            return self._particle(
                key, plate_key, measure_key, params, model, guide, args, kwargs, static
            )

        keys = jax.random.split(particles_key, self.num_particles)
        try:
            found, shared = jax.vmap(particle, out_axes=(0, None))(keys)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            _explain(jax.vmap(particle), keys, error)
        compared = {
            name: Comparison(
                shared.x[name],
                static["num_inputs"][name],
                flat(found.values[name]),
                eqx.combine(shared.guides[name], static["guides"][name]),
                eqx.combine(shared.priors[name], static["priors"][name]),
            )
            for name in shared.x
        }
        mutable = jax.tree.map(_merge, found.mutable)
        return jnp.mean(found.loss), static["ratio"], compared, mutable

    def _particle(
        self,
        key: PRNGKeyArray,
        plate_key: PRNGKeyArray,
        measure_key: PRNGKeyArray,
        params: Params,
        model: ModelLike,
        guide: ModelLike,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        static: dict[str, Any],
    ) -> tuple[_Particle, _Shared]:
        guide_key, model_key = jax.random.split(key)
        seeded = handlers.seed(handlers.substitute(guide, data=params), guide_key)
        drawn = function_draws()
        with shared_plates(key=plate_key), drawn:
            guide_trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        mutable = _mutable(guide_trace)
        replayed = handlers.replay(handlers.seed(model, model_key), guide_trace)
        substituted = handlers.substitute(replayed, data={**params, **mutable})
        given = function_values(draws=drawn.draws)
        with shared_plates(key=plate_key), given:
            model_trace = handlers.trace(substituted).get_trace(*args, **kwargs)
        check_functions(model_trace, guide_trace)
        check_model_guide_match(model_trace, guide_trace)
        mutable.update(_mutable(model_trace))
        loss = _explicit(guide_trace) - _explicit(model_trace)
        x, values = {}, {}
        for index, (name, asked) in enumerate(given.asked.items()):
            points_key = jax.random.fold_in(measure_key, index)
            measured = measurement_points(self.measurement, points_key, asked.x[0])
            x[name] = joined(asked.x, measured)
            seen = [drawn.draws[name](part) for part in (*asked.x, measured) if len(part)]
            values[name] = jnp.concatenate(seen, axis=0)
        priors = {name: _split(asked.prior) for name, asked in given.asked.items()}
        guides = {name: _split(drawn.processes[name]) for name in given.asked}
        static["priors"] = {name: parts[1] for name, parts in priors.items()}
        static["guides"] = {name: parts[1] for name, parts in guides.items()}
        static["num_inputs"] = {
            name: sum(len(part) for part in asked.x) for name, asked in given.asked.items()
        }
        static["ratio"] = batch_ratio(model_trace)
        shared = _Shared(
            x,
            {name: parts[0] for name, parts in priors.items()},
            {name: parts[0] for name, parts in guides.items()},
        )
        return _Particle(loss, values, mutable), shared


def _divergence(
    divergence: str | Divergence, estimator: Estimator | None, noise: float
) -> Divergence:
    """Return the divergence of a name, or the object given."""
    if isinstance(divergence, Divergence):
        return divergence
    if divergence not in NAMED:
        raise ValueError(f"`divergence` must be one of {NAMED} or an object; got {divergence!r}.")
    if estimator is not None and divergence != "score":
        raise ValueError(f'`estimator` is for the divergence "score"; this is {divergence!r}.')
    if divergence == "score":
        return ScoreKL(estimator, noise)
    if divergence == "regularized":
        return RegularizedKL()
    return GaussianKL(noise) if divergence == "gaussian" else GridKL(noise=noise)


def _objective(weight: float, ratio: float) -> str:
    """Return in words what the loss is."""
    if ratio != 1:
        return "objective of a minibatch (no bound: functions are compared on part of the inputs)"
    if weight != 1:
        return f"negative functional ELBO with divergence weighted by {weight:g} (no bound)"
    return "negative functional ELBO (estimate; a bound as far as the divergence is exact)"


def _explicit(trace: dict[str, Any]) -> Array:
    """Return the log density of all sites that are no functions."""
    total = jnp.zeros(())
    for name, site in trace.items():
        if site["type"] != "sample" or is_function(site):
            continue
        if kind_of(site) == "implicit":
            raise ValueError(
                f"Site '{name}' is implicit and no function: its density is needed and cannot be "
                "computed. Use a distribution with a density beside the functions."
            )
        total = total + site_log_prob(site)
    for name, site in latent_sites(trace).items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"Site '{name}' is latent and discrete: gradients do not pass through its draws. "
                "Sum it out of the model."
            )
    return total


def _explain(particles: Callable[..., Any], keys: Any, error: ValueError) -> None:
    """Raise the error that says which function's prior or inputs differ between particles."""
    raise ValueError(
        "the prior process of a function, the guide's, or the inputs depend on a latent variable "
        "or on random draws, so that each particle has another one: their divergence is not that "
        "of two distributions over functions. Learn such quantities as parameters "
        "(`numpyro.param`), or by `implicitppl.gp.fit` first."
    ) from error


def _split(process: Process) -> tuple[Any, Any]:
    return eqx.partition(process, eqx.is_array)


def _merge(values: Array) -> Array:
    if jnp.issubdtype(values.dtype, jnp.inexact):
        return jnp.mean(values, axis=0)
    return values[0]


def _mutable(trace: dict[str, Any]) -> Params:
    return {name: site["value"] for name, site in trace.items() if site["type"] == "mutable"}
