"""A sampler that ends in a Gaussian layer: no density, but bounds of it and conditional scores.

q(z) = int N(e; 0, I) N(u; m(e), s(e)^2) de with z = loc + L u. For any proposal r(e | u) that
does not look at the e behind u, with w_k = N(e_k) N(u; m(e_k), s(e_k)^2) / r(e_k | u) / |L|:

    E log (1/K)     sum_{k=1..K} w_k  <=  log q(z)     for e_1..e_K ~ r(. | u)              (lower)
    E log (1/(K+1)) sum_{k=0..K} w_k  >=  log q(z)     with e_0 the noise that made z       (upper)

(Burda et al. 2016 eq. 8; Sobolev and Vetrov 2019 theorem 1.) Both tighten as K grows. K = 0 is the
augmented density log w_0, whose ELBO is a lower bound of the evidence in the space of (e, z)
(Ranganath et al. 2016 eq. 6). The score is an average of Gaussian scores,

    grad_z log q(z) = L^-T E_{e | u}[ -(u - m(e)) / s(e)^2 ],

estimated with the weights w_1..w_K, self-normalised.
"""

import functools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import constraints

from implicitppl.distributions._generators import ResidualGenerator
from implicitppl.distributions._implicit import ImplicitDensityError
from implicitppl.distributions._pytree import OrderedDistribution, split_callable

Shape = tuple[int, ...]


class DensityBounds(NamedTuple):
    """Bounds of log q at points of shape (..., D): E lower <= log q <= E upper, shapes (...)."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


class SemiImplicit(OrderedDistribution):
    """The marginal of a `ResidualGenerator`, with bounds of its log density.

    Args:
        generator: the sampler, with its conditional layer and its reverse proposal.
        path_gradient: if True, `log_prob` has the gradient of the draw only: parameters of
            q(e, u) are held fixed inside the density, which leaves the expected gradient of a
            reparameterised ELBO unchanged and removes its noise where q is right (Roeder et al.
            2017). Wrong for objectives that are nonlinear in the weights; `ImplicitELBO` sets it.
        validate_args: as in NumPyro.

    `log_prob(value, intermediates)` works where NumPyro hands over the noise behind the value, as
    it does in every ELBO: the augmented density log w_0 above. It is not log q(value), so stock
    losses report a valid, slightly low ELBO. Without the noise it raises `ImplicitDensityError`;
    `log_density_bounds` and `log_density` are what to call then.

    Cost: `log_prob` is O(D) network passes and O(D^3) an element; bounds K passes more.

    Example:
        >>> import jax
        >>> from implicitppl.distributions import ResidualGenerator, SemiImplicit
        >>> q = SemiImplicit(ResidualGenerator(2, key=jax.random.key(0), sigma=0.2))
        >>> z, noise = q.sample_with_intermediates(jax.random.key(1), (4,))
        >>> exact = -0.5 * (z**2).sum(-1) / 1.04 - jax.numpy.log(2 * jax.numpy.pi * 1.04)
        >>> bool(jax.numpy.allclose(q.log_prob(z, noise), exact, atol=1e-4))  # linear: exact
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    support = constraints.real_vector
    data_names = ("_arrays",)
    aux_names = ("_static", "path_gradient")

    def __init__(
        self,
        generator: ResidualGenerator,
        *,
        path_gradient: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self._arrays, self._static = split_callable(generator)
        self.path_gradient = path_gradient
        super().__init__((), (generator.size,), validate_args=validate_args)

    @property
    def generator(self) -> ResidualGenerator:
        """The generator, with the arrays that it has now."""
        return eqx.combine(self._arrays, self._static)

    @property
    def has_rsample(self) -> bool:
        """True: gradients pass through a draw."""
        return True

    def with_path_gradient(self) -> "SemiImplicit":
        """Returns the same distribution with `path_gradient=True`."""
        return SemiImplicit(self.generator, path_gradient=True)

    def sample_with_intermediates(
        self, key: PRNGKeyArray, sample_shape: Shape = ()
    ) -> tuple[Array, list[Array]]:
        """Returns draws (*sample_shape, D) and the noise and u behind them."""
        value, *behind = _draw(self._arrays, self._static, key, tuple(sample_shape))
        return value, behind

    def sample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Array:
        """Returns draws (*sample_shape, D)."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def rsample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Array:
        """Returns differentiable draws, as `sample` does."""
        return self.sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Returns the augmented log density log w_0 of draws whose noise is known, shape (...)."""
        if not intermediates:
            raise ImplicitDensityError(
                "A `SemiImplicit` distribution has no density in closed form. `log_density_bounds`"
                " and `log_density` bound and estimate it; train with"
                " `implicitppl.infer.ImplicitELBO`."
            )
        generator = self.generator
        arrays = jax.lax.stop_gradient(self._arrays) if self.path_gradient else self._arrays
        held = eqx.combine(arrays, self._static)

        def augmented(noise: Array, u: Array) -> Array:
            return held.log_joint(noise, u) - generator.reverse(u).log_prob(noise)

        return _over_leading(augmented)(*intermediates) - generator.log_abs_det

    def log_density_bounds(
        self, key: PRNGKeyArray, intermediates: list[Any], *, num_inner: int = 64
    ) -> DensityBounds:
        """Returns bounds of log q at draws of `sample_with_intermediates`, each of shape (...).

        Args:
            key: for the proposals.
            intermediates: second result of `sample_with_intermediates`.
            num_inner: K, proposals for each draw.

        Returns:
            `DensityBounds(lower, upper)`, each correct in expectation over the proposals.
        """
        noise, u = intermediates
        weights = self._log_weights(key, u, num_inner)
        generator = self.generator

        def first(noise: Array, u: Array) -> Array:
            return generator.log_joint(noise, u) - generator.reverse(u).log_prob(noise)

        own = _over_leading(first)(noise, u) - generator.log_abs_det
        both = jnp.concatenate([weights, own[..., None]], axis=-1)
        return DensityBounds(_log_mean_exp(weights), _log_mean_exp(both))

    def log_density(self, key: PRNGKeyArray, value: Array, *, num_inner: int = 64) -> Array:
        """Returns the lower bound of log q at any points (..., D); unbiased for q itself."""
        u = _over_leading(self.generator.pull)(jnp.asarray(value))
        return _log_mean_exp(self._log_weights(key, u, num_inner))

    def score(self, key: PRNGKeyArray, value: Array, *, num_inner: int = 64) -> Array:
        """Returns the estimated grad log q at points (..., D), an average of conditional scores.

        The proposals come in antithetic pairs, whose errors cancel where m is close to linear.
        The bias is O(1 / num_inner).
        """
        generator = self.generator
        scale_tril = generator.scale_tril

        def one(value: Array, standard: Array) -> Array:
            u = generator.pull(value)
            noise, weights = _proposals(generator, u, jnp.concatenate([standard, -standard]))
            mean, scale = jax.vmap(generator.conditional)(noise)
            inner = jax.nn.softmax(weights) @ ((mean - u) / scale**2)
            return solve_triangular(scale_tril, inner, lower=True, trans=1)

        value = jnp.asarray(value)
        shape = (*value.shape[:-1], max(num_inner // 2, 1), generator.size)
        return _over_leading(one)(value, jax.random.normal(key, shape, value.dtype))

    def _log_weights(self, key: PRNGKeyArray, u: Array, num_inner: int) -> Array:
        generator = self.generator
        if num_inner < 1:
            raise ValueError(f"`num_inner` must be at least 1; got {num_inner}.")
        standard = jax.random.normal(key, (*u.shape[:-1], num_inner, generator.size), u.dtype)
        weights = _over_leading(lambda u, standard: _proposals(generator, u, standard)[1])
        return weights(u, standard) - generator.log_abs_det


@functools.partial(jax.jit, static_argnums=(1, 3))
def _draw(
    arrays: Any, static: Any, key: PRNGKeyArray, sample_shape: Shape
) -> tuple[Array, Array, Array]:
    """Returns draws, noise and u, each (*sample_shape, D); one program also when called eagerly."""
    generator = eqx.combine(arrays, static)
    shape = (2, *sample_shape, generator.size)
    noise, small = jax.random.normal(key, shape, generator.loc.dtype)

    def draw(noise: Array, small: Array) -> tuple[Array, Array, Array]:
        mean, scale = generator.conditional(noise)
        u = mean + scale * small
        return generator.push(u), noise, u

    return _over_leading(draw)(noise, small)


def _proposals(generator: ResidualGenerator, u: Array, standard: Array) -> tuple[Array, Array]:
    """Returns noise (K, D) drawn from r(. | u), and its log weights (K,) without log |L|."""
    reverse = generator.reverse(u)
    noise = jax.vmap(reverse.colour)(standard)
    weights = jax.vmap(lambda e: generator.log_joint(e, u) - reverse.log_prob(e))(noise)
    return noise, weights


def _over_leading(fn: Any) -> Any:
    """Maps a function of vectors over all leading dimensions of its first argument."""

    def mapped(first: Array, *rest: Array) -> Any:
        out = fn
        for _ in range(first.ndim - 1):
            out = jax.vmap(out)
        return out(first, *rest)

    return mapped


def _log_mean_exp(x: Array) -> Array:
    return logsumexp(x, axis=-1) - jnp.log(x.shape[-1])
