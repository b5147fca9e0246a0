"""A sampler that ends in a Gaussian layer, as a NumPyro distribution: densities, bounds, scores.

q(z) = int N(e; 0, (1 - sigma^2) I) N(w; m(e), sigma^2 J J^T) de with z = loc + A w
(`implicitppl.distributions.ResidualGenerator`). Two ways to its density:

*Change of variables.* Where m is one-to-one, w is m(e*) up to O(sigma^2) with e* = e + sigma n, so

    log q(z) = log N(e*; 0, I) - log|det A m'(e*)|.

It costs nothing but the Jacobian when the noise behind z is known, and it is what training uses. A
map that folds has more than one e* for a z, and this density, of one of them, is then too low.

*Bounds.* For any proposal r(e | z) that does not look at the e behind z, with
v_k = N(e_k) N(w; m(e_k), sigma^2 J_k J_k^T) / r(e_k | z) / |A|:

    E log (1/K)     sum_{k=1..K} v_k  <=  log q(z)     for e_1..e_K ~ r(. | z)              (lower)
    E log (1/(K+1)) sum_{k=0..K} v_k  >=  log q(z)     with e_0 the noise that made z       (upper)

(Burda et al. 2016 eq. 8; Sobolev and Vetrov 2019 theorem 1.) They hold whatever m does. r is what
the posterior of e would be if m were linear around the solution of m(e^) = w that Newton's method
finds: N((1 - sigma^2) e^, sigma^2 (1 - sigma^2) I). If the two bounds meet, m is one-to-one where
the draws are, and all three agree.
"""

import functools
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import constraints

from implicitppl.distributions._implicit import ImplicitDensityError
from implicitppl.distributions._pytree import OrderedDistribution, split_callable
from implicitppl.distributions._residual import ResidualGenerator, standard_normal

Shape = tuple[int, ...]
MIN_MARGIN = -1.2
FOLDED_WEIGHT = 10.0  # nats for each unit of the margin: more than the loss itself pulls
GUARDED = 1.33


class DensityBounds(NamedTuple):
    """Bounds of log q at points of shape (..., D): E lower <= log q <= E upper, shapes (...)."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


class SemiImplicit(OrderedDistribution):
    """The marginal of a `ResidualGenerator`, with its density where the map is one-to-one.

    Args:
        generator: the sampler, with its conditional layer.
        path_gradient: if True, `log_prob` has the gradient of the draw only: parameters of the
            density are held fixed, which leaves the expected gradient of a reparameterised ELBO
            unchanged and removes its noise where q is right (Roeder et al. 2017). Wrong for
            objectives that are nonlinear in the weights; `ImplicitELBO` sets it.
        validate_args: as in NumPyro.

    `log_prob(value, intermediates)` works where NumPyro hands over the noise behind the value, as
    it does in every ELBO: the change of variables above. Without the noise it raises
    `ImplicitDensityError`; `log_density_bounds` and `log_density` are what to call then.

    Cost: `log_prob` is r network passes and O(r^3) an element, r = D up to 32; bounds K times that,
    and Newton's method.

    Example:
        >>> import jax
        >>> from implicitppl.distributions import ResidualGenerator, SemiImplicit
        >>> q = SemiImplicit(ResidualGenerator(2, key=jax.random.key(0), scale_tril=2.0))
        >>> z, noise = q.sample_with_intermediates(jax.random.key(1), (4,))
        >>> exact = -0.5 * (z**2).sum(-1) / 4.0 - jax.numpy.log(2 * jax.numpy.pi * 4.0)
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
        """Return the same distribution with `path_gradient=True`."""
        return SemiImplicit(self.generator, path_gradient=True)

    def sample_with_intermediates(
        self, key: PRNGKeyArray, sample_shape: Shape = ()
    ) -> tuple[Array, list[Array]]:
        """Return draws (*sample_shape, D) and the two parts of the noise behind them."""
        value, *behind = _draw(self._arrays, self._static, key, tuple(sample_shape))
        return value, behind

    def sample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Array:
        """Return draws (*sample_shape, D)."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def rsample(self, key: PRNGKeyArray, sample_shape: Shape = ()) -> Array:
        """Return differentiable draws, as `sample` does."""
        return self.sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Return log q of draws whose noise is known, by change of variables, shape (...)."""
        if not intermediates:
            raise ImplicitDensityError(
                "A `SemiImplicit` distribution has no density in closed form at a value whose noise"
                " is not known (as inside a `TransformedDistribution`). `log_density_bounds` and"
                " `log_density` bound and estimate it; train with `implicitppl.infer.ImplicitELBO`."
            )
        noise = self._whole(intermediates)
        if not self.path_gradient:
            return _over_leading(lambda e: self.generator.log_density_at(e)[0])(noise)
        held = eqx.combine(jax.lax.stop_gradient(self._arrays), self._static)
        log_q, score, _ = _over_leading(held.score_at)(jax.lax.stop_gradient(noise))
        path = jnp.sum(score * (value - jax.lax.stop_gradient(value)), axis=-1)
        return jax.lax.stop_gradient(log_q) + path

    def fold_barrier(self, key: PRNGKeyArray, num_samples: int = 8) -> Float[Array, ""]:
        """Return a penalty that is 0 unless the map is close to folding or folded.

        With g = log|det(I + U^T C)|, the margin, it is the mean of max(0, c - g)^2, c = -1.2, over
        fresh points, spread a third wider than the noise so that the tails are guarded too: g is 0
        for a linear map, and minus infinity on a fold. At points beyond a fold, where the
        determinant is negative, it is 10 log(1 + exp(g - c)), which falls towards the fold and
        leads back over it.
        """
        points = GUARDED * jax.random.normal(key, (num_samples, self.event_shape[0]))

        def penalty(noise: Array) -> Array:
            jacobian = self.generator.jacobian(noise)
            short = jnp.maximum(MIN_MARGIN - jacobian.margin, 0.0)
            back = FOLDED_WEIGHT * jax.nn.softplus(jacobian.margin - MIN_MARGIN)
            return jnp.where(jacobian.sign > 0, short**2, back)

        return jnp.mean(jax.vmap(penalty)(points))

    def fold_share(self, key: PRNGKeyArray, num_samples: int = 1000) -> Float[Array, ""]:
        """Return the share of draws at which the map reverses orientation.

        It should be 0: where it is not, the map is not one-to-one and the change of variables is
        not the density.
        """
        noise = jax.random.normal(key, (num_samples, self.event_shape[0]))
        return jnp.mean(~(jax.vmap(self.generator.jacobian)(noise).sign > 0))

    def to_noise(self, intermediates: list[Any], slope: Array) -> Array:
        """Return m'(e*)^T A^T slope, (..., D): a gradient in z as one in the noise behind it."""
        generator = self.generator

        def one(noise: Array, slope: Array) -> Array:
            return jax.vjp(generator.map, noise)[1](generator.scale_tril.T @ slope)[0]

        return _over_leading(one)(self._whole(intermediates), slope)

    def log_density_bounds(
        self, key: PRNGKeyArray, intermediates: list[Any], *, num_inner: int = 16
    ) -> DensityBounds:
        """Return bounds of log q at draws of `sample_with_intermediates`, each of shape (...).

        Args:
            key: for the proposals.
            intermediates: second result of `sample_with_intermediates`.
            num_inner: K, proposals for each draw.

        Returns:
            `DensityBounds(lower, upper)`, each correct in expectation over the proposals. Where
            Newton's method fails the proposal is poor and `lower` far too low; `upper` is then
            still valid.
        """
        large, small = intermediates
        generator = self.generator
        w = _over_leading(generator.draw)(large, small)
        proposals, weights = self._proposals(key, w, num_inner)

        def own(large: Array, w: Array, centre: Array) -> Array:
            return generator.log_joint(large, w) - self._log_proposal(large - centre)

        weight = _over_leading(own)(large, w, proposals) - generator.log_abs_det
        both = jnp.concatenate([weights, weight[..., None]], axis=-1)
        return DensityBounds(_log_mean_exp(weights), _log_mean_exp(both))

    def log_density(self, key: PRNGKeyArray, value: Array, *, num_inner: int = 16) -> Array:
        """Return the lower bound of log q at any points (..., D); unbiased for q itself."""
        w = _over_leading(self.generator.pull)(jnp.asarray(value))
        return _log_mean_exp(self._proposals(key, w, num_inner)[1])

    def score(self, key: PRNGKeyArray, value: Array, *, num_inner: int = 16) -> Array:
        """Return the estimated grad log q at points (..., D), an average of conditional scores.

            grad_z log q(z) = A^-T E_{e | z}[ -(sigma^2 J J^T)^-1 (w - m(e)) ],

        with self-normalised weights over proposals in antithetic pairs, whose errors cancel where m
        is close to linear. The bias is O(1 / num_inner).
        """
        generator = self.generator
        scale_tril = generator.scale_tril

        def one(value: Array, standard: Array) -> Array:
            w = generator.pull(value)
            centre = self._centre(generator.invert(w))
            shifts = self._spread * jnp.concatenate([standard, -standard])
            noise = centre + shifts
            weights = jax.vmap(lambda e: generator.log_joint(e, w))(noise)
            weights = weights - jax.vmap(self._log_proposal)(shifts)

            def conditional(e: Array) -> Array:
                jacobian = generator.jacobian(e)
                small = jacobian.solve(w - generator.map(e))
                return -jacobian.solve_transposed(small) / generator.sigma**2

            inner = jax.nn.softmax(weights) @ jax.vmap(conditional)(noise)
            return solve_triangular(scale_tril, inner, lower=True, trans=1)

        value = jnp.asarray(value)
        shape = (*value.shape[:-1], max(num_inner // 2, 1), generator.size)
        return _over_leading(one)(value, jax.random.normal(key, shape, value.dtype))

    @property
    def _spread(self) -> float:
        sigma = self.generator.sigma
        return sigma * math.sqrt(1.0 - sigma**2)

    def _whole(self, intermediates: list[Any]) -> Array:
        """Return e* = e + sigma n, standard normal."""
        large, small = intermediates
        return large + self.generator.sigma * small

    def _centre(self, noise: Array) -> Array:
        return (1.0 - self.generator.sigma**2) * noise

    def _log_proposal(self, shift: Array) -> Array:
        """Return log N(shift; 0, spread^2 I) of a vector."""
        return standard_normal(shift / self._spread) - shift.shape[0] * math.log(self._spread)

    def _proposals(self, key: PRNGKeyArray, w: Array, num_inner: int) -> tuple[Array, Array]:
        """Return centres (..., D) of r(. | z), and log weights (..., K) of draws from it."""
        generator = self.generator
        if num_inner < 1:
            raise ValueError(f"`num_inner` must be at least 1; got {num_inner}.")
        standard = jax.random.normal(key, (*w.shape[:-1], num_inner, generator.size), w.dtype)

        def one(w: Array, standard: Array) -> tuple[Array, Array]:
            centre = self._centre(generator.invert(w))
            shifts = self._spread * standard
            joint = jax.vmap(lambda shift: generator.log_joint(centre + shift, w))(shifts)
            return centre, joint - jax.vmap(self._log_proposal)(shifts)

        centres, weights = _over_leading(one)(w, standard)
        return centres, weights - generator.log_abs_det


@functools.partial(jax.jit, static_argnums=(1, 3))
def _draw(
    arrays: Any, static: Any, key: PRNGKeyArray, sample_shape: Shape
) -> tuple[Array, Array, Array]:
    """Return draws and noise, each (*sample_shape, D); one program also when called eagerly."""
    generator = eqx.combine(arrays, static)
    large, small = generator.split(key, sample_shape)
    draws = _over_leading(lambda e, n: generator.push(generator.draw(e, n)))(large, small)
    return draws, large, small


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
