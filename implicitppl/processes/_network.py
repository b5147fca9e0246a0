"""Bayesian networks: functions whose weights are drawn, one set of them for each function.

    f(x) = W_L a(... a(W_1 x + b_1) ...) + b_L,   every weight N(m, s^2) of its own

Inputs and outputs are expected standardised: initial weights assume inputs of about unit size.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.checks import check_count, check_positive
from implicitppl._core.points import check_width
from implicitppl.processes._parametric import Function, ParametricProcess

Activation = Callable[[Array], Array]
Weights = list[tuple[Array, Array]]


class GaussianLayer(eqx.Module):
    """An affine map with independent normal weights and biases; scales are kept by logarithm."""

    weight: Float[Array, "out in"]
    weight_log_scale: Float[Array, "out in"]
    bias: Float[Array, " out"]
    bias_log_scale: Float[Array, " out"]

    def deviate(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Return one draw of weights and biases, less their means."""
        weight_key, bias_key = jax.random.split(key)
        return _normal(weight_key, self.weight_log_scale), _normal(bias_key, self.bias_log_scale)


class BayesianNetwork(ParametricProcess):
    """A network with independent normal weights, the means and scales of which are learned.

    Args:
        in_size: D, coordinates of an input.
        width: units of each hidden layer.
        depth: number of hidden layers; 0 is a linear function.
        out_size: P; values have shape (N,) where it is 1, (N, P) otherwise.
        key: random key of the initial means, Xavier normal; initial biases are 0.
        activation: of the hidden units. The default is that of the published regression
            experiments; its functions are linear far from the data. `jnp.tanh` gives smooth
            functions that level off.
        initial_scale: standard deviation of every weight at the start, the published e^-2; they
            used e^-5 for toys, whose fit starts nearly deterministic.

    In a guide, `q = eqx_module("q", network)` of `numpyro.contrib.module` registers means and
    log scales, and `numpyro.sample("f", q(x))` is a function. `BayesianNetwork.prior` makes one
    with zero means, for a model.

    Raises:
        ValueError: if a size or scale is not positive, or inputs have other coordinates.

    Cost of S functions at N points: O(S W + S N W) for W weights.

    Reference: Sun, Zhang, Shi and Grosse, Functional variational Bayesian neural networks, ICLR
    2019.

    Example:
        >>> import jax
        >>> from implicitppl.processes import BayesianNetwork
        >>> network = BayesianNetwork(3, key=jax.random.key(0))
        >>> network.draw(jax.random.key(1), 5)(jax.numpy.zeros((4, 3))).shape
        (5, 4)
    """

    layers: tuple[GaussianLayer, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        width: int = 50,
        depth: int = 1,
        out_size: int = 1,
        *,
        key: PRNGKeyArray,
        activation: Activation = jax.nn.relu,
        initial_scale: float = math.exp(-2),
    ):
        check_positive("initial_scale", initial_scale)
        sizes = _sizes(in_size, width, depth, out_size)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            _layer(
                math.sqrt(2 / (fan_in + fan_out)) * jax.random.normal(k, (fan_out, fan_in)),
                initial_scale,
                initial_scale,
            )
            for k, (fan_in, fan_out) in zip(keys, pairwise(sizes), strict=True)
        )
        self.activation = activation

    @classmethod
    def prior(
        cls,
        in_size: int,
        width: int = 50,
        depth: int = 1,
        out_size: int = 1,
        *,
        weight_scale: float = 1.0,
        bias_scale: float = 1.0,
        activation: Activation = jax.nn.relu,
    ) -> "BayesianNetwork":
        """Return a network of zero-mean weights, N(0, weight_scale^2 / fan_in).

        Args:
            in_size: D.
            width: units of each hidden layer; the variance of f does not grow with it.
            depth: number of hidden layers.
            out_size: P.
            weight_scale: standard deviation of a weight times the root of its layer's inputs.
            bias_scale: standard deviation of a bias.
            activation: of the hidden units.

        Raises:
            ValueError: if a size or scale is not positive.
        """
        check_positive("weight_scale", weight_scale)
        check_positive("bias_scale", bias_scale)
        sizes = _sizes(in_size, width, depth, out_size)
        # Not through the constructor's random start, of which nothing would be kept.
        self = cls(in_size, width, depth, out_size, key=jax.random.key(0), activation=activation)
        layers = tuple(
            _layer(jnp.zeros((fan_out, fan_in)), weight_scale / math.sqrt(fan_in), bias_scale)
            for fan_in, fan_out in pairwise(sizes)
        )
        return eqx.tree_at(lambda network: network.layers, self, layers)

    @property
    def means(self) -> Weights:
        """Means of the weights and biases of every layer."""
        return [(layer.weight, layer.bias) for layer in self.layers]

    def deviate(self, key: PRNGKeyArray) -> Weights:
        """Return one draw of all weights and biases, less their means."""
        keys = jax.random.split(key, len(self.layers))
        return [layer.deviate(k) for layer, k in zip(self.layers, keys, strict=True)]

    def function(self, key: PRNGKeyArray) -> Function:
        """Return the network of one draw of all weights."""
        drawn = jax.tree.map(jnp.add, self.means, self.deviate(key))
        return lambda x: self.evaluate(drawn, x)

    def evaluate(self, weights: Weights, x: Float[Array, "N D"]) -> Array:
        """Return the values, (N,) or (N, P), at given weights and biases of every layer."""
        check_width(x, self.layers[0].weight.shape[1])
        hidden = x
        for index, (weight, bias) in enumerate(weights):
            hidden = (self.activation(hidden) if index else hidden) @ weight.T + bias
        return one_output(hidden)


class NoiseNetwork(ParametricProcess):
    """A deterministic network that takes noise beside the inputs: f(x) = g(x, z), z ~ N(0, I_K).

    The same z for all points makes f one function. Its values have any distribution that the
    network can make of K normal numbers, without a density.

    Args:
        in_size: D, coordinates of an input.
        noise_size: K; functions lie on a surface of K dimensions.
        width: units of each hidden layer.
        depth: number of hidden layers.
        out_size: P; values have shape (N,) where it is 1.
        key: random key of the initial weights.
        activation: of the hidden units.

    Raises:
        ValueError: if a size is not positive, or inputs have other coordinates.

    Example:
        >>> import jax
        >>> from implicitppl.processes import NoiseNetwork
        >>> network = NoiseNetwork(3, noise_size=2, key=jax.random.key(0))
        >>> network.draw(jax.random.key(1), 5)(jax.numpy.zeros((4, 3))).shape
        (5, 4)
    """

    network: eqx.nn.MLP
    in_size: int = eqx.field(static=True)
    noise_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        noise_size: int = 10,
        width: int = 50,
        depth: int = 1,
        out_size: int = 1,
        *,
        key: PRNGKeyArray,
        activation: Activation = jax.nn.relu,
    ):
        _sizes(in_size, width, depth, out_size)
        check_count("noise_size", noise_size)
        self.network = eqx.nn.MLP(in_size + noise_size, out_size, width, depth, activation, key=key)
        self.in_size, self.noise_size = in_size, noise_size

    def function(self, key: PRNGKeyArray) -> Function:
        """Return the network at one draw of the noise."""
        noise = jax.random.normal(key, (self.noise_size,))

        def values(x: Float[Array, "N D"]) -> Array:
            check_width(x, self.in_size)
            return one_output(jax.vmap(lambda row: self.network(jnp.concatenate([row, noise])))(x))

        return values


class NetworkEnsemble(ParametricProcess):
    """One of K deterministic networks, each as probable as the others.

    Args:
        num_networks: K.
        in_size: D, coordinates of an input.
        width: units of each hidden layer.
        depth: number of hidden layers.
        out_size: P; values have shape (N,) where it is 1.
        key: random key of the initial weights.
        activation: of the hidden units.

    A draw of many functions repeats them; their distribution has no density at all, so a
    divergence from a prior needs noise added to both.

    Raises:
        ValueError: if a size is not positive, or inputs have other coordinates.

    Example:
        >>> import jax
        >>> from implicitppl.processes import NetworkEnsemble
        >>> ensemble = NetworkEnsemble(5, 3, key=jax.random.key(0))
        >>> ensemble.draw(jax.random.key(1), 7)(jax.numpy.zeros((4, 3))).shape
        (7, 4)
    """

    networks: eqx.nn.MLP
    num_networks: int = eqx.field(static=True)
    in_size: int = eqx.field(static=True)

    def __init__(
        self,
        num_networks: int,
        in_size: int,
        width: int = 50,
        depth: int = 1,
        out_size: int = 1,
        *,
        key: PRNGKeyArray,
        activation: Activation = jax.nn.relu,
    ):
        check_count("num_networks", num_networks)
        _sizes(in_size, width, depth, out_size)

        def make(key: PRNGKeyArray) -> eqx.nn.MLP:
            return eqx.nn.MLP(in_size, out_size, width, depth, activation, key=key)

        self.networks = eqx.filter_vmap(make)(jax.random.split(key, num_networks))
        self.num_networks, self.in_size = num_networks, in_size

    def function(self, key: PRNGKeyArray) -> Function:
        """Return one of the networks."""
        index = jax.random.randint(key, (), 0, self.num_networks)
        arrays, static = eqx.partition(self.networks, eqx.is_array)
        network = eqx.combine(jax.tree.map(lambda array: array[index], arrays), static)

        def values(x: Float[Array, "N D"]) -> Array:
            check_width(x, self.in_size)
            return one_output(jax.vmap(network)(x))

        return values


def one_output(values: Float[Array, "N P"]) -> Float[Array, "N *P"]:
    """Return (N,) values where there is one output."""
    return values[:, 0] if values.shape[1] == 1 else values


def _sizes(in_size: int, width: int, depth: int, out_size: int) -> list[int]:
    """Return the numbers of units from input to output."""
    check_count("in_size", in_size)
    check_count("width", width)
    check_count("depth", depth, 0)
    check_count("out_size", out_size)
    return [in_size, *(depth * [width]), out_size]


def _layer(mean: Array, weight_scale: float, bias_scale: float) -> GaussianLayer:
    bias = jnp.zeros(mean.shape[:1], mean.dtype)
    return GaussianLayer(
        mean,
        jnp.full_like(mean, math.log(weight_scale)),
        bias,
        jnp.full_like(bias, math.log(bias_scale)),
    )


def _normal(key: PRNGKeyArray, log_scale: Array) -> Array:
    return jnp.exp(log_scale) * jax.random.normal(key, log_scale.shape, log_scale.dtype)
