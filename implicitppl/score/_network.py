"""Score networks: the residual of a reference, trained by score matching, for large samples.

    s(x) = s0(x) + P T f(z(x)),   f a network in the metric's coordinates z

    sliced      E[|s(z)|^2 / 2 + v^T (ds/dz) v],                         v = +-1, one jvp a sample
    denoising   E[|s(z + t e)|^2 / 2 + e^T (s(z + t e) - s(z - t e)) / (2 t)],   e ~ N(0, I)

The second is the usual E|s(z + t e) + e/t|^2 / 2 up to a constant, averaged over +-e, so that its
variance stays bounded as t -> 0; it estimates the score of the samples with noise t added.

A tenth of the samples is held out, and the parameters with the smallest held-out loss are returned;
where none beats the reference alone, the reference is.

Song, Garg, Shi, Ermon, "Sliced score matching", UAI 2019, equation (8); Vincent, "A connection
between score matching and denoising autoencoders", Neural Computation 23 (2011), equation (8).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from implicitppl._core.checks import check_positive
from implicitppl._core.frames import check_metric
from implicitppl.score._contract import Estimator
from implicitppl.score._fitted import FittedScore
from implicitppl.score._network_fit import fit_network
from implicitppl.score._reference import ReferenceLike, as_reference
from implicitppl.score._sample import Sample

Score = Callable[[Array], Array]
Build = Callable[[Array, int, int], Any]


class NetworkEstimator(Estimator):
    """A score network trained by a loss that sees samples only; see its two kinds.

    The `key` of `fit` decides the initial network, the split and the batches; without one it is a
    fixed one. `info` is a `NetworkInfo`.

    Cost of `fit` O(num_steps batch_size) network evaluations with derivatives, whatever M.
    """

    network: Build | None = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    num_checks: int = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    reference: eqx.Module | None

    def __init__(
        self,
        *,
        network: Build | None = None,
        width: int = 128,
        depth: int = 2,
        num_steps: int = 3000,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        num_checks: int = 20,
        metric: str = "whitened",
        reference: ReferenceLike = "gaussian",
    ):
        check_metric(metric)
        check_positive("learning_rate", learning_rate)
        for name, value in (
            ("width", width),
            ("depth", depth),
            ("num_steps", num_steps),
            ("batch_size", batch_size),
            ("num_checks", num_checks),
        ):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1; got {value!r}.")
        if network is not None and not callable(network):
            raise ValueError(
                "`network` must be a function of a key, an input and an output size; got "
                f"{network!r}."
            )
        if num_checks > num_steps:
            raise ValueError(f"`num_checks` must be at most `num_steps`; got {num_checks}.")
        self.network = network
        self.width = width
        self.depth = depth
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.num_checks = num_checks
        self.metric = metric
        self.reference = as_reference(reference)

    @abstractmethod
    def loss(self, score: Score, x: Array, direction: Array) -> Array:
        """Return the loss of a score function at x (D,), for one random direction (D,)."""

    @abstractmethod
    def directions(self, key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
        """Return random directions (B, D)."""

    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        return fit_network(self, sample, jax.random.key(0) if key is None else key)


class SlicedScoreMatching(NetworkEstimator):
    """Network trained by sliced score matching, in its form with reduced variance.

    Args:
        network: function of a key, an input and an output size to an Equinox module that maps
            (C + D,) to (D,) and is differentiable twice; None for a perceptron of the next two,
            with SiLU units and an output layer that starts at 0.
        width: units of a layer.
        depth: hidden layers.
        num_steps: of AdamW, weight decay .1, on a cosine schedule; rounded up to a multiple of
            `num_checks`.
        batch_size: samples of a step, drawn with replacement.
        learning_rate: its largest value.
        num_checks: how often the held-out loss is taken.
        metric: coordinates of the network; "whitened" lets every affine map of the samples map
            the score exactly.
        reference: None, "gaussian" or a function of one point, and of its covariates if there are
            any: what is not learned.

    Raises:
        ValueError: for a value outside its range, an unknown metric or reference.

    Cost of `fit` O(num_steps batch_size width (width + D)), whatever M; of a query O(width
    (width + D)). For a hundred thousand samples and more; on a few thousand it memorises them,
    and the held-out loss stops it at or near the reference: use `select` there.

    Reference: Song, Garg, Shi, Ermon, "Sliced score matching", UAI 2019, equation (8).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import SlicedScoreMatching
        >>> samples = jax.random.logistic(jax.random.key(0), (5000, 1))
        >>> fitted = SlicedScoreMatching(width=16, num_steps=300).fit(samples)
        >>> round(float(fitted(jnp.array([4.0]))[0]), 0)  # truth -tanh(2) = -.96; a Gaussian -1.2
        -1.0
    """

    def __init__(self, **options: Any):
        super().__init__(**options)

    def loss(self, score: Score, x: Array, direction: Array) -> Array:
        value, along = jax.jvp(score, (x,), (direction,))
        return 0.5 * value @ value + direction @ along

    def directions(self, key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
        return jax.random.rademacher(key, shape, dtype)


class DenoisingScoreMatching(NetworkEstimator):
    """Network trained to denoise: the score of the samples with a little noise added.

    Args:
        noise: t, standard deviation of the noise, in the coordinates of `metric`. Where q is
            narrower than a few t in some direction its score is too small: by a factor
            1 / (1 + t^2 / v) for a variance v.
        network: function of a key, an input and an output size to an Equinox module that maps
            (C + D,) to (D,); None for a perceptron, as for `SlicedScoreMatching`, which see for
            the other arguments too.
        width: units of a layer.
        depth: hidden layers.
        num_steps: of AdamW.
        batch_size: samples of a step.
        learning_rate: its largest value.
        num_checks: how often the held-out loss is taken.
        metric: coordinates of the network.
        reference: None, "gaussian" or a function of one point, and of its covariates if there are
            any: what is not learned.

    Raises:
        ValueError: for a value outside its range, an unknown metric or reference.

    Cost as for `SlicedScoreMatching`, without second derivatives of the network. Its held-out
    loss belongs to the noisy samples, and is not comparable between values of `noise`.

    Reference: Vincent, Neural Computation 23 (2011), equation (8).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from implicitppl.score import DenoisingScoreMatching
        >>> samples = jax.random.logistic(jax.random.key(0), (5000, 1))
        >>> fitted = DenoisingScoreMatching(width=16, num_steps=300).fit(samples)
        >>> round(float(fitted(jnp.array([4.0]))[0]), 0)
        -1.0
    """

    noise: ArrayLike

    def __init__(self, *, noise: ArrayLike = 0.03, **options: Any):
        check_positive("noise", noise)
        super().__init__(**options)
        self.noise = noise

    def loss(self, score: Score, x: Array, direction: Array) -> Array:
        noise = jnp.asarray(self.noise, x.dtype)
        up, down = score(x + noise * direction), score(x - noise * direction)
        return 0.25 * (up @ up + down @ down) + 0.5 * direction @ (up - down) / noise

    def directions(self, key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
        return jax.random.normal(key, shape, dtype)
