"""The functional ELBO: E_q[log p(y | f)] - w KL[q(f(X)) || p(f(X))], a loss for `SVI`.

Model and guide draw functions, `f = numpyro.sample("f", process(x))`. In each particle the guide's
function is drawn once and evaluated at the model's inputs x and at measurement points; X is both
together, the same for all particles of a step. Everything else in model and guide is treated as
`Trace_ELBO` does.

The number is minus a bound of the log evidence only if X contains every training input, if the
divergence is exact and w = 1. A minibatch compares functions on part of the inputs, where the
divergence is smaller: its value is an objective and no bound. `FunctionalELBO.report` says which.

Sun, Zhang, Shi, Grosse, "Functional variational Bayesian neural networks", ICLR 2019,
arXiv 1903.05779: the functional ELBO on sampled points.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from numpyro.infer import ELBO

from implicitppl._core.checks import check_non_negative
from implicitppl.divergences._divergence import Divergence, GaussianKL, GridKL, RegularizedKL
from implicitppl.divergences._growth import growth
from implicitppl.divergences._measurement import DataNoise, Measurement
from implicitppl.divergences._score import ScoreKL
from implicitppl.infer._functional.particles import Step, dependence_named, run_particles
from implicitppl.infer._functional.report import FunctionalReport, caveats
from implicitppl.models._call import Call
from implicitppl.models._sites import Params
from implicitppl.score._contract import EstimatorLike

ModelLike = Callable[..., Any]
NAMED = ("score", "gaussian", "regularized", "grid")
NUM_MEASURED = 32
NOISE, STRENGTH = 0.01, 1e-4
PER_BATCH = "N/B"


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
        noise: standard deviation of the noise added to both sides, in units of the prior's, for a
            divergence given by name other than "regularized"; default 0.01. Well below the
            smallest posterior deviation: variances below its square are lost. At 0.01 gradients
            in float32 are within 1% at 100 points of a smooth kernel.

    Raises:
        ValueError: for values outside their range. When traced: for a function inside a plate,
            transformed or masked, a subsampled plate that the guide lacks, sites or scales that do
            not match, a prior or inputs that depend on a latent variable, discrete or implicit
            sites that are no functions.

    Cost of a step: S evaluations of the guide's functions at n points, O(n^3) for the moments, and
    for scores a decomposition of S x S. A second step with equal shapes compiles nothing.

    Reference: Sun et al. (2019), the functional ELBO on sampled measurement sets.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, optax
        >>> import numpyro.distributions as dist
        >>> from implicitppl.infer import FunctionalELBO
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> from implicitppl.processes import BayesianNetwork
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
        estimator: EstimatorLike | None = None,
        noise: float | None = None,
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
        step = self._step(particle_key, param_map, model, guide, args, kwargs)
        total = jnp.zeros(())
        for index, found in enumerate(step.compared.values()):
            key = jax.random.fold_in(divergence_key, index)
            with dependence_named():
                known = found.known_divergence
                value = self.divergence(found.pair(key), key) if known is None else known
            total = total + found.scale * value
        loss = step.loss + self._weight(step) * total
        return {"loss": loss, "mutable_state": step.mutable or None}

    def report(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        model: ModelLike,
        guide: ModelLike,
        *args: Any,
        strength: float | None = None,
        with_growth: bool = True,
        **kwargs: Any,
    ) -> FunctionalReport:
        """Return what the loss is at some parameters: its parts, its settings, what it bounds.

        Args:
            rng_key: of the particles.
            params: parameters, as of `svi.get_params(state)`.
            model: the model.
            guide: the guide.
            *args: of model and guide.
            strength: g of the regularised divergence that is shown beside the noisy one; default
                that of the loss, if it has one, else 1e-4.
            with_growth: show how the divergence grows with 2 and 4 times the measurement points.
                At thousands of inputs that is most of the cost.
            **kwargs: of model and guide.
        """
        if strength is None:
            strength = getattr(self.divergence, "strength", STRENGTH)
        step = self._step(rng_key, params, model, guide, args, kwargs)
        values, scales, growths, warnings, exact = [], [], [], [], []
        for index, (name, found) in enumerate(step.compared.items()):
            key = jax.random.fold_in(rng_key, index)
            scales.append(float(found.scale))
            known = found.known_divergence
            if known is not None:
                values.append(float(found.scale * known))
                exact.append(True)
                continue
            with dependence_named():
                pair = found.pair(key)
            values.append(float(found.scale * self.divergence(pair, key)))
            exact.append(pair.is_exact)
            warnings += caveats(name, pair, self.divergence.added_variance(pair))
            if not with_growth:
                continue
            x = found.x[: found.num_inputs]
            noise = getattr(self.divergence, "noise", NOISE)
            growths.append(
                growth(name, found.guide, found.prior, x, self.measurement, key, noise, strength)
            )
        weight = self._weight(step)
        return FunctionalReport(
            objective=_objective(weight, step.batch_ratio, scales),
            divergence=self.divergence.describe(),
            weight=weight,
            num_particles=self.num_particles,
            is_exact=all(exact),
            expected_log_density=-float(step.loss),
            divergence_value=sum(values),
            growth=tuple(growths),
            warnings=tuple(warnings),
        )

    def _step(
        self,
        key: PRNGKeyArray,
        params: Params,
        model: ModelLike,
        guide: ModelLike,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Step:
        ours = Call(guide, args, kwargs, params)
        theirs = ours._replace(program=model)
        return run_particles(theirs, ours, self.measurement, self.num_particles, key)

    def _weight(self, step: Step) -> float:
        if not isinstance(self.weight, str):
            return float(self.weight)
        if not step.is_one_batch:
            raise ValueError(
                'weight="N/B" is the ratio of one minibatch; this model subsamples plates that '
                "hold different observations. Give the weight as a number."
            )
        return step.batch_ratio


def _divergence(
    divergence: str | Divergence, estimator: EstimatorLike | None, noise: float | None
) -> Divergence:
    """Return the divergence of a name, or the object given; refuse options that it would ignore."""
    known = isinstance(divergence, Divergence)
    if not known and divergence not in NAMED:
        raise ValueError(f"`divergence` must be one of {NAMED} or an object; got {divergence!r}.")
    if estimator is not None and divergence != "score":
        raise ValueError(f'`estimator` is for the divergence "score"; this is {divergence!r}.')
    if noise is not None and (known or divergence == "regularized"):
        raise ValueError(
            f"`noise` is not for {divergence!r}, which has its own: give it to the object, such as "
            "`GaussianKL(noise)` or `RegularizedKL(strength)`."
        )
    if isinstance(divergence, Divergence):
        return divergence
    level = NOISE if noise is None else noise
    if divergence == "score":
        return ScoreKL(estimator, level)
    if divergence == "regularized":
        return RegularizedKL()
    return GaussianKL(level) if divergence == "gaussian" else GridKL(noise=level)


def _objective(weight: float, ratio: float, scales: list[float]) -> str:
    """Return in words what the loss is."""
    if ratio != 1:
        return "objective of a minibatch (no bound: functions are compared on part of the inputs)"
    if any(scale != 1 for scale in scales):
        return (
            "negative functional ELBO under `handlers.scale` (a multiple of a bound only where "
            "every site has the same scale)"
        )
    if weight != 1:
        return f"negative functional ELBO with divergence weighted by {weight:g} (no bound)"
    return "negative functional ELBO (estimate; a bound as far as the divergence is exact)"
