"""The loss for guides with sites that have no density: E_q[log q(z) - log p(z, y)].

What each guide site adds to log q:

- a site with a density: its log density, exactly, as in `numpyro.infer.Trace_ELBO`;
- a semi-implicit site: its log density by change of variables, with the gradient of the path only;
- an implicit site: only the gradient, from the score s of its draws. E over q of log q has the
  gradient E[s(z)^T dz], because the score-function term E[d log q / d phi] is zero. The particles
  are their own bank: at each element of a plate the P particles give one score estimate. With
  `SSGE` the empirical Stein identity then holds exactly along every eigenfunction that is kept,
  and with `implicitppl.score.affine_stein_correction` along affine functions too.

In place of the unknown value of log q at implicit sites stands minus the entropy of a Gaussian with
the particles' covariance, the largest that they could have: the reported number is then a lower
bound of the loss, not of the evidence (`ImplicitELBO.objective` says which).
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.infer import ELBO
from numpyro.util import check_model_guide_match

from implicitppl.distributions import SemiImplicit
from implicitppl.infer._guides.provenance import joint_groups, parents
from implicitppl.infer._guides.trust import bounded_gradient, bounded_pull
from implicitppl.models._call import Call
from implicitppl.models._plates import shared_plates
from implicitppl.models._sites import (
    Params,
    Pulled,
    has_density,
    innermost,
    kind_of,
    latent_sites,
    merge_mutable,
    mutable_sites,
    pull_back,
    refuse_discrete_sites,
    site_log_prob,
)
from implicitppl.score import affine_stein_correction, entropy_term
from implicitppl.score._contract import EstimatorLike
from implicitppl.score._in_sample import default_estimator, gaussian_entropy

ModelLike = Callable[..., Any]

CHANGE = "negative ELBO (by change of variables: exact while the sampler is one-to-one)"
EXPLICIT = "negative ELBO"
BARRIER_WEIGHT = 2.0
MIN_GUARDS = 8
SURROGATE = "surrogate: entropy replaced by a Gaussian's, a lower bound of the negative ELBO"


class _Particle(NamedTuple):
    """What one particle gives: the explicit part of the loss, implicit draws, mutable state."""

    loss: Array
    banks: dict[str, Pulled]
    mutable: Params


class ImplicitELBO(ELBO):
    """A loss for `numpyro.infer.SVI` that accepts guides without a density.

    Args:
        num_particles: draws of the guide in each step, at least 2. They are the bank that the score
            is estimated from; 100 is enough for ten or twenty dimensions.
        estimator: of the score at implicit sites: an object with `fit(samples) -> score`. Default
            `default_estimator()`: `implicitppl.score.SSGE` with a heavy-tailed kernel, a metric for
            each coordinate, a Gaussian reference and 99.9% of the trace. Estimators tuned on
            held-out loss shrink a guide when they are used in-sample, as here.
        score_sites: "implicit", or "all" to estimate the score of semi-implicit sites from the
            particles too, instead of using their conditional layer (a comparison; rarely better).
        trust_radius: bounds the gradient of one particle at a semi-implicit site, in units of the
            guide's scale and of sqrt(D); the gradient of all parameters of such a guide is then
            also shortened to 20. None for no bounds, which forward-mode differentiation needs
            (they are rules of reverse mode).
        vectorize_particles: as in NumPyro: True for `vmap`, False for `lax.map`, or a callable.

    Raises:
        ValueError: for fewer than 2 particles; at the first trace, for an implicit site in the
            model (latent or observed), a discrete latent site, or an implicit guide site in a
            plate that depends on another random site.

    Cost: each step one decomposition of P x P for each element of each implicit site, whatever the
    guide; none for guides without implicit sites.

    Mutable sites are kept with any number of particles: floats are averaged over the particles,
    other dtypes are taken from the first.

    Example:
        >>> import jax, numpyro, optax
        >>> import numpyro.distributions as dist
        >>> from implicitppl.infer import AutoImplicit, ImplicitELBO
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoImplicit(model)
        >>> loss = ImplicitELBO(num_particles=8)
        >>> svi = numpyro.infer.SVI(model, guide, optax.adam(1e-2), loss)
        >>> state = svi.init(jax.random.key(0), 3.0)
        >>> loss.objective(jax.random.key(1), svi.get_params(state), model, guide, 3.0)
        'negative ELBO (by change of variables: exact while the sampler is one-to-one)'
    """

    def __init__(
        self,
        num_particles: int = 100,
        estimator: EstimatorLike | None = None,
        *,
        score_sites: str = "implicit",
        trust_radius: float | None = 5.0,
        vectorize_particles: bool | Callable[..., Any] = True,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                "`num_particles` must be at least 2, because the particles are the samples that "
                f"the score is estimated from; got {num_particles}."
            )
        if score_sites not in ("implicit", "all"):
            raise ValueError(f"`score_sites` must be 'implicit' or 'all'; got {score_sites!r}.")
        if trust_radius is not None and not trust_radius > 0:
            raise ValueError(f"`trust_radius` must be positive or None; got {trust_radius}.")
        if estimator is not None and not hasattr(estimator, "fit"):
            raise ValueError(f"`estimator` must have a `fit` method; got {estimator!r}.")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.estimator: EstimatorLike = default_estimator() if estimator is None else estimator
        self.score_sites, self.trust_radius = score_sites, trust_radius

    def objective(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        model: ModelLike,
        guide: ModelLike,
        *args: Any,
        **kwargs: Any,
    ) -> str:
        """Return in words what the reported loss is, for this model and guide."""
        kinds: set[str] = set()

        def look() -> None:
            trace = self._trace_guide(rng_key, rng_key, Call(guide, args, kwargs, params))
            kinds.update(kind_of(site) for site in latent_sites(trace).values())

        jax.eval_shape(look)  # nothing is drawn
        if "implicit" in kinds or ("semi-implicit" in kinds and self.score_sites == "all"):
            return SURROGATE
        return CHANGE if "semi-implicit" in kinds else EXPLICIT

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
        plate_key, trace_key, particle_key, barrier_key = jax.random.split(rng_key, 4)
        ours = Call(guide, args, kwargs, param_map)
        trace = self._trace_guide(trace_key, plate_key, ours)
        if self.trust_radius is not None and self._changes_variables(trace):
            names = [n for n, s in trace.items() if s["type"] == "param" and n in param_map]
            bounded = bounded_gradient({name: param_map[name] for name in names})
            ours = ours._replace(params={**param_map, **bounded})
            trace = self._trace_guide(trace_key, plate_key, ours)
        groups = self._groups(trace_key, trace, ours)
        scored = {name for group in groups for name in group}
        theirs = ours._replace(program=model)

        def particle(key: PRNGKeyArray) -> _Particle:
            return self._particle(key, plate_key, theirs, ours, scored)

        keys = jax.random.split(particle_key, self.num_particles)
        particles = self.vectorize_particles_fn(particle, keys)
        loss = jnp.mean(particles.loss) + self._barrier(barrier_key, trace)
        for group in groups:
            loss = loss + self._group_loss([particles.banks[name] for name in group])
        mutable = jax.tree.map(merge_mutable, particles.mutable)
        return {"loss": loss, "mutable_state": mutable or None}

    def _trace_guide(
        self, key: PRNGKeyArray, plate_key: PRNGKeyArray, guide: Call
    ) -> dict[str, Any]:
        bound: Any = contextlib.nullcontext()
        if self.trust_radius is not None:
            bound = bounded_pull(limit=self.trust_radius / self.num_particles)
        # Outside of the trace: what the trace records must be the bounded value, so that the bound
        # meets the gradients of log q and of log p together.
        with shared_plates(key=plate_key), bound:
            return guide.trace(key)

    def _is_scored(self, site: dict[str, Any]) -> bool:
        kind = kind_of(site)
        return kind == "implicit" or (kind == "semi-implicit" and self.score_sites == "all")

    def _groups(
        self, key: PRNGKeyArray, trace: dict[str, Any], guide: Call
    ) -> list[tuple[str, ...]]:
        """Find which sites need a score, and which of them jointly. Traced code, no run time."""
        sites = latent_sites(trace)
        refuse_discrete_sites(trace, "Use a continuous guide.")
        scored = [name for name, site in sites.items() if self._is_scored(site)]
        if not scored:
            return []
        if len(sites) == 1:
            return [tuple(scored)]
        values = {name: site["value"] for name, site in sites.items()}
        plates = {n: s["value"] for n, s in trace.items() if s["type"] == "plate"}
        fixed = guide._replace(params={**guide.params, **plates})
        parents_of = parents(fixed, values, key)
        return joint_groups(sites, parents_of, scored)

    def _barrier(self, key: PRNGKeyArray, trace: dict[str, Any]) -> Array:
        """Return the penalty that keeps semi-implicit sites one-to-one; 0 away from a fold."""
        total = jnp.zeros(())
        for fn in self._changes_variables(trace):
            num_samples = max(MIN_GUARDS, self.num_particles // 4)
            total = total + BARRIER_WEIGHT * fn.fold_barrier(key, num_samples)
        return total

    def fold_share(
        self,
        rng_key: PRNGKeyArray,
        params: Params,
        guide: ModelLike,
        *args: Any,
        num_samples: int = 1000,
        **kwargs: Any,
    ) -> Array:
        """Return the largest share of folded draws among the semi-implicit sites of a guide.

        It should be 0, see `implicitppl.distributions.SemiImplicit.fold_share`.
        """
        trace = self._trace_guide(rng_key, rng_key, Call(guide, args, kwargs, params))
        shares = [fn.fold_share(rng_key, num_samples) for fn in self._changes_variables(trace)]
        return jnp.max(jnp.stack([jnp.zeros(()), *shares]))

    def _changes_variables(self, trace: dict[str, Any]) -> list[SemiImplicit]:
        """Return the distributions of the sites whose density comes by change of variables."""
        sites = [site for site in latent_sites(trace).values() if not self._is_scored(site)]
        return [fn for fn in (innermost(s["fn"]) for s in sites) if isinstance(fn, SemiImplicit)]

    def _particle(
        self,
        key: PRNGKeyArray,
        plate_key: PRNGKeyArray,
        model: Call,
        guide: Call,
        scored: set[str],
    ) -> _Particle:
        guide_key, model_key = jax.random.split(key)
        guide_trace = self._trace_guide(guide_key, plate_key, guide)
        mutable = mutable_sites(guide_trace)
        with shared_plates(key=plate_key):
            model_trace = model.replayed(model_key, guide_trace, mutable)
        check_model_guide_match(model_trace, guide_trace)
        _check_model(model_trace)
        mutable.update(mutable_sites(model_trace))
        log_p = sum(
            (site_log_prob(s) for s in model_trace.values() if s["type"] == "sample"),
            start=jnp.zeros(()),
        )
        log_q = jnp.zeros(())
        banks = {}
        for name, site in guide_trace.items():
            if site["type"] != "sample":
                continue
            if name in scored:
                banks[name] = pull_back(site)
            else:
                log_q = log_q + site_log_prob(site, path_gradient=True)
        return _Particle(log_q - log_p, banks, mutable)

    def _group_loss(self, banks: list[Pulled]) -> Array:
        """Return the mean of log q over the particles: gradient from scores, value a bound."""
        u = jnp.concatenate([bank.u for bank in banks], axis=-1)
        log_det = sum((bank.log_det for bank in banks), start=jnp.zeros(()))
        weight = banks[-1].weight
        rows = jnp.moveaxis(u.reshape(u.shape[0], -1, u.shape[-1]), 0, 1)

        def element(particles: Array) -> Array:
            held = jax.lax.stop_gradient(particles)
            scores = affine_stein_correction(self.estimator.fit(held)(held), held)
            return entropy_term(scores, particles) - gaussian_entropy(held)

        log_q = jax.vmap(element)(rows)
        return jnp.sum(jnp.mean(weight, 0).reshape(-1) * log_q) - jnp.sum(
            jnp.mean(weight * log_det, 0)
        )


def _check_model(trace: Mapping[str, Any]) -> None:
    """Refuse what this loss cannot treat, by name."""
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        if not has_density(site["fn"]):
            role = "observed" if site["is_observed"] else "latent"
            raise ValueError(
                f"Model site '{name}' is {role} and implicit: its log density is needed and "
                "cannot be computed. Use an `Implicit` distribution in the guide only."
            )
    refuse_discrete_sites(trace, "Sum it out of the model, or use a continuous relaxation.")
