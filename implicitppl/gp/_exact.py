"""Gaussian processes: a kernel and a mean, before or after observations.

    f ~ GP(m, k);   given y:   m(x*) + k(x*, x) w,   k(x*, x*') - k(x*, x) C^-1 k(x, x*')

with w and the factor of C kept in `Evidence`. A posterior is again a `GaussianProcess`: it is
evaluated, sampled, observed and used in a NumPyro model like any other. The posterior of one
additive term k_j of the kernel is the same formula with k_j for k, since the other terms are
independent of it.

Rasmussen and Williams, Gaussian Processes for Machine Learning, equations (2.22) to (2.24).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Normal

from implicitppl._core.points import as_noise_variance, as_points, check_points
from implicitppl.gp._evidence import Evidence, check_factor, extend, gather, left_out
from implicitppl.gp._means import Mean, ZeroMean, add_means, as_mean, scale_mean
from implicitppl.kernels import Kernel
from implicitppl.kernels._parameters import as_arrays
from implicitppl.kernels._terms import additive_terms
from implicitppl.processes._gaussian.base import AbstractGaussianProcess
from implicitppl.processes._process import Process


class GaussianProcess(AbstractGaussianProcess):
    """A Gaussian process, as a prior or given observations.

    Args:
        kernel: the covariance function, `implicitppl.kernels`.
        mean: None for zero, a number, or a function of one point (D,); modules are learned.

    Calling it with points, (N, D) or (N,), gives a NumPyro distribution over the N values, so a
    model reads

        f = numpyro.sample("f", gp(x))                                    # a latent function
        numpyro.sample("y", gp(x, noise_scale=s), obs=y)                  # f integrated out

    Numbers in the kernel become arrays: new values need no new compilation.

    Cost: `mean` and `variance` of `gp(x)` O(N); `log_prob` and `sample` O(N^3). A posterior of N
    observations at M points: O(N M) for the mean, O(N^2 M) for the variance.

    Reference: Rasmussen and Williams (2006), equations (2.22) to (2.24), (5.12).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> gp = GaussianProcess(RBF(1.0))
        >>> posterior = gp.condition(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0]), noise_scale=0.1)
        >>> [round(float(v), 2) for v in posterior(jnp.array([0.0, 9.0])).mean]
        [1.0, 0.0]
    """

    kernel: Kernel
    prior_mean: Mean
    evidence: Evidence | None

    def __init__(
        self,
        kernel: Kernel | Any,  # Any: the check below says more than a type checker
        mean: float | Callable[[Array], Array] | Mean | Any | None = None,
        evidence: Evidence | None = None,
    ):
        if not isinstance(kernel, Kernel):
            raise ValueError(f"`kernel` must be a kernel of `implicitppl.kernels`; got {kernel!r}.")
        self.kernel = as_arrays(kernel)
        self.prior_mean = as_mean(mean)
        self.evidence = evidence

    def condition(
        self,
        x: ArrayLike,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> "GaussianProcess":
        """Return the process given y = f(x) + noise.

        Args:
            x: (N, D) or (N,) inputs.
            y: (N,) outputs.
            noise_scale: standard deviation of the noise, a number or (N,); 0 for none.
            observed: (N,) booleans, False where an output is missing (its value is not read).

        Returns:
            A `GaussianProcess` whose factor is kept. Conditioning it again extends the factor:
            O(N^2 M + M^3) for M more observations, under `vmap` too (fantasies).

        Raises:
            ValueError: if shapes do not fit, known values are not finite, or the covariance is
                not positive definite even with jitter. While traced: NaN instead of the last.

        Cost O(N^3); compiled once for each shape and structure.
        """
        points, values, mask = check_points(x, y, observed)
        noise = as_noise_variance(noise_scale, points.shape[0], points.dtype)
        if self.evidence is None:
            evidence = gather(self.kernel, self.prior_mean, points, values, noise, mask)
        else:
            _check_width(self.evidence, points)
            evidence = extend(self.evidence, points, values, noise, mask)
        return GaussianProcess(self.kernel, self.prior_mean, check_factor(evidence))

    def given(self, x: Float[Array, "N D"], values: Float[Array, " N"]) -> "GaussianProcess":
        """Return the process given its values at N points; the factor is kept."""
        return self.condition(x, values, 0.0)

    def check_data(
        self, x: ArrayLike, y: ArrayLike, observed: ArrayLike | None
    ) -> tuple[Float[Array, "N D"], Float[Array, " N"], Bool[Array, " N"] | None]:
        """Return inputs, outputs and mask as arrays, or raise `ValueError`.

        Raises:
            ValueError: if they do not fit, or the process was observed: what it was observed with
                would be learned with its parameters.
        """
        if self.evidence is not None:
            raise ValueError("fit a process before it is observed; this one was: see `condition`.")
        return check_points(x, y, observed)

    def log_evidence(
        self,
        x: ArrayLike,
        y: ArrayLike,
        noise_scale: ArrayLike,
        *,
        observed: ArrayLike | None = None,
    ) -> Float[Array, ""]:
        """Return log p(y), f integrated out: `gp(x, noise_scale).log_prob(y)`, at O(N^3)."""
        points, values, mask = check_points(x, y, observed)
        return self(points, noise_scale, observed=mask).log_prob(values)

    def term(self, kernel: Kernel) -> "GaussianProcess":
        """Return the posterior of f_j, where f = f_1 + ... and `kernel` is the prior's of f_j.

        The mean function belongs to no term. `kernel` must be one of the terms whose sum is the
        kernel of the process; that cannot be checked.

        Raises:
            ValueError: if nothing was observed.
        """
        return GaussianProcess(kernel, ZeroMean(), self._observed())

    def terms(self) -> list["GaussianProcess"]:
        """Return the posterior of each additive term of the kernel, in the order written.

        Their means add up to that of the process (less its mean function); their variances do
        not, since the terms depend on each other given the data.
        """
        return [self.term(kernel) for kernel in additive_terms(self.kernel)]

    def leave_one_out(self) -> Normal:
        """Return the prediction of each output from all the others, at O(N^3) for all.

        A missing output is predicted from the observed ones.

        Raises:
            ValueError: if nothing was observed.
        """
        return Normal(*_leave_one_out(self, self._observed()))

    @property
    def jitter(self) -> Float[Array, ""]:
        """What was added to the variance of the outputs to factorise them; mostly 0."""
        return self._observed().jitter

    def mean_at(self, x: ArrayLike) -> Float[Array, " N"]:
        """Return the mean at every point of (N, D) or (N,)."""
        x = as_points("x", x)
        prior = self.prior_mean.at(x)
        if self.evidence is None:
            return prior
        _check_width(self.evidence, x)
        return prior + jnp.matmul(self.evidence.weights, self.evidence.cross(self.kernel, x))

    def covariance(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "N M"]:
        """Return the covariance of f(x) and f(y), of f(x) with itself if `y` is omitted."""
        x = as_points("x", x)
        y = None if y is None else as_points("y", y)
        prior = self.kernel.gram(x, y)
        if self.evidence is None:
            return prior
        left = self._whitened(x)
        right = left if y is None else self._whitened(y)
        return prior - jnp.matmul(left.T, right, precision="highest")

    def moments(self, x: ArrayLike) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Return mean and variance at every point of (N, D) or (N,), without an N x N matrix."""
        x = as_points("x", x)
        prior = self.kernel.diag(x)
        if self.evidence is None:
            return self.prior_mean.at(x), prior
        # The cross covariance is the dear part: both moments come from one.
        _check_width(self.evidence, x)
        cross = self.evidence.cross(self.kernel, x)
        white = solve_triangular(self.evidence.factor, cross, lower=True)
        # A variance below zero is rounding: the data determine f there to all digits.
        variance = jnp.maximum(prior - jnp.sum(white * white, axis=0), 0)
        return self.prior_mean.at(x) + jnp.matmul(self.evidence.weights, cross), variance

    def __add__(self, other: Any) -> Process:
        """Return the sum of independent processes; of two priors, the prior of the summed kernel.

        The operators of `Process` are exact too; these keep what only a `GaussianProcess` has.
        """
        if not isinstance(other, GaussianProcess):
            return super().__add__(other)
        if self.evidence is not None or other.evidence is not None:
            return super().__add__(other)
        mean = add_means(self.prior_mean, other.prior_mean)
        return GaussianProcess(self.kernel + other.kernel, mean)

    def __mul__(self, other: Any) -> Process:
        """Return a multiple of the process; of a prior, one with the scaled kernel."""
        scaled = super().__mul__(other)
        if self.evidence is not None or not isinstance(scaled, Process):
            return scaled
        scale = jnp.asarray(other, float)
        return GaussianProcess(scale * scale * self.kernel, scale_mean(self.prior_mean, scale))

    def _whitened(self, x: Array) -> Array:
        """Return L^-1 k(X, x), with X the observed inputs."""
        evidence = self._observed()
        _check_width(evidence, x)
        return solve_triangular(evidence.factor, evidence.cross(self.kernel, x), lower=True)

    def _observed(self) -> Evidence:
        if self.evidence is None:
            raise ValueError("nothing was observed: call `condition(x, y, noise_scale)` first.")
        return self.evidence


def _check_width(evidence: Evidence, x: Array) -> None:
    if x.shape[1] != evidence.x.shape[1]:
        raise ValueError(
            f"`x` must have {evidence.x.shape[1]} coordinates, as the observed inputs have; "
            f"got {x.shape[1]}."
        )


@eqx.filter_jit
def _leave_one_out(process: Any, evidence: Evidence) -> tuple[Array, Array]:
    mean, variance = left_out(evidence)
    if evidence.observed is not None:
        here, spread = process.moments(evidence.x)
        mean = jnp.where(evidence.observed, mean, here)
        variance = jnp.where(evidence.observed, variance, spread + evidence.noise_variance)
    return mean, jnp.sqrt(variance)
