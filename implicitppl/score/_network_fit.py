"""Training of a score network: AdamW, and the best parameters on held-out samples.

One compiled program: a scan over checks, each a scan over steps and then the held-out loss.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.frames import Frame, metric_frame
from implicitppl._core.moments import moments
from implicitppl.score._checks import or_equal
from implicitppl.score._fitted import FittedScore
from implicitppl.score._reference import Reference, fit_reference, reference_name

# Held-out samples, each judged with so many random directions.
_MAX_HELD_OUT, _JUDGE_DRAWS = 2000, 4
_CLIP, _WEIGHT_DECAY = 10.0, 0.1
# Rows whose Jacobians are in memory at once.
_BLOCK = 256


class NetworkInfo(eqx.Module):
    """What the training found.

    Attributes:
        estimator: name of the estimator.
        metric: coordinates in which the network sees the samples.
        reference: "none", "gaussian" or "callable".
        solver: "stochastic gradients".
        num_samples: M.
        losses: (num_checks + 1,) held-out loss of the reference alone, then at every check.
        best: index of the smallest; 0 where the network did not help and is not used.
        explained: not defined; NaN.
        effective_size: 1 / sum w^2, M without weights.
        finite: False where a sample or a parameter is not finite.
    """

    estimator: str = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    reference: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    losses: Float[Array, " checks"]
    best: Int[Array, ""]
    explained: Float[Array, ""]
    effective_size: Float[Array, ""]
    finite: Bool[Array, ""]


class NetworkExpansion(eqx.Module):
    """The network's part of a score, P T f(z); 0 in constant coordinates, and if it is not used.

    The network is held in two halves, so that all leaves are arrays: activations are functions,
    which may not leave a `jit` or `vmap`.
    """

    parameters: Any
    structure: Any = eqx.field(static=True)
    coordinates: Frame
    active: Bool[Array, " R"]

    @property
    def network(self) -> Any:
        """The trained network: (C + D,) in the metric's coordinates to (D,)."""
        return eqx.combine(self.parameters, self.structure)

    def score(self, x: Float[Array, "N R"]) -> Float[Array, "N R"]:
        """Return the network's part of the score for every row."""
        values = jax.vmap(self.network)(self.coordinates.to(x))
        values = jnp.pad(values, ((0, 0), (self.coordinates.num_covariates, 0)))
        score = self.coordinates.score_back(values)
        return jnp.where(self.active[None, :], score, 0)

    def divergence(self, x: Float[Array, "N R"]) -> Float[Array, " N"]:
        """Return its divergence for every row: one directional derivative for each coordinate."""

        def one(row: Float[Array, " R"]) -> Float[Array, ""]:
            return jnp.trace(jax.jacfwd(lambda point: self.score(point[None, :])[0])(row))

        return jax.lax.map(one, x, batch_size=_BLOCK)


@eqx.filter_jit
def fit_network(
    estimator: Any,
    samples: Array,
    weights: Array | None,
    key: Array,
    num_covariates: int,
) -> FittedScore:
    """Return the score of a `NetworkEstimator` trained on rows (c, x)."""
    samples, weights = jax.lax.stop_gradient((samples, weights))
    size, dimension = samples.shape[0], samples.shape[1] - num_covariates
    w = or_equal(weights, samples)
    m = moments(samples, w)
    where = metric_frame(estimator.metric, m, num_covariates)
    reference = fit_reference(estimator.reference, m, num_covariates)
    build_key, order_key, train_key = jax.random.split(key, 3)
    # Samples that do not count come last, so that both parts of the split have some that do.
    order = jnp.argsort(jax.random.uniform(order_key, (size,)) + (w <= 0).astype(float))
    z = where.to(samples)[order]
    network = _build(estimator, build_key, samples.shape[1], dimension, z)
    trained, used, losses = _train(estimator, network, z, w[order], where, reference, train_key)
    leaves = jax.tree.leaves(eqx.filter(trained, eqx.is_inexact_array))
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in (samples, *leaves)]
    info = NetworkInfo(
        estimator=type(estimator).__name__,
        metric=estimator.metric,
        reference=reference_name(estimator.reference),
        solver="stochastic gradients",
        num_samples=size,
        losses=losses,
        best=jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf)),
        explained=jnp.asarray(jnp.nan, z.dtype),
        effective_size=m.size,
        finite=jnp.all(jnp.stack(finite)),
    )
    parts = eqx.partition(trained, eqx.is_array)
    expansion = NetworkExpansion(*parts, where, m.varies & used)
    return FittedScore(info, expansion, reference, dimension, num_covariates=num_covariates)


def _build(estimator: Any, key: Array, num_in: int, num_out: int, z: Array) -> Any:
    """Return the untrained network in the dtype of the samples."""
    if estimator.network is None:
        network = eqx.nn.MLP(
            num_in, num_out, estimator.width, estimator.depth, jax.nn.silu, key=key
        )
        network = eqx.tree_at(
            lambda n: n.layers[-1],
            network,
            replace_fn=lambda layer: jax.tree.map(jnp.zeros_like, layer),
        )
    else:
        network = estimator.network(key, num_in, num_out)
    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    network = eqx.combine(jax.tree.map(lambda leaf: leaf.astype(z.dtype), arrays), static)
    found = jax.eval_shape(network, z[0]).shape
    if found != (num_out,):
        raise ValueError(f"`network` must map ({num_in},) to ({num_out},); got shape {found}.")
    return network


def _train(
    estimator: Any,
    network: Any,
    z: Float[Array, "M R"],
    weights: Float[Array, " M"],
    where: Frame,
    reference: Reference | None,
    key: Array,
) -> tuple[Any, Bool[Array, ""], Float[Array, " checks"]]:
    """Return the network with the smallest held-out loss, whether any helped, and the losses."""
    num = where.num_covariates
    held = max(1, min(z.shape[0] // 10, _MAX_HELD_OUT))
    judge_key, steps_key = jax.random.split(key)
    every = z.shape[0] // held
    judging = np.arange(held) * every
    training = np.setdiff1d(np.arange(z.shape[0]), judging)
    cumulative = jnp.cumsum(weights[training])
    points = jnp.repeat(z[judging], _JUDGE_DRAWS, axis=0)
    judge_weights = jnp.repeat(weights[judging], _JUDGE_DRAWS)
    judges = estimator.directions(judge_key, (points.shape[0], z.shape[1] - num), z.dtype)
    parameters, static = eqx.partition(network, eqx.is_inexact_array)

    def losses(parameters: Any, rows: Array, directions: Array) -> Array:
        """Return the loss of every row; without parameters, of the reference alone."""
        zero = jnp.zeros((z.shape[1] - num,), z.dtype)
        model = (lambda row: zero) if parameters is None else eqx.combine(parameters, static)

        def score(row: Array) -> Array:
            value = model(row)
            if reference is None:
                return value
            base = reference.score(where.back(row[None, :]))
            return value + where.score_to(base)[0, num:]

        return jax.vmap(lambda row, v: estimator.loss(score, row, v, num))(rows, directions)

    steps = -(-estimator.num_steps // estimator.num_checks)
    schedule = optax.cosine_decay_schedule(
        estimator.learning_rate, steps * estimator.num_checks, alpha=0.01
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(_CLIP), optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)
    )

    def judged(parameters: Any) -> Array:
        return judge_weights @ losses(parameters, points, judges) / jnp.sum(judge_weights)

    def step(state: tuple[Any, Any], step_key: Array) -> tuple[tuple[Any, Any], None]:
        parameters, memory = state
        row_key, direction_key = jax.random.split(step_key)
        share = cumulative[-1] * jax.random.uniform(row_key, (estimator.batch_size,), z.dtype)
        place = jnp.searchsorted(cumulative, share, side="right")
        rows = z[jnp.asarray(training)[jnp.minimum(place, training.size - 1)]]
        shape = (estimator.batch_size, z.shape[1] - num)
        directions = estimator.directions(direction_key, shape, z.dtype)
        gradient = jax.grad(lambda p: jnp.mean(losses(p, rows, directions)))(parameters)
        # optax promotes its integer step count, which the caller may have forbidden.
        with jax.numpy_dtype_promotion("standard"):
            update, memory = optimizer.update(gradient, memory, parameters)
        return (optax.apply_updates(parameters, update), memory), None

    def check(carry: tuple[Any, ...], check_key: Array) -> tuple[tuple[Any, ...], Array]:
        state, best, smallest = carry
        state, _ = jax.lax.scan(step, state, jax.random.split(check_key, steps))
        loss = judged(state[0])
        better = loss < smallest  # False for NaN
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state[0], best)
        return (state, best, jnp.where(better, loss, smallest)), loss

    first = judged(None)
    carry = ((parameters, optimizer.init(parameters)), parameters, first)
    keys = jax.random.split(steps_key, estimator.num_checks)
    (_, best, smallest), later = jax.lax.scan(check, carry, keys)
    return eqx.combine(best, static), smallest < first, jnp.concatenate([first[None], later])
