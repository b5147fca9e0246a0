"""Training of a score network: AdamW, and the best parameters on held-out samples."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.frames import Frame
from implicitppl._train.descent import Descent, HeldOut, descend
from implicitppl.score._field import Field
from implicitppl.score._fitted import FitInfo, FittedScore, base_info, make_fitted
from implicitppl.score._reference import fit_reference, reference_name
from implicitppl.score._sample import Sample

# Held-out samples, each judged with so many random directions.
_MAX_HELD_OUT, _JUDGE_DRAWS = 2000, 4
_CLIP, _WEIGHT_DECAY = 10.0, 0.1

Score = Callable[[Float[Array, " R"]], Float[Array, " D"]]


class NetworkInfo(FitInfo):
    """What the training found.

    Attributes:
        estimator: name of the estimator.
        solver: "stochastic gradients".
        num_samples: M.
        dtype: of the samples, and of the scores.
        effective_size: 1 / sum w^2, M without weights.
        finite: False where a sample or a parameter is not finite.
        metric: coordinates in which the network sees the samples.
        reference: "none", "gaussian" or "callable".
        losses: (num_checks + 1,) held-out loss of the reference alone, then at every check.
        best: index of the smallest; 0 where the network did not help and is not used.
    """

    metric: str = eqx.field(static=True)
    reference: str = eqx.field(static=True)
    losses: Float[Array, " checks"]
    best: Int[Array, ""]


class NetworkExpansion(Field):
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


def fit_network(estimator: Any, sample: Sample, key: Array) -> FittedScore:
    """Return the score of a `NetworkEstimator`, trained."""
    frame = sample.frame(estimator.metric)
    reference = fit_reference(estimator.reference, sample)
    build_key, order_key, train_key = jax.random.split(key, 3)
    shuffled = _shuffled(sample.seen_in(frame), order_key)
    network = _build(estimator, build_key, shuffled)
    parameters, static = eqx.partition(network, eqx.is_inexact_array)
    base = _reference_score(frame, reference, shuffled)
    alone, descent = _train(estimator, parameters, static, base, shuffled, train_key)
    trained = eqx.combine(descent.best, static)
    losses = jnp.concatenate([alone[None], descent.losses])
    info = NetworkInfo(
        **base_info(type(estimator).__name__, sample, *jax.tree.leaves(descent.best)),
        solver="stochastic gradients",
        metric=estimator.metric,
        reference=reference_name(estimator.reference),
        losses=losses,
        best=jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf)),
    )
    active = sample.moments.varies & (descent.best_loss < alone)
    expansion = NetworkExpansion(*eqx.partition(trained, eqx.is_array), frame, active)
    return make_fitted(sample, info, reference, expansion)


def _shuffled(sample: Sample, key: Array) -> Sample:
    """Return a random order, samples that do not count last: both parts of a split have some."""
    order = jnp.argsort(jax.random.uniform(key, (sample.size,)) + (~sample.counts).astype(float))
    weights = sample.weights[order]
    return Sample(sample.rows[order], weights, sample.num_covariates, sample.is_weighted)


def _build(estimator: Any, key: Array, sample: Sample) -> Any:
    """Return the untrained network in the dtype of the samples."""
    num_in, num_out = sample.rows.shape[1], sample.dimension
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
    network = eqx.combine(jax.tree.map(lambda leaf: leaf.astype(sample.dtype), arrays), static)
    shape = jax.eval_shape(network, sample.rows[0]).shape
    if shape != (num_out,):
        raise ValueError(f"`network` must map ({num_in},) to ({num_out},); got shape {shape}.")
    return network


def _reference_score(frame: Frame, reference: Field | None, sample: Sample) -> Score:
    """Return the reference's score of x as a function of one row, in the frame's coordinates."""
    if reference is None:
        return lambda row: jnp.zeros((sample.dimension,), sample.dtype)

    def base(row: Float[Array, " R"]) -> Float[Array, " D"]:
        in_data = reference.score(frame.back(row[None, :]))
        return frame.score_to(in_data)[0, sample.num_covariates :]

    return base


def _train(
    estimator: Any,
    parameters: Any,
    static: Any,
    base: Score,
    sample: Sample,
    key: Array,
) -> tuple[Float[Array, ""], Descent]:
    """Return the held-out loss of the reference alone, and the descent of the network's."""
    judge_key, steps_key = jax.random.split(key)
    judged, trained = _split(sample)
    points = jnp.repeat(judged.rows, _JUDGE_DRAWS, axis=0)
    weights = jnp.repeat(judged.weights, _JUDGE_DRAWS)
    shape = (points.shape[0], sample.dimension)
    directions = estimator.directions(judge_key, shape, sample.dtype)
    cumulative = jnp.cumsum(trained.weights)

    def losses(network: Score, rows: Array, directions: Array) -> Float[Array, " n"]:
        def one(row: Array, direction: Array) -> Float[Array, ""]:
            c, x = row[: sample.num_covariates], row[sample.num_covariates :]

            def score(x: Array) -> Array:
                row = jnp.concatenate([c, x])
                return network(row) + base(row)

            return estimator.loss(score, x, direction)

        return jax.vmap(one)(rows, directions)

    def held_out(network: Score) -> Float[Array, ""]:
        return weights @ losses(network, points, directions) / jnp.sum(weights)

    def batch(parameters: Any, key: Array) -> Float[Array, ""]:
        row_key, direction_key = jax.random.split(key)
        rows = _draw(row_key, trained.rows, cumulative, estimator.batch_size)
        shape = (estimator.batch_size, sample.dimension)
        directions = estimator.directions(direction_key, shape, sample.dtype)
        return jnp.mean(losses(eqx.combine(parameters, static), rows, directions))

    every = -(-estimator.num_steps // estimator.num_checks)
    num_steps = every * estimator.num_checks
    keys = jax.random.split(steps_key, estimator.num_checks)
    keys = jax.vmap(lambda k: jax.random.split(k, every))(keys)
    alone = held_out(lambda row: jnp.zeros((sample.dimension,), sample.dtype))
    return alone, descend(
        batch,
        parameters,
        _optimiser(estimator.learning_rate, num_steps),
        num_steps,
        keys=keys.reshape(num_steps, *keys.shape[2:]),
        held_out=HeldOut(lambda p: held_out(eqx.combine(p, static)), every, alone),
    )


def _split(sample: Sample) -> tuple[Sample, Sample]:
    """Return a tenth of the samples, evenly spaced, and the others, with the weights they had."""
    held = max(1, min(sample.size // 10, _MAX_HELD_OUT))
    judging = np.arange(held) * (sample.size // held)
    training = np.setdiff1d(np.arange(sample.size), judging)
    num, weighted = sample.num_covariates, sample.is_weighted
    return (
        Sample(sample.rows[judging], sample.weights[judging], num, weighted),
        Sample(sample.rows[training], sample.weights[training], num, weighted),
    )


def _draw(
    key: Array, rows: Float[Array, "M R"], cumulative: Float[Array, " M"], num: int
) -> Float[Array, "num R"]:
    """Return rows drawn with replacement, each as often as its weight says."""
    share = cumulative[-1] * jax.random.uniform(key, (num,), rows.dtype)
    index = jnp.searchsorted(cumulative, share, side="right")
    return rows[jnp.minimum(index, rows.shape[0] - 1)]


def _optimiser(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=0.01)
    return optax.chain(
        optax.clip_by_global_norm(_CLIP), optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)
    )
