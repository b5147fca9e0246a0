"""Where chains start: the opaque target, and points with a finite potential."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.infer.util import initialize_model, unconstrain_fn

from implicitppl.infer._score_hmc.noise import Noise, draw
from implicitppl.infer._score_hmc.problem import Evaluation, ModelProblem, Problem, WholeProblem
from implicitppl.models._boxes.handlers import find_boxes, with_surrogates
from implicitppl.models._call import Call, look_at, refuse_discrete
from implicitppl.models._sites import latent_sites

MAX_STARTS = 100


class Target(NamedTuple):
    """A problem, how its vectors become sites, and a model that asks no host for its starts."""

    problem: Problem
    unravel: Callable[[Array], Any]
    quiet: Callable[..., Any] | None
    size: int


class Start(NamedTuple):
    """Where C chains start.

    Attributes:
        z: points with a finite potential.
        noise: of random boxes there.
        evaluation: of the target there.
        num_evaluations: that it took to find each point.
    """

    z: Float[Array, "C D"]
    noise: Noise
    evaluation: Evaluation
    num_evaluations: Int[Array, " C"]


def opaque_target(
    model: Callable[..., Any] | None,
    potential_fn: Callable[[Any], Any] | None,
    init_params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Target:
    """Return what the sampler sees of a model, or of a potential.

    Raises:
        ValueError: for discrete latent sites, none, or a potential without `init_params`.
    """
    if model is None:
        if init_params is None:
            raise ValueError("`init_params` must be given to `MCMC.run` with a `potential_fn`.")
        flat, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], init_params))
        assert potential_fn is not None
        return Target(WholeProblem(potential_fn, unravel), unravel, None, flat.size)
    call = Call(model, args, kwargs)
    refuse_discrete(call, "Sum them out of the likelihood.")
    if not look_at(call, latent_sites):
        raise ValueError("`model` must have a latent site; it has none.")
    boxes = find_boxes(call)
    idle = {k: lambda *_, o=v.out: jnp.zeros(o.shape, o.dtype) for k, v in boxes.items()}
    quiet = with_surrogates(handlers.block(model, hide_fn=_is_data), idle)
    with numpyro.validation_enabled(False):  # of the zeros that stand in for the boxes
        info = initialize_model(
            jax.random.key(0), quiet, model_args=args, model_kwargs=kwargs, validate_grad=False
        )
    flat, unravel = ravel_pytree(info.param_info.z)
    _check_points(init_params, info.param_info.z)
    seeded = handlers.seed(model, jax.random.key(0))
    return Target(ModelProblem(seeded, unravel, boxes), unravel, quiet, flat.size)


def starting_points(init_params: Any, single: bool) -> Any:
    """Return the starting points of all chains, (C, ...), as floats; None if none are given.

    `single` says that they are those of one chain, without an axis of chains.
    """

    def point(x: Any) -> Array:
        array = jnp.asarray(x)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(float)
        return array[None] if single else array

    return jax.tree.map(point, init_params)


def _check_points(points: Any, like: dict[str, Array]) -> None:
    """Raise where points given for a model do not have its latent sites, unconstrained."""
    if points is None:
        return
    here = {name: jnp.shape(value) for name, value in like.items()}
    there = {name: jnp.shape(value)[1:] for name, value in dict(points).items()}
    if there != here:
        raise ValueError(
            f"`init_params` must hold unconstrained values of the latent sites {here}, with an "
            f"axis of chains in front where there are several; got {there}."
        )


def unconstrained(
    target: Target, points: dict[str, Array], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Array]:
    """Return unconstrained values of the latent sites at points on the model's own scale.

    Raises:
        ValueError: if a site is missing.
    """
    assert target.quiet is not None
    sites = target.unravel(jnp.zeros(target.size))
    missing = sorted(sites.keys() - points.keys())
    if missing:
        raise ValueError(f"`points` must hold every latent site; {missing} are missing.")
    kept = {k: jnp.asarray(points[k]) for k in sites}
    quiet = handlers.seed(target.quiet, jax.random.key(0))
    return jax.vmap(lambda p: unconstrain_fn(quiet, args, kwargs, p))(kept)


def find_start(
    keys: Array,
    target: Target,
    init_strategy: Callable[..., Any],
    init_params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Start:
    """Return points with a finite potential: those given, or draws of the strategy.

    Raises:
        ValueError: for `init_params` with an infinite potential.
        RuntimeError: if no point with a finite one is found.
    """
    noise = draw(jax.vmap(lambda k: jax.random.fold_in(k, 5))(keys), target.problem.noise)

    def evaluate(z: Array, keys: Array) -> Evaluation:
        one = target.problem.evaluate
        return jax.vmap(lambda z, k, u: one(z, k, u, args, kwargs))(z, keys, noise)

    tries = jnp.ones(keys.shape[:1], jnp.int32)
    if init_params is not None:
        z = jax.vmap(lambda p: ravel_pytree(p)[0])(init_params)
        evaluation = evaluate(z, keys)
        _check(evaluation, given=True)
        return Start(z, noise, evaluation, tries)

    def one_draw(key: Array) -> Array:
        z = initialize_model(
            key,
            target.quiet,
            init_strategy=init_strategy,
            model_args=args,
            model_kwargs=kwargs,
            validate_grad=False,
        ).param_info.z
        return ravel_pytree(z)[0]

    draws = jax.jit(jax.vmap(one_draw))  # op by op it takes seconds

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, evaluation, tries, _ = carry
        return ~jnp.all(jnp.isfinite(evaluation.potential)) & (jnp.max(tries) < MAX_STARTS)

    def again(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        z, evaluation, tries, keys = carry
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 3))(keys)
        bad = ~jnp.isfinite(evaluation.potential)
        z = jnp.where(bad[:, None], draws(keys), z)
        return z, evaluate(z, keys), tries + 1, keys

    z = draws(keys)
    first = (z, evaluate(z, keys), tries, keys)
    z, evaluation, tries, _ = jax.lax.while_loop(unfinished, again, first)
    _check(evaluation, given=False)
    return Start(z, noise, evaluation, tries)


def _check(evaluation: Evaluation, *, given: bool) -> None:
    """Raise where a chain has no start with a finite potential; not under a transformation."""
    if isinstance(evaluation.potential, jax.core.Tracer):
        return
    bad = [int(c) for c in jnp.flatnonzero(~jnp.isfinite(evaluation.potential))]
    if bad and given:
        raise ValueError(
            f"`init_params` must have a finite potential; that of chain(s) {bad} is infinite or "
            "not a number."
        )
    if bad:
        raise RuntimeError(
            f"No starting point with a finite potential in {MAX_STARTS} draws for chain(s) {bad}. "
            "Check the model and its black boxes, or give `init_strategy` or `init_params`."
        )


def _is_data(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and site.get("is_observed", False)
