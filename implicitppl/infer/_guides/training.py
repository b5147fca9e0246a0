"""The compiled training loop behind `implicitppl.infer.fit`: its state, a chunk of steps, a check.

A chunk is a `lax.scan` of `check_every` steps of `SVI.stable_update`. Between chunks a check
decides whether to go on exploring or to anneal, and takes back a chunk after which the sampler
folds.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import ELBO, SVI
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.svi import SVIState

from implicitppl._train.programs import ONCE, Compiled, effort_once
from implicitppl._train.schedule import FitSchedule, drift, falls, rate_factor
from implicitppl.infer._guides.auto_implicit import AutoImplicit
from implicitppl.infer._guides.elbo import CHANGE, SURROGATE, ImplicitELBO
from implicitppl.infer._guides.gaussian import GaussianFit
from implicitppl.models._call import Call, look_at
from implicitppl.models._sites import latent_sites

Params = dict[str, Any]
GRADIENT_CLIP = 20.0
NUM_PROBES = 256
MIN_WAIT, MAX_WAIT = 1000, 2000  # steps before a plateau is believed
CALM_CHECKS = 2
MAX_FOLDS = 6
LAST_LOSSES = 200
MAX_LOG_WEIGHT_SD = 1.5
START_ERROR = 0.1  # nats: the Gaussian's loss is itself estimated
# What a loss means decides how many particles and which rate serve it when none are given.
DEFAULT_PARTICLES = {CHANGE: 32, SURROGATE: 256}
DEFAULT_RATE = {CHANGE: 0.005, SURROGATE: 0.005}
OTHER_PARTICLES, OTHER_RATE = 32, 0.02


class FitState(NamedTuple):
    """Everything that a run needs to go on: arrays only.

    `anneal_start` is -1 while exploring. `average` is the running mean of the optimiser's
    parameters and `num_averaged` its length. `probe` holds draws of the guide at the last check.
    `gaussian` is the start, where the guide has one; `start` the parameters at it. `damping` halves
    with each chunk that was taken back, `num_folds`.
    """

    svi: SVIState
    step: Array
    anneal_start: Array
    end: Array
    average: Any
    num_averaged: Array
    probe: Array
    calm_checks: Array
    losses: Array
    gaussian: GaussianFit | None
    start: Any
    damping: Array
    num_folds: Array


class Runner:
    """One compiled training step for a model, a guide, a loss and a schedule."""

    def __init__(self, model: Any, guide: Any, loss: ELBO | None, schedule: FitSchedule) -> None:
        self.schedule = schedule
        self.given_loss = loss
        optimiser = optax.inject_hyperparams(_adam)(learning_rate=1.0)
        self.svi = SVI(model, guide, optimiser, ImplicitELBO() if loss is None else loss)
        self.objective = ""
        self.subsamples = False
        self.rate = OTHER_RATE
        self.start = Compiled(self._start, ONCE)
        self.begin = Compiled(self._begin, lambda *given: effort_once(given[3:]))
        self.chunk = Compiled(self._chunk)
        self.probe = Compiled(self._probe, ONCE)
        self.folds = Compiled(self._folds, ONCE)

    def init(self, key: PRNGKeyArray, init_params: Any, args: Any, kwargs: Any) -> SVIState:
        """Return SVI's state before the first step, and settles loss and rate."""
        guide = self.svi.guide
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
            # An AutoGuide takes a key when it first looks at the model. Let it look now, or the
            # first of two equal runs would start from other networks than the second.
            with handlers.block(), handlers.seed(rng_seed=jax.random.fold_in(key, 2)):
                look = guide._setup_prototype if isinstance(guide, AutoImplicit) else guide
                look(*args, **kwargs)
        svi_state = self._first_state(key, init_params, args, kwargs)
        if not self.objective:
            self.objective = self._describe(svi_state, args, kwargs)
            self.subsamples = _subsamples(Call(self.svi.model, args, kwargs))
            if self.given_loss is None:
                num_particles = DEFAULT_PARTICLES.get(self.objective, OTHER_PARTICLES)
                self.svi.loss = ImplicitELBO(num_particles)
            rate = self.schedule.learning_rate
            self.rate = DEFAULT_RATE.get(self.objective, OTHER_RATE) if rate is None else rate
        return svi_state

    def _first_state(self, *given: Any) -> SVIState:
        """Return what `SVI.init` does; for an implicit guide in one program and not in a hundred.

        Other guides, which may look at values, are left to NumPyro.
        """
        if not isinstance(self.svi.guide, AutoImplicit):
            return self._start(*given)
        svi_state = self.start(*given)
        kept = jax.tree.leaves(self.svi.constrain_fn.args)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in kept):  # a constraint with arrays
            return self._start(*given)
        return svi_state

    def _start(self, key: PRNGKeyArray, init_params: Any, args: Any, kwargs: Any) -> SVIState:
        guide = self.svi.guide
        plain = guide.plain_init() if isinstance(guide, AutoImplicit) else contextlib.nullcontext()
        with plain:  # `begin` starts it from a Gaussian, and keeps what that found
            return self.svi.init(key, *args, init_params=init_params, **kwargs)

    def _begin(
        self, key: PRNGKeyArray, svi_state: SVIState, warm: bool, args: Any, kwargs: Any
    ) -> FitState:
        """Return the state of a new run, from the best Gaussian where the guide has one."""
        gaussian = None
        if warm and self._starts_from_a_gaussian:
            svi_state, gaussian = self._fit_start(key, svi_state, args, kwargs)
        params = self.svi.optim.get_params(svi_state.optim_state)
        surrogate = self.objective == SURROGATE
        state = FitState(
            svi=svi_state,
            step=jnp.array(0),
            anneal_start=jnp.array(-1),
            end=jnp.array(self.schedule.num_steps),
            average=jax.tree.map(jnp.zeros_like, params),
            num_averaged=jnp.array(0),
            probe=self._probe(svi_state, args, kwargs) if surrogate else jnp.zeros(1),
            calm_checks=jnp.array(0),
            losses=jnp.full(self.schedule.num_steps, jnp.nan),
            gaussian=gaussian,
            start=params,
            damping=jnp.array(1.0),
            num_folds=jnp.array(0),
        )
        return _strong_types(state)

    @property
    def _starts_from_a_gaussian(self) -> bool:
        guide = self.svi.guide
        return isinstance(guide, AutoImplicit) and guide.starts_from_a_gaussian

    def _fit_start(
        self, key: PRNGKeyArray, svi_state: SVIState, args: Any, kwargs: Any
    ) -> tuple[SVIState, GaussianFit]:
        params = self.svi.get_params(svi_state)
        moved, gaussian = self.svi.guide.gaussian_start(key, params, *args, **kwargs)
        unconstrained = dict(self.svi.optim.get_params(svi_state.optim_state))
        unconstrained |= {name: moved[name] for name in moved if name == self.svi.guide._site}
        return svi_state._replace(optim_state=self.svi.optim.init(unconstrained)), gaussian

    def _describe(self, svi_state: SVIState, args: Any, kwargs: Any) -> str:
        """Return what the loss means for this guide."""
        loss, svi = self.svi.loss, self.svi
        if not isinstance(loss, ImplicitELBO):
            return type(loss).__name__
        params = svi.get_params(svi_state)
        return loss.objective(jax.random.key(0), params, svi.model, svi.guide, *args, **kwargs)

    def _probe(self, svi_state: SVIState, args: Any, kwargs: Any) -> Array:
        """Return draws of the guide with a fixed key, (NUM_PROBES, all latent values)."""
        params = self.svi.get_params(svi_state)
        if svi_state.mutable_state is not None:
            params = {**params, **svi_state.mutable_state}

        def draw(key: PRNGKeyArray) -> Array:
            seeded = handlers.seed(handlers.substitute(self.svi.guide, data=params), key)
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            values = {name: site["value"] for name, site in latent_sites(trace).items()}
            return ravel_pytree(values)[0].astype(float)

        return jax.vmap(draw)(jax.random.split(jax.random.key(0), NUM_PROBES))

    def _folds(self, svi_state: SVIState, args: Any, kwargs: Any) -> Array:
        params = self.svi.get_params(svi_state)
        if svi_state.mutable_state is not None:
            params = {**params, **svi_state.mutable_state}
        return self.svi.loss.fold_share(jax.random.key(0), params, self.svi.guide, *args, **kwargs)

    def _chunk(self, state: FitState, args: Any, kwargs: Any) -> FitState:
        """Runs `check_every` steps."""

        def step(state: FitState, _: None) -> tuple[FitState, Array]:
            rate = rate_factor(state.step, state.anneal_start, state.end)
            held = optax.tree.get(state.svi.optim_state, "learning_rate")
            rate = (self.rate * state.damping * rate).astype(held.dtype)
            optim_state = optax.tree.set(state.svi.optim_state, learning_rate=rate)
            svi_state, loss = self.svi.stable_update(
                state.svi._replace(optim_state=optim_state), *args, **kwargs
            )
            quarter = state.end - (state.end - state.anneal_start) // 4
            keep = (state.anneal_start >= 0) & (state.step >= quarter)
            count = state.num_averaged + keep
            params = self.svi.optim.get_params(svi_state.optim_state)
            average = jax.tree.map(
                lambda old, new: jnp.where(keep, old + (new - old) / jnp.maximum(count, 1), old),
                state.average,
                params,
            )
            new = state._replace(
                svi=svi_state, step=state.step + 1, average=average, num_averaged=count
            )
            return new, loss

        start = state.step
        state, losses = jax.lax.scan(step, state, length=self.schedule.check_every)
        stored = jax.lax.dynamic_update_slice(state.losses, losses.astype(float), (start,))
        return state._replace(losses=stored)

    def check(self, before: FitState, state: FitState, args: Any, kwargs: Any) -> FitState:
        """Takes a chunk back where the sampler folds; else decides between the two stages."""
        every, step = self.schedule.check_every, int(state.step)
        losses = np.asarray(state.losses, np.float64)  # the square of a wild loss stays finite
        if step == every and not np.isfinite(losses[:every]).any():
            raise FloatingPointError(
                f"The loss was not finite in any of the first {every} steps. Check the model's "
                "support and scale, or start elsewhere (`init_loc_fn`, `init_scale`)."
            )
        if self.objective == CHANGE:
            can_go_back = int(state.num_folds) < MAX_FOLDS
            if can_go_back and float(self.folds(state.svi, args, kwargs)) > 0:
                return _strong_types(self._taken_back(before, state))
        if int(state.anneal_start) >= 0:
            return state
        probe = state.probe
        if self.objective == SURROGATE:
            probe = self.probe(state.svi, args, kwargs)
            calm = drift(np.asarray(state.probe), np.asarray(probe)) < self.schedule.drift_tolerance
        else:
            calm = not falls(losses[step // 2 : step], self.schedule.tolerance)
        calm = calm and step >= min(MAX_WAIT, max(MIN_WAIT, 2 * self.schedule.num_steps // 5))
        calm_checks = int(state.calm_checks) + 1 if calm else 0
        remaining = self.schedule.num_steps - step
        start, end = -1, int(state.end)
        if calm_checks >= CALM_CHECKS or remaining < step + every:
            start, end = step, step + every * (min(remaining, step) // every)
        new = state._replace(
            probe=probe,
            calm_checks=jnp.array(calm_checks),
            anneal_start=jnp.array(start),
            end=jnp.array(end),
        )
        return _strong_types(new)

    def _taken_back(self, before: FitState, state: FitState) -> FitState:
        """Return the state before the chunk, later in the schedule, at half the rate."""
        params = self.svi.optim.get_params(before.svi.optim_state)
        svi_state = state.svi._replace(optim_state=self.svi.optim.init(params))
        return before._replace(
            svi=svi_state,
            step=state.step,
            losses=state.losses,
            damping=0.5 * before.damping,
            num_folds=before.num_folds + 1,
        )

    def finish(self, state: FitState, args: Any, kwargs: Any) -> tuple[Params, bool, float]:
        """Return the averaged parameters, whether the run converged, and the sd of log p/q.

        A run that ends above the Gaussian that it started from has not converged, and the Gaussian
        is what is returned. Nor has one whose sampler folds, or whose weights p/q scatter too much
        for its loss to be read off a few draws.
        """
        params = state.average if int(state.num_averaged) else self._last(state)
        converged = int(state.calm_checks) >= CALM_CHECKS
        last = np.asarray(state.losses, np.float64)[: int(state.step)][-LAST_LOSSES:]
        last = last[np.isfinite(last)]
        if len(last) < 2:
            return self.svi.constrain_fn(params), False, float("nan")
        # One step's loss is a mean over the particles, and the parameters hardly move any more.
        spread = float(np.std(last) * getattr(self.svi.loss, "num_particles", 1) ** 0.5)
        if self.objective == SURROGATE:
            return self.svi.constrain_fn(params), converged, float("nan")
        if self.subsamples:
            spread = float("nan")
        converged = converged and not spread > MAX_LOG_WEIGHT_SD
        if state.gaussian is not None and self.objective == CHANGE:
            error = np.std(last) / len(last) ** 0.5
            if not np.mean(last) < float(state.gaussian.loss) + 3 * error + START_ERROR:
                return self.svi.constrain_fn(state.start), False, spread
        if self.objective == CHANGE:
            shell = _strong_types(state.svi._replace(optim_state=self.svi.optim.init(params)))
            converged = converged and float(self.folds(shell, args, kwargs)) == 0
        return self.svi.constrain_fn(params), converged, spread

    def _last(self, state: FitState) -> Any:
        return self.svi.optim.get_params(state.svi.optim_state)


def _subsamples(call: Call) -> bool:
    """Tell whether a plate of the model looks at a part of its rows. Traced abstractly."""

    def read(trace: dict[str, Any]) -> bool:
        plates = (site["args"] for site in trace.values() if site["type"] == "plate")
        return any(part not in (None, size) for size, part in plates)

    return look_at(call, read)


def _strong_types(state: Any) -> Any:
    """Removes weak types, which would make the second chunk compile again."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype=jnp.asarray(x).dtype), state)


def _adam(learning_rate: Any) -> optax.GradientTransformation:
    adam = optax.adam(learning_rate, b1=0.9, b2=0.99)
    return _as_one_vector(optax.chain(optax.clip_by_global_norm(GRADIENT_CLIP), adam))


def _as_one_vector(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimiser on all parameters as one vector: one program for eleven arrays.

    As `optax.flatten`, and without parameters, too.
    """

    def init(params: Any) -> Any:
        return inner.init(ravel_pytree(params)[0])

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        flat, restore = ravel_pytree(updates)
        flat, state = inner.update(flat, state)
        return restore(flat), state

    return optax.GradientTransformation(init, update)
