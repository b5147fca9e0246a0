"""After training: the guide's processes, and functions drawn from them at many inputs.

    f = function_posterior(guide, params, x)["f"]         a process: sample, draw, evaluate
    found = predict(f, key, x_new)                        coherent draws, mean, covariance

A covariance of N outputs from S functions has rank S - 1 and is kept as its factor, (S, N): at
thousands of inputs nothing of size N x N is formed.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from implicitppl._core.cholesky import safe_cholesky
from implicitppl._core.points import as_points
from implicitppl.infer._functional.sites import function_name, is_function
from implicitppl.models._call import Call
from implicitppl.models._sites import Params, innermost
from implicitppl.processes import Process

ROWS_AT_ONCE = 4096


def function_posterior(
    guide: Callable[..., Any], params: Params, *args: Any, **kwargs: Any
) -> dict[str, Process]:
    """Return the processes of a trained guide, by the names of its function sites.

    Args:
        guide: the guide.
        params: of `svi.get_params(state)` or `result.params`.
        *args: of the guide; inputs may be any, since no function is evaluated there.
        **kwargs: of the guide.

    Returns:
        name -> process. No training data is needed.

    Raises:
        ValueError: if the guide draws no function.
    """
    trace = Call(guide, args, kwargs, params).trace(jax.random.key(0))
    found: dict[str, Process] = {}
    for site in trace.values():
        if is_function(site):
            found.setdefault(function_name(site), innermost(site["fn"]).process)
    if not found:
        raise ValueError("the guide draws no function: it has no site `sample(name, process(x))`.")
    return found


class FunctionSamples(eqx.Module):
    """Functions drawn jointly at N inputs, one in each row.

    Attributes:
        x: (N, D).
        values: (S, N), or (S, N, P).
    """

    x: Float[Array, "N D"]
    values: Array

    @property
    def mean(self) -> Array:
        """Mean at every input, (N[, P])."""
        return jnp.mean(self.values, axis=0)

    @property
    def variance(self) -> Array:
        """Variance at every input, (N[, P]), with divisor S - 1."""
        return jnp.var(self.values, axis=0, ddof=1)

    @property
    def factor(self) -> Float[Array, "S N"]:
        """R with R^T R the covariance of all values, (S, N P)."""
        flat = self.values.reshape(self.values.shape[0], -1)
        return (flat - jnp.mean(flat, axis=0)) / math.sqrt(flat.shape[0] - 1)

    def covariance(self, rows: ArrayLike, columns: ArrayLike | None = None) -> Array:
        """Return the covariance of some values with others, by their indices, (A, B).

        Of P outputs, value p of input i has index i P + p.
        """
        factor = self.factor
        left = factor[:, jnp.asarray(rows)]
        right = left if columns is None else factor[:, jnp.asarray(columns)]
        return jnp.matmul(left.T, right, precision="highest")

    def log_prob(self, y: ArrayLike, noise_scale: ArrayLike) -> Float[Array, " N"]:
        """Return log of the mean over functions of N(y; f, noise^2), at every input."""
        scale = jnp.asarray(noise_scale)
        white = (jnp.asarray(y)[None] - self.values) / scale
        each = -0.5 * white**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)
        return logsumexp(each, axis=0) - math.log(self.values.shape[0])

    def joint_log_prob(self, y: ArrayLike, noise_scale: ArrayLike) -> Float[Array, ""]:
        """Return log N(y; mean, covariance + diag(noise^2)) of all outputs together.

        `noise_scale` is a number, or has one for every value of `mean`. By the Woodbury identity:
        O(S^2 N), nothing of size N x N. A normal law with the moments of the draws; with fewer
        functions than outputs it holds for the directions that they span.
        """
        scale = jnp.broadcast_to(jnp.asarray(noise_scale), self.mean.shape).reshape(-1)
        factor = self.factor / scale
        residual = (jnp.asarray(y) - self.mean).reshape(-1) / scale
        inner = jnp.eye(factor.shape[0], dtype=factor.dtype) + factor @ factor.T
        root = safe_cholesky(inner).factor
        # (I + R'R)^-1 = I - R' A^-1 R and det(I + R'R) = det A, with A = I + RR'.
        seen = solve_triangular(root, factor @ residual, lower=True)
        square = jnp.sum(residual**2) - jnp.sum(seen**2)
        constant = 0.5 * residual.size * math.log(2 * math.pi) + jnp.sum(jnp.log(scale))
        return -0.5 * square - jnp.sum(jnp.log(jnp.diagonal(root))) - constant


def predict(
    process: Process, key: PRNGKeyArray, x: ArrayLike, num_samples: int = 1000
) -> FunctionSamples:
    """Return functions of a process at many inputs, the same functions at all of them.

    Args:
        process: as `function_posterior` gives it.
        key: of the draws. Where the process has a weight space the same key gives the same
            functions in another call; those of a Gaussian process without one are made for the
            inputs of this call. To ask them again, keep `process.draw(key, num_samples)`.
        x: (N, D) or (N,) inputs.
        num_samples: S.

    Inputs are evaluated 4,096 at a time where the process has functions of its own (networks,
    features): memory S N for the values. A Gaussian process needs the joint factor, O(N^3).
    """
    points = as_points("x", x)
    draws = process.draw(key, num_samples)
    if not process.has_weight_space:
        return FunctionSamples(points, draws(points))
    starts = range(0, points.shape[0], ROWS_AT_ONCE)
    parts = [draws(points[start : start + ROWS_AT_ONCE]) for start in starts]
    return FunctionSamples(points, jnp.concatenate(parts, axis=1))
