"""Regression of a function on its values: a smooth surrogate with a gradient, from few points.

    f(x) = g(y) + h(y) + noise,    y = L^{-1} (x - m),    h ~ GP(0, k),
    k(y, y') = c + l y.y' + q (y.y')^2 + t (y.y')^3 + r exp(-|(y - y')/s|^2 / 2)

with g(y) = |y|^2 / 2 for a potential (the Gaussian that m and L L^T describe) and 0 otherwise. The
polynomial part is a trend: all quadratics and cubics with a weak penalty, exact for a Gaussian once
there are as many values as coefficients; the last term is the residual, with a length s for each
coordinate. Amplitudes, lengths and noise maximise the marginal likelihood. Values far from the
region that matters are allowed a larger error: their noise variance is v + (u slack)^2, where the
slack is given and u is learned with the rest.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, Int

from implicitppl._core.cholesky import safe_cholesky
from implicitppl._core.frames import Frame
from implicitppl._train.descent import descend

NUM_STEPS, STEP_SIZE = 100, 0.1  # of Adam, for the hyper-parameters
NUM_HYPER_POINTS = 256  # the marginal likelihood is that of the first so many rows
QUADRATIC_REST = -9.0  # log variance of what is no quadratic in a nearly quadratic function
MAX_SLACK = 1e3  # a value farther off says nothing


class Hyper(NamedTuple):
    """Logarithms of the hyper-parameters, in standardised outputs and coordinates y."""

    constant: Float[Array, ""]
    linear: Float[Array, ""]
    quadratic: Float[Array, ""]
    cubic: Float[Array, ""]
    residual: Float[Array, ""]
    lengths: Float[Array, " D"]
    noise: Float[Array, ""]
    slack: Float[Array, ""]


def initial_hyper(dimension: int, dtype: jnp.dtype) -> Hyper:
    """Return where the search starts, which is also the mode of its weak prior."""
    return Hyper(
        constant=jnp.zeros((), dtype),
        linear=jnp.zeros((), dtype),
        quadratic=jnp.zeros((), dtype),
        cubic=jnp.full((), -2.3, dtype),
        residual=jnp.full((), -2.3, dtype),
        lengths=jnp.full((dimension,), 0.5 * jnp.log(float(dimension)) + 0.3, dtype),
        noise=jnp.full((), -7.0, dtype),
        slack=jnp.full((), -2.0, dtype),
    )


class ValueInfo(NamedTuple):
    """What a regression found.

    Attributes:
        num_points: values used.
        error: root mean square of the leave-one-out errors at the points without slack, in units of
            the function (for several outputs, of the standardised outputs).
        trend_error: the same of the Gaussian alone, or for no reference the standard deviation.
        noise: standard deviation of the noise, in the same units.
        used: False where the Gaussian alone predicts better; it is then what is used.
    """

    num_points: Int[Array, ""]
    error: Float[Array, ""]
    trend_error: Float[Array, ""]
    noise: Float[Array, ""]
    used: Bool[Array, ""]


class FittedValues(eqx.Module):
    """A function learned from its values: `fitted(x)` for x (..., D) is (..., P).

    Differentiable in x. Cost O(M (D + P) + D^2) for each point.
    """

    frame: Frame
    points: Float[Array, "M D"]
    coefficients: Float[Array, "M P"]
    offset: Float[Array, " P"]
    scale: Float[Array, " P"]
    hyper: Hyper
    info: ValueInfo
    gaussian: bool = eqx.field(static=True)
    whitener: Float[Array, "M M"] | None = None

    def deviation(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the predictive standard deviation at rows, a mean over outputs. O(M^2) a row.

        Only with `keep_whitener=True`; the noise of the values is not in it.
        """
        assert self.whitener is not None, "fit with `keep_whitener=True`"
        flat = self.frame.to(x)
        cross = _kernel(self.hyper, flat, self.points) @ self.whitener.T
        own = jax.vmap(lambda y: _kernel(self.hyper, y[None, :], y[None, :])[0, 0])(flat)
        return jnp.sqrt(jnp.maximum(own - jnp.sum(cross * cross, axis=1), 0)) * self._output_scale

    @property
    def _output_scale(self) -> Float[Array, ""]:
        return jnp.mean(self.scale) if self.gaussian else jnp.ones_like(jnp.mean(self.scale))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B P"]:
        """Return the function at points."""
        flat = self.frame.to(x.reshape(-1, x.shape[-1]))
        values = jnp.matmul(_kernel(self.hyper, flat, self.points), self.coefficients)
        values = values * self.scale[None, :] + self.offset[None, :]
        if self.gaussian:
            values = values + 0.5 * jnp.sum(flat * flat, axis=1, keepdims=True)
        return values.reshape(*x.shape[:-1], values.shape[-1])


def fit_values(
    inputs: Float[Array, "M D"],
    outputs: Float[Array, "M P"],
    slack: Float[Array, " M"],
    valid: Bool[Array, " M"],
    frame: Frame,
    *,
    gaussian: bool = False,
    start: Hyper | None = None,
    keep_whitener: bool = False,
) -> FittedValues:
    """Return a function fitted to values at points.

    Args:
        inputs: (M, D) points; the first `NUM_HYPER_POINTS` rows set the hyper-parameters.
        outputs: (M, P) values there.
        slack: (M,) non-negative; how far a point is from the region that matters, 0 inside.
        valid: (M,) which rows hold anything; the others are ignored, so that M may be a capacity.
        frame: coordinates of the regression.
        gaussian: whether |y|^2 / 2 is subtracted first, for potentials. The rest is then used only
            where it beats that Gaussian on left-out points.
        start: hyper-parameters to start from, those of an earlier fit.
        keep_whitener: keep what `deviation` needs, (M, M).

    Returns:
        `FittedValues`, everywhere finite.

    Cost O(M^3) and 100 times O(min(M, 256)^3); memory O(M^2).

    Reference: Rasmussen, Williams, Gaussian Processes for Machine Learning, (2.30), (2.41), (5.12).
    """
    dtype = inputs.dtype
    slack = jnp.minimum(slack, MAX_SLACK)
    valid = valid & jnp.all(jnp.isfinite(outputs), axis=1) & jnp.all(jnp.isfinite(inputs), axis=1)
    points = frame.to(jnp.where(valid[:, None], inputs, frame.shift[None, :]))
    target = jnp.where(valid[:, None], outputs, jnp.zeros((), dtype))
    if gaussian:
        target = target - 0.5 * jnp.sum(points * points, axis=1, keepdims=True)
    near = valid.astype(dtype) / (1 + slack) ** 2
    near = near / jnp.maximum(jnp.sum(near), jnp.finfo(dtype).tiny)
    offset = near @ target
    spread = jnp.sqrt(near @ (target - offset[None, :]) ** 2)
    scale = jnp.maximum(spread, 1e-6 * (1 + jnp.abs(offset)))
    target = jnp.where(valid[:, None], (target - offset[None, :]) / scale[None, :], 0)

    first = initial_hyper(points.shape[1], dtype) if start is None else start
    head = slice(0, NUM_HYPER_POINTS)
    hyper = _search(first, points[head], target[head], slack[head], valid[head])
    inside = (valid & (slack <= 0)).astype(dtype)
    weight = inside / jnp.maximum(jnp.sum(inside), 1)
    output_scale = scale if gaussian else jnp.ones_like(scale)

    def solve(p: Hyper) -> tuple[Array, Array, Array]:
        system, scaling = _system(p, points, slack, valid)
        factor = safe_cholesky(system, jitter=float(_jitter(dtype))).factor
        inverse = cho_solve((factor, True), jnp.eye(points.shape[0], dtype=dtype))
        solved = inverse @ (scaling[:, None] * target)
        # Leave-one-out errors: those of the scaled system, divided by its scaling.
        left_out = solved / jnp.diagonal(inverse)[:, None] / scaling[:, None]
        error = jnp.sqrt(jnp.mean(weight @ (left_out * output_scale[None, :]) ** 2))
        return scaling[:, None] * solved, error, factor

    candidates = [hyper]
    terms = (points.shape[1] + 1) * (points.shape[1] + 2) // 2
    if 2 * terms > NUM_HYPER_POINTS:  # too few rows to tell a quadratic from anything else
        candidates.append(_quadratic(hyper))
    several = jax.tree.map(lambda *p: jnp.stack(p), *candidates)
    solutions, errors, factors = jax.lax.map(solve, several)
    best = jnp.argmin(jnp.where(jnp.isfinite(errors), errors, jnp.inf))
    hyper = jax.tree.map(lambda p: p[best], several)
    solved, error, factor = solutions[best], errors[best], factors[best]
    middle = weight @ target
    trend_error = jnp.sqrt(
        jnp.mean(weight @ ((target - middle[None, :]) * output_scale[None, :]) ** 2)
    )
    finite = jnp.all(jnp.isfinite(solved)) & jnp.isfinite(error)
    used = finite & (error < trend_error) if gaussian else finite
    coefficients = jnp.where(used, solved, 0)
    noise = jnp.exp(0.5 * hyper.noise) * jnp.mean(output_scale)
    info = ValueInfo(jnp.sum(valid), error, trend_error, noise, used)
    whitener = None
    if keep_whitener:
        scaling = _system(hyper, points, slack, valid)[1]
        whitener = solve_triangular(factor, jnp.diag(jnp.where(valid, scaling, 0)), lower=True)
    return FittedValues(frame, points, coefficients, offset, scale, hyper, info, gaussian, whitener)


def _quadratic(p: Hyper) -> Hyper:
    """Return hyper-parameters of a function that is a quadratic, with little else."""
    low = jnp.minimum(p.residual, QUADRATIC_REST)
    return p._replace(
        quadratic=jnp.maximum(p.quadratic, 0),
        cubic=jnp.minimum(p.cubic, QUADRATIC_REST),
        residual=low,
        noise=jnp.minimum(p.noise, QUADRATIC_REST),
    )


def _kernel(p: Hyper, x: Float[Array, "N D"], y: Float[Array, "M D"]) -> Float[Array, "N M"]:
    """Return the kernel between rows; the inner product is divided by D to keep amplitudes O(1)."""
    inner = x @ y.T / x.shape[1]
    trend = jnp.exp(p.linear) + inner * (jnp.exp(p.quadratic) + inner * jnp.exp(p.cubic))
    u, v = x / jnp.exp(p.lengths)[None, :], y / jnp.exp(p.lengths)[None, :]
    square = jnp.sum(u * u, axis=1)[:, None] + jnp.sum(v * v, axis=1)[None, :] - 2 * u @ v.T
    local = jnp.exp(p.residual - 0.5 * jnp.maximum(square, 0))
    return jnp.exp(p.constant) + inner * trend + local


def _system(
    p: Hyper, points: Array, slack: Array, valid: Array
) -> tuple[Float[Array, "M M"], Float[Array, " M"]]:
    """Return S (K + V) S with unit diagonal and the diagonal of S; rows that hold nothing are I."""
    gram = _kernel(p, points, points)
    variance = jnp.exp(p.noise) + _least_noise(points.dtype)
    variance = variance + jnp.exp(2 * p.slack) * slack * slack
    total = jnp.diagonal(gram) + variance
    scaling = jnp.where(valid, 1 / jnp.sqrt(total), 0)
    jitter = _jitter(points.dtype)
    diagonal = jnp.where(valid, (variance + jitter * total) * scaling * scaling, 1)
    scaled = gram * scaling[:, None] * scaling[None, :] + jnp.diag(diagonal)
    return scaled, jnp.where(valid, scaling, 1)


def _search(first: Hyper, points: Array, target: Array, slack: Array, valid: Array) -> Hyper:
    """Return the hyper-parameters of the largest penalised marginal likelihood, by Adam."""
    prior = initial_hyper(points.shape[1], points.dtype)

    def loss(p: Hyper) -> Float[Array, ""]:
        system, scaling = _system(p, points, slack, valid)
        factor = jnp.linalg.cholesky(system)
        white = solve_triangular(factor, scaling[:, None] * target, lower=True)
        fit = 0.5 * jnp.sum(white * white) / target.shape[1]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor))) - jnp.sum(jnp.log(scaling))
        away = jax.tree.map(lambda a, b: 0.5 * jnp.sum(((a - b) / 3) ** 2), p, prior)
        lengths = 0.5 * jnp.sum((p.lengths - prior.lengths) ** 2)
        return fit + log_det + sum(away) + lengths

    optimiser = optax.adam(optax.cosine_decay_schedule(STEP_SIZE, NUM_STEPS))
    return descend(loss, first, optimiser, NUM_STEPS).last


def _jitter(dtype: jnp.dtype) -> float:
    """Return the relative error that rounding leaves in a sum over a few hundred points."""
    return 16 * float(jnp.finfo(dtype).eps)


def _least_noise(dtype: jnp.dtype) -> float:
    """Return the least variance of the noise, in standardised outputs.

    With less the coefficients become so large that their sum loses its digits: the gradient of the
    surrogate would no longer be that of its values.
    """
    return 3e-5 if jnp.finfo(dtype).eps > 1e-10 else 1e-9
