"""A Bayesian network made linear in its weights: a Gaussian process with a weight space.

    f(x) = g(x; m) + J(x) (w - m),   w ~ N(m, diag(s^2));   k(x, y) = J(x) diag(s^2) J(y)'

with g the network and J(x) its derivative by the weights at their means m. Mean and covariance are
exact at any number of points, where those of the network itself have to be taken from draws.

Cinquin and Bamler (2024), arXiv 2406.04317; Rudner et al. (2022), arXiv 2312.17199.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.points import as_points
from implicitppl.processes._gaussian.base import AbstractGaussianProcess
from implicitppl.processes._network import BayesianNetwork, Weights
from implicitppl.processes._parametric import Function, FunctionDraws


class LinearizedNetwork(AbstractGaussianProcess):
    """The Gaussian process of a Bayesian network's first-order expansion around its mean weights.

    Args:
        network: a `BayesianNetwork` of one output, whose means and log scales are learned; the
            derivative depends on the means, and gradients pass through it too.

    As the guide of a `FunctionalELBO` its moments are exact: any number of points can be compared
    from few particles, all rows of the data at once too. Several outputs are processes of their
    own, `stack`.

    At depth 0 it is the law of the network. With hidden layers it is near that law while scales
    are small; draws of the two with equal keys have equal weights. Predict with what was fitted:
    the network of the same weights is another process. Far from the data its deviation grows as
    the derivative does, for ReLU units in proportion to the distance.

    At N > W points, for W weights, the values lie on a plane: `log_prob` is then that of the least
    jitter that works, and says nothing; give `noise_scale`, or compare with a divergence that
    adds noise.

    Raises:
        ValueError: if `network` is something else or has several outputs, or inputs have other
            coordinates.

    Cost at N points: mean O(N W); variance O(N W) time and memory; covariance O(N^2 W); a draw of
    S functions O(S N W), by derivatives in one direction, without a matrix of N x N or N x W.

    Reference: Cinquin and Bamler, Regularized KL-divergence for well-defined function-space
    variational inference in Bayesian neural networks, UAI 2025.

    Example:
        >>> import jax
        >>> from implicitppl.processes import BayesianNetwork, LinearizedNetwork
        >>> process = LinearizedNetwork(BayesianNetwork(3, key=jax.random.key(0)))
        >>> process(jax.numpy.zeros((4, 3))).covariance_matrix.shape
        (4, 4)
        >>> process.draw(jax.random.key(1), 5)(jax.numpy.zeros((4000, 3))).shape
        (5, 4000)
    """

    network: BayesianNetwork

    def __init__(self, network: BayesianNetwork | Any):
        if not isinstance(network, BayesianNetwork):
            raise ValueError(f"`network` must be a `BayesianNetwork`; got {network!r}.")
        if network.layers[-1].bias.shape != (1,):
            raise ValueError(
                "`network` must have one output, and `stack` makes several; "
                f"got {network.layers[-1].bias.shape[0]}."
            )
        self.network = network

    @property
    def has_weight_space(self) -> bool:
        """True: draws are weights."""
        return True

    def function(self, key: PRNGKeyArray) -> Function:
        """Return the expansion at one draw of all weights."""
        means, deviations = self.network.means, self.network.deviate(key)

        def values(x: Float[Array, "N D"]) -> Array:
            at_means, change = jax.jvp(
                lambda weights: self.network.evaluate(weights, x), (means,), (deviations,)
            )
            return at_means + change

        return values

    def draw(self, key: PRNGKeyArray, num_samples: int = 1) -> FunctionDraws:
        """Return S functions, each of one draw of the weights; the same key gives the same ones."""
        return FunctionDraws(self, jax.random.split(key, num_samples))

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the network at its mean weights, at every point of (N, D) or (N,)."""
        return self.network.evaluate(self.network.means, as_points("x", x))

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,)."""
        return self.mean_at(x), jnp.sum(self._root(x) ** 2, axis=1)

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        left = self._root(x)
        right = left if y is None else self._root(y)
        return jnp.matmul(left, right.T, precision="highest")

    def _root(self, x: ArrayLike) -> Float[Array, "N W"]:
        """Return J(x) diag(s), a row for each point."""
        points = as_points("x", x)
        # A derivative has the dtype of the weights: float32 ones would round it at float64 points.
        dtype = jnp.result_type(points, self.network.means[0][0])
        weights = jax.tree.map(lambda mean: mean.astype(dtype), self.network.means)

        def value(weights: Weights, point: Float[Array, " D"]) -> Array:
            return self.network.evaluate(weights, point[None])[0]

        slopes = jax.vmap(jax.grad(value), (None, 0))(weights, points)
        log_scales = [(la.weight_log_scale, la.bias_log_scale) for la in self.network.layers]
        parts = jax.tree.map(
            lambda slope, log_scale: (slope * jnp.exp(log_scale)).reshape(points.shape[0], -1),
            slopes,
            log_scales,
        )
        return jnp.concatenate(jax.tree.leaves(parts), axis=1)
