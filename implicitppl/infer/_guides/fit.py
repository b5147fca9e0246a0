"""Training a guide to the end: start from a Gaussian, explore, stop on a plateau, anneal, average.

0. Where the guide has a Gaussian to start from (the default `AutoImplicit`), fit that first, by
   natural gradients from several starts: scales, correlations and the choice of a mode are settled
   before any network is trained.
1. Explore with Adam at `learning_rate` until the objective stops improving or half of the budget is
   spent. What counts as improvement depends on what the loss means. A negative ELBO: of the later
   half of the steps so far, the second part is lower in the mean than the first, by more than two
   standard errors and more than `tolerance` nats. The parts grow with the run, so slow progress
   still counts. A surrogate, whose value may drift anywhere: the guide's own draws, with a fixed
   key, move by more than `drift_tolerance` standard deviations (root mean square over the
   coordinates).
2. Anneal the rate along a cosine to one hundredth, for as many steps as the first stage took.
3. Return the parameters averaged over the last quarter of the annealing (Polyak and Juditsky
   1992), which removes most of the gradient noise. If the loss there is higher than at the Gaussian
   start, return the start.

The loop is a compiled scan of `check_every` steps; between scans the state may be saved, and a run
that resumes from it gives the same bits.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro.infer import ELBO
from numpyro.infer.svi import SVIState
from tqdm.auto import tqdm

from implicitppl._train.checkpoint import load_newest, save
from implicitppl._train.programs import Captured
from implicitppl._train.result import FitResult
from implicitppl._train.schedule import FitSchedule
from implicitppl.infer._guides.gaussian import GaussianFit
from implicitppl.infer._guides.training import FitState, Runner

Params = dict[str, Any]


class GuideFitResult(FitResult):
    """A trained guide.

    Attributes:
        losses: loss of each step, (num_steps,).
        objective: in words, what the losses mean.
        converged: whether the objective stopped falling before the budget ended, with a
            `log_weight_sd` below 1.5, and, for a guide that starts from a Gaussian, whether it
            ended below that and one-to-one. Budgets below some 2,100 steps are too short to tell.
            It does not say that the guide is right, which is for `implicitppl.diagnostics.report`
            to check.
        num_steps: how many steps were run.
        num_skipped: steps whose loss or gradient was not finite.
        params: what `guide.sample_posterior` takes.
        state: may be handed to `numpyro.infer.SVI` or inspected.
        log_weight_sd: standard deviation of log p(z, y) - log q(z) over draws, in nats, from the
            last 200 losses: 0 for an exact guide, and about sqrt(2 KL) near one. Large values mean
            that rare draws decide the loss. NaN for losses without a density, and for subsampled
            models, where the minibatch scatters the losses.
        gaussian: the start, with the losses of all places that were tried; None where the guide
            has none.
    """

    params: Params
    state: SVIState
    log_weight_sd: float = float("nan")
    gaussian: GaussianFit | None = None


def fit(
    rng_key: PRNGKeyArray,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    loss: ELBO | None = None,
    num_steps: int = 10_000,
    learning_rate: float | None = None,
    check_every: int = 100,
    tolerance: float = 0.01,
    drift_tolerance: float = 0.05,
    init_params: Params | None = None,
    progress_bar: bool = True,
    checkpoint: str | Path | None = None,
    **kwargs: Any,
) -> GuideFitResult:
    """Returns the guide's parameters, trained to convergence or to the end of the budget.

    Args:
        rng_key: of the whole run.
        model: NumPyro model.
        guide: any NumPyro guide; sites without a density need the default loss.
        *args: for model and guide.
        loss: default `ImplicitELBO`, with 32 particles where every density is known and 256 where
            scores are estimated from the particles.
        num_steps: the budget, annealing included.
        learning_rate: of Adam while exploring. Default 0.005 for guides with implicit or
            semi-implicit sites, 0.02 for others.
        check_every: steps between convergence checks, saves and updates of the progress bar.
        tolerance: nats; a smaller fall of a bound between two windows counts as none.
        drift_tolerance: standard deviations, used where the loss is a surrogate.
        init_params: starting values, as in `SVI.init`; the Gaussian start is then left out.
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
    check_every = min(check_every, max(num_steps // 4, 1))
    if num_steps < 2 * check_every or num_steps < 2:
        raise ValueError(f"`num_steps` must be at least 2; got {num_steps}.")
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive; got {learning_rate}.")
    schedule = FitSchedule(num_steps, learning_rate, check_every, tolerance, drift_tolerance)
    runner = _runner(model, guide, loss, schedule, Captured(model, guide))
    svi_state = runner.init(rng_key, init_params, args, kwargs)
    begin = functools.partial(
        runner.begin, jax.random.fold_in(rng_key, 1), svi_state, init_params is None, args, kwargs
    )
    state = None
    if checkpoint is not None:
        state = load_newest(Path(checkpoint), eqx.filter_eval_shape(begin))
    if state is None:
        state = begin()
    with tqdm(total=num_steps, initial=int(state.step), disable=not progress_bar) as bar:
        while int(state.step) < int(state.end):
            before = state
            state = runner.check(before, runner.chunk(before, args, kwargs), args, kwargs)
            if checkpoint is not None:
                save(Path(checkpoint), int(state.step), state)
            _report(bar, int(before.step), state)
    params, converged, spread = runner.finish(state, args, kwargs)
    num_done = int(state.step)
    losses = state.losses[:num_done]
    return GuideFitResult(
        params=params,
        losses=losses,
        objective=runner.objective,
        converged=converged,
        num_steps=num_done,
        num_skipped=int(jnp.sum(~jnp.isfinite(losses))),
        state=state.svi,
        log_weight_sd=spread,
        gaussian=state.gaussian,
    )


@functools.lru_cache(maxsize=8)
def _runner(
    model: Any, guide: Any, loss: ELBO | None, schedule: FitSchedule, captured: Captured
) -> Runner:
    """Returns the compiled training loop, the same one for a second call with equal arguments."""
    del captured  # part of the key: what the programs hold of the world outside
    return Runner(model, guide, loss, schedule)


def _report(bar: Any, before: int, state: FitState) -> None:
    step = int(state.step)
    window = np.asarray(state.losses[before:step])
    finite = window[np.isfinite(window)]
    stage = "explore" if int(state.anneal_start) < 0 else "anneal"
    bar.set_postfix_str(f"{stage}, loss {finite.mean() if len(finite) else np.nan:.3f}")
    bar.total = int(state.end)
    bar.update(step - before)
