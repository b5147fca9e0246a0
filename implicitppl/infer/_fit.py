"""Training a guide to the end: explore at a constant rate, stop on a plateau, anneal, average.

1. Explore with Adam at `learning_rate` until the objective stops improving or half of the budget is
   spent. What counts as improvement depends on what the loss means. A bound of the evidence: of
   the later half of the steps so far, the second part is lower in the mean than the first, by more
   than two standard errors and more than `tolerance` nats. The parts grow with the run, so slow
   progress still counts.
   A surrogate, whose value may drift anywhere: the guide's own draws, with a fixed key, move by
   more than `drift_tolerance` standard deviations (root mean square over the coordinates).
2. Anneal the rate along a cosine to one hundredth, for as many steps as the first stage took.
3. Return the parameters averaged over the last quarter of the annealing (Polyak and Juditsky
   1992), which removes most of the gradient noise.

The loop is a compiled scan of `check_every` steps; between scans the state may be saved, and a run
that resumes from it gives the same bits.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import ELBO, SVI
from numpyro.infer.svi import SVIState
from tqdm.auto import tqdm

from implicitppl.infer._checkpoint import load_newest, save
from implicitppl.infer._elbo import SURROGATE, ImplicitELBO
from implicitppl.infer._sites import latent_sites

Params = dict[str, Any]
FINAL_RATE = 0.01
GRADIENT_CLIP = 20.0
NUM_PROBES = 256
MIN_EXPLORE = 1500
CALM_CHECKS = 2
NUM_PARTICLES = 256


class FitState(NamedTuple):
    """Everything that a run needs to go on: arrays only.

    `anneal_start` is -1 while exploring. `average` is the running mean of the optimiser's
    parameters and `num_averaged` its length. `probe` holds draws of the guide at the last check.
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


class FitResult(NamedTuple):
    """A trained guide.

    `params` are what `guide.sample_posterior` takes; `losses` (num_steps,) the loss of each step
    and `objective` what it means; `converged` is False if the budget ended the exploration;
    True says that the objective stopped falling, not that the guide is right, which is for
    `implicitppl.diagnostics.report` to check; `state` may be handed to
    `numpyro.infer.SVI` or inspected.
    """

    params: Params
    losses: Array
    objective: str
    converged: bool
    num_steps: int
    num_skipped: int
    state: SVIState


class _Plan(NamedTuple):
    """The numbers that fix a schedule."""

    num_steps: int
    learning_rate: float
    check_every: int
    tolerance: float
    drift_tolerance: float


def fit(
    rng_key: PRNGKeyArray,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    loss: ELBO | None = None,
    num_steps: int = 6000,
    learning_rate: float = 0.02,
    check_every: int = 100,
    tolerance: float = 0.01,
    drift_tolerance: float = 0.05,
    init_params: Params | None = None,
    progress_bar: bool = True,
    checkpoint: str | Path | None = None,
    **kwargs: Any,
) -> FitResult:
    """Returns the guide's parameters, trained to convergence or to the end of the budget.

    Args:
        rng_key: of the whole run.
        model: NumPyro model.
        guide: any NumPyro guide; sites without a density need the default loss.
        *args: for model and guide.
        loss: default `ImplicitELBO(num_particles=256)`; more particles mean a smoother path, and
            accuracy is limited by gradient noise more often than by the number of steps.
        num_steps: the budget, annealing included.
        learning_rate: of Adam while exploring.
        check_every: steps between convergence checks, saves and updates of the progress bar.
        tolerance: nats; a smaller fall of a bound between two windows counts as none.
        drift_tolerance: standard deviations, used where the loss is a surrogate.
        init_params: starting values, as in `SVI.init`.
        progress_bar: shows the mean loss of the last window and the stage.
        checkpoint: folder. The state is saved there after every check, and a run that finds one
            goes on from it. Needs the extra `checkpoint`.
        **kwargs: for model and guide.

    Raises:
        ValueError: for a budget below two checks, or a rate that is not positive.
        FloatingPointError: if the loss was not finite in any step of the first check.

    Cost: `num_steps` times `loss.num_particles` gradients of the model. Steps whose gradient is not
    finite are skipped and counted in `num_skipped`.

    Example:
        >>> import jax, numpyro
        >>> import numpyro.distributions as dist
        >>> from implicitppl.infer import AutoImplicit, fit
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoImplicit(model)
        >>> key = jax.random.key(0)
        >>> result = fit(key, model, guide, 3.0, num_steps=20, check_every=10, progress_bar=False)
        >>> result.losses.shape
        (20,)
    """
    check_every = min(check_every, max(num_steps // 2, 1))
    if num_steps < 2 * check_every or num_steps < 2:
        raise ValueError(f"`num_steps` must be at least 2; got {num_steps}.")
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive; got {learning_rate}.")
    plan = _Plan(num_steps, learning_rate, check_every, tolerance, drift_tolerance)
    runner = _runner(model, guide, loss, plan)
    state = runner.init(rng_key, init_params, args, kwargs)
    objective = runner.describe(state, args, kwargs)
    if checkpoint is not None:
        state = load_newest(Path(checkpoint), state)
    with tqdm(total=num_steps, initial=int(state.step), disable=not progress_bar) as bar:
        while int(state.step) < int(state.end):
            before = int(state.step)
            state = runner.chunk(state, args, kwargs)
            state = runner.check(state, objective, args, kwargs)
            if checkpoint is not None:
                save(Path(checkpoint), int(state.step), state)
            _report(bar, before, state)
    return runner.result(state, objective)


class _Runner:
    """One compiled training step for a model, a guide, a loss and a schedule."""

    def __init__(self, model: Any, guide: Any, loss: ELBO | None, plan: _Plan) -> None:
        self.loss = ImplicitELBO(NUM_PARTICLES) if loss is None else loss
        self.plan = plan
        optimiser = optax.inject_hyperparams(_adam)(learning_rate=plan.learning_rate)
        self.svi = SVI(model, guide, optimiser, self.loss)
        self.chunk = eqx.filter_jit(self._chunk)
        self.probe = eqx.filter_jit(self._probe)

    def init(self, key: PRNGKeyArray, init_params: Any, args: Any, kwargs: Any) -> FitState:
        """Returns the state before the first step."""
        svi_state = self.svi.init(key, *args, init_params=init_params, **kwargs)
        params = self.svi.optim.get_params(svi_state.optim_state)
        return _strong_types(
            FitState(
                svi=svi_state,
                step=jnp.array(0),
                anneal_start=jnp.array(-1),
                end=jnp.array(self.plan.num_steps),
                average=jax.tree.map(jnp.zeros_like, params),
                num_averaged=jnp.array(0),
                probe=self.probe(svi_state, args, kwargs),
                calm_checks=jnp.array(0),
                losses=jnp.full(self.plan.num_steps, jnp.nan),
            )
        )

    def describe(self, state: FitState, args: Any, kwargs: Any) -> str:
        """Returns what the loss means for this guide."""
        if not isinstance(self.loss, ImplicitELBO):
            return type(self.loss).__name__
        params = self.svi.get_params(state.svi)
        svi = self.svi
        return self.loss.objective(
            jax.random.key(0), params, svi.model, svi.guide, *args, **svi.static_kwargs, **kwargs
        )

    def _probe(self, svi_state: SVIState, args: Any, kwargs: Any) -> Array:
        """Returns draws of the guide with a fixed key, (NUM_PROBES, all latent values)."""
        params = self.svi.get_params(svi_state)
        if svi_state.mutable_state is not None:
            params = {**params, **svi_state.mutable_state}

        def draw(key: PRNGKeyArray) -> Array:
            seeded = handlers.seed(handlers.substitute(self.svi.guide, data=params), key)
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            values = {name: site["value"] for name, site in latent_sites(trace).items()}
            return ravel_pytree(values)[0].astype(float)

        return jax.vmap(draw)(jax.random.split(jax.random.key(0), NUM_PROBES))

    def _rate(self, state: FitState) -> Array:
        length = jnp.maximum(state.end - state.anneal_start, 1)
        fraction = jnp.clip((state.step - state.anneal_start) / length, 0.0, 1.0)
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        return self.plan.learning_rate * jnp.where(state.anneal_start < 0, 1.0, cosine)

    def _chunk(self, state: FitState, args: Any, kwargs: Any) -> FitState:
        """Runs `check_every` steps."""

        def step(state: FitState, _: None) -> tuple[FitState, Array]:
            optim_state = optax.tree.set(state.svi.optim_state, learning_rate=self._rate(state))
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
        state, losses = jax.lax.scan(step, state, length=self.plan.check_every)
        stored = jax.lax.dynamic_update_slice(state.losses, losses.astype(float), (start,))
        return state._replace(losses=stored)

    def check(self, state: FitState, objective: str, args: Any, kwargs: Any) -> FitState:
        """Decides between exploring and annealing after a chunk."""
        every, step = self.plan.check_every, int(state.step)
        losses = np.asarray(state.losses)
        if step == every and not np.isfinite(losses[:every]).any():
            raise FloatingPointError(
                f"The loss was not finite in any of the first {every} steps. Check the model's "
                "support and scale, or start elsewhere (`init_loc_fn`, `init_scale`)."
            )
        if int(state.anneal_start) >= 0:
            return state
        probe = self.probe(state.svi, args, kwargs)
        if objective == SURROGATE:
            calm = _drift(np.asarray(state.probe), np.asarray(probe)) < self.plan.drift_tolerance
        else:
            calm = step >= MIN_EXPLORE and not _falls(losses[step // 2 : step], self.plan.tolerance)
        calm_checks = int(state.calm_checks) + 1 if calm else 0
        remaining = self.plan.num_steps - step
        start, end = -1, int(state.end)
        if calm_checks >= CALM_CHECKS or remaining <= step:
            start, end = step, step + every * (min(remaining, step) // every)
        new = state._replace(
            probe=probe,
            calm_checks=jnp.array(calm_checks),
            anneal_start=jnp.array(start),
            end=jnp.array(end),
        )
        return _strong_types(new)

    def result(self, state: FitState, objective: str) -> FitResult:
        """Returns the averaged parameters and what is known about the run."""
        num_steps = int(state.step)
        losses = state.losses[:num_steps]
        params = state.average if int(state.num_averaged) else self._last(state)
        return FitResult(
            params=self.svi.constrain_fn(params),
            losses=losses,
            objective=objective,
            converged=int(state.calm_checks) >= CALM_CHECKS,
            num_steps=num_steps,
            num_skipped=int(jnp.sum(~jnp.isfinite(losses))),
            state=state.svi,
        )

    def _last(self, state: FitState) -> Any:
        return self.svi.optim.get_params(state.svi.optim_state)


@functools.lru_cache(maxsize=16)
def _runner(model: Any, guide: Any, loss: ELBO | None, plan: _Plan) -> _Runner:
    """Returns the compiled training loop, the same one for a second call with equal arguments."""
    return _Runner(model, guide, loss, plan)


def _strong_types(state: FitState) -> FitState:
    """Removes weak types, which would make the second chunk compile again."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype=jnp.asarray(x).dtype), state)


def _adam(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(GRADIENT_CLIP), optax.adam(learning_rate, b1=0.9, b2=0.99)
    )


def _falls(losses: np.ndarray, tolerance: float) -> bool:
    """Tells whether the second half of the losses is lower than the first, beyond noise."""
    before, after = np.array_split(losses, 2)
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if min(len(before), len(after)) < 2:
        return True
    error = np.sqrt(before.var() / len(before) + after.var() / len(after))
    return bool(before.mean() - after.mean() > max(2 * error, tolerance))


def _drift(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the root mean square change of means and log sds, in units of the sd."""
    scale = after.std(axis=0) + 1e-12
    shift = (after.mean(axis=0) - before.mean(axis=0)) / scale
    stretch = np.log(scale / (before.std(axis=0) + 1e-12))
    return float(np.sqrt(np.mean(shift**2 + stretch**2)))


def _report(bar: Any, before: int, state: FitState) -> None:
    step = int(state.step)
    window = np.asarray(state.losses[before:step])
    finite = window[np.isfinite(window)]
    stage = "explore" if int(state.anneal_start) < 0 else "anneal"
    bar.set_postfix_str(f"{stage}, loss {finite.mean() if len(finite) else np.nan:.3f}")
    bar.total = int(state.end)
    bar.update(step - before)
