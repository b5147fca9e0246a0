"""Type-II maximum likelihood: the parameters under which the observations are most probable.

    maximise log p(y | x; kernel, mean, noise) over the unconstrained parameters

One compiled `scan` of optimiser steps, made once for each structure and shape: a second fit of
other data compiles nothing. The best point met is returned, so a fit never ends worse than it
began; where a value or gradient is not finite the next point is half way back to the best one.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from implicitppl._core.checks import check_non_negative, check_positive
from implicitppl._train.descent import descend
from implicitppl._train.result import FitResult
from implicitppl.gp._model import EvidenceModel
from implicitppl.kernels import constrain, parameters, unconstrain
from implicitppl.kernels._parameters import as_arrays

CALM_GAIN = 0.1  # nats in the last quarter of the steps
M = TypeVar("M", bound=EvidenceModel)


class ProcessFitResult(FitResult):
    """What `implicitppl.gp.fit` returns.

    Attributes:
        losses: minus the log evidence before every step, (num_steps,).
        objective: in words, what they mean.
        converged: whether the last quarter of the steps gained less than 0.1 nats. The learning
            rate falls to 0, so this is necessary and not sufficient.
        num_steps: how many steps were run.
        num_skipped: steps at points where the value or gradient was not finite.
        process: the model with the parameters of the best step.
        noise_scale: the noise's standard deviation of that step.
        log_evidence: its log p(y), in nats, of all observations together.
    """

    process: Any
    noise_scale: Float[Array, "..."]
    log_evidence: Float[Array, ""]


def fit(
    process: M | Any,
    x: Any,
    y: ArrayLike,
    noise_scale: ArrayLike = 0.1,
    *,
    observed: ArrayLike | None = None,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    optim: optax.GradientTransformation | None = None,
    fixed: Collection[str] = (),
) -> ProcessFitResult:
    """Return the process whose parameters make the observations most probable.

    Args:
        process: a `GaussianProcess`, or another model with a `log_evidence`; where it starts.
        x: (N, D) or (N,) inputs; the axes, for a process on a grid.
        y: (N,) outputs, or those of the grid.
        noise_scale: where the noise's standard deviation starts; a number, learned unless fixed,
            or (N,), each learned: fix it, if it is known.
        observed: booleans like `y`, False where an output is missing.
        num_steps: optimiser steps, each of one value and gradient.
        learning_rate: of Adam, on the logarithm of positive parameters; decays as a cosine to 0.
        optim: any optax optimiser instead. Keep the object: another one compiles anew.
        fixed: names of `implicitppl.kernels.parameters(process)` that are held, and "noise_scale".

    Returns:
        `ProcessFitResult`. Observe the process with
        `result.process.condition(x, y, result.noise_scale)`.

    Raises:
        ValueError: if `process` has no evidence or was observed, `fixed` names no parameter,
            `noise_scale` is not positive (0 may be held fixed), the log evidence is not finite at
            the start, or data do not fit.

    Cost `num_steps` times that of the gradient of the log evidence, O(N^3) for an exact process.

    Reference: Rasmussen and Williams, section 5.4.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.gp import fit
        >>> from implicitppl.kernels import RBF
        >>> from implicitppl.gp import GaussianProcess
        >>> x = jnp.linspace(0, 6, 30)
        >>> found = fit(GaussianProcess(RBF()), x, jnp.sin(x), num_steps=100)
        >>> bool(found.log_evidence > -found.losses[0])
        True
    """
    if not isinstance(process, EvidenceModel):
        raise ValueError(
            "`process` must be a `GaussianProcess` or another model with `log_evidence`; "
            f"got {type(process).__name__}."
        )
    check_positive("learning_rate", learning_rate)
    known = [*parameters(process), "noise_scale"]
    if isinstance(fixed, str):
        raise ValueError(f"`fixed` must be a collection of names, such as [{fixed!r}].")
    unknown = sorted(set(fixed) - set(known))
    if unknown:
        raise ValueError(f"`fixed` names {unknown}; the parameters are {known}.")
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}.")
    # A scale of 0 would stay 0: it moves by its logarithm.
    check = check_non_negative if "noise_scale" in fixed else check_positive
    check("noise_scale", noise_scale)
    points, values, mask = process.check_data(x, y, observed)
    chosen = _adam(num_steps, learning_rate) if optim is None else optim
    scale = jnp.asarray(noise_scale, values.dtype)
    start = (_cast(as_arrays(process), values.dtype), scale)
    result = _run(start, points, values, mask, num_steps, chosen, frozenset(fixed))
    if not isinstance(result.log_evidence, jax.core.Tracer) and not bool(
        jnp.isfinite(result.log_evidence)
    ):
        raise ValueError(
            "the log evidence is not finite at the starting point: check the kernel's parameters "
            f"and `noise_scale` ({noise_scale})."
        )
    return result


def best_fit(
    starts: Sequence[M | Any], x: Any, y: ArrayLike, noise_scale: ArrayLike = 0.1, **options: Any
) -> tuple[ProcessFitResult, Float[np.ndarray, " starts"]]:
    """Return the fit of the highest log evidence of several starts, and the evidence of each.

    For kernels whose evidence has many maxima: periods, spectral mixtures, networks. The choice
    looks at the fitted outputs only. Starts of equal structure share one compiled program.

    Args:
        starts: processes to start at, as for `fit`.
        x: inputs, as for `fit`.
        y: outputs, as for `fit`.
        noise_scale: where the noise starts, as for `fit`.
        **options: of `fit`, the same for every start.

    Returns:
        `(fit, log_evidence)`, the second of shape (num_starts,).

    Raises:
        ValueError: as `fit` does; if `starts` is empty.

    Costs as many fits.

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.gp import best_fit
        >>> from implicitppl.kernels import Periodic
        >>> from implicitppl.gp import GaussianProcess
        >>> x = jnp.linspace(0, 9, 40)
        >>> starts = [GaussianProcess(Periodic(period=p)) for p in (0.7, 2.9)]
        >>> found, evidence = best_fit(starts, x, jnp.sin(2 * x), num_steps=100)
        >>> round(float(found.process.kernel.period), 2), int(evidence.argmax())
        (3.14, 1)
    """
    if not starts:
        raise ValueError("`starts` must hold at least one process; it is empty.")
    fits = [fit(start, x, y, noise_scale, **options) for start in starts]
    evidence = np.array([float(found.log_evidence) for found in fits])
    return fits[int(evidence.argmax())], evidence


@cache
def _adam(num_steps: int, learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))


@eqx.filter_jit
def _run(
    start: tuple[Any, Array],
    x: Any,
    y: Float[Array, "..."],
    observed: Bool[Array, "..."] | None,
    num_steps: int,
    optim: optax.GradientTransformation,
    fixed: frozenset[str],
) -> ProcessFitResult:
    free, held, rebuild = _split(start, fixed)

    def loss(raw: Any) -> Array:
        process, scale = rebuild(eqx.combine(raw, held))
        return -process.log_evidence(x, y, scale, observed=observed)

    found = descend(loss, free, optim, num_steps)
    process, scale = rebuild(eqx.combine(found.best, held))
    late = num_steps // 4
    gained = jnp.min(found.losses[: num_steps - late]) - found.best_loss
    return ProcessFitResult(
        losses=found.losses,
        objective="negative log evidence",
        converged=(late > 0) & (gained < CALM_GAIN),
        num_steps=num_steps,
        num_skipped=found.num_skipped,
        process=process,
        noise_scale=scale,
        log_evidence=-found.best_loss,
    )


def _split(
    start: tuple[Any, Array], fixed: frozenset[str]
) -> tuple[Any, Any, Callable[[Any], tuple[Any, Array]]]:
    """Return the free unconstrained parameters, everything else, and the way back."""
    process, scale = start
    raw = (unconstrain(process), jnp.log(scale))
    names = iter([*parameters(process), "noise_scale"])
    is_free = jax.tree.map(
        lambda leaf: next(names) not in fixed if eqx.is_inexact_array(leaf) else False, raw
    )
    free, held = eqx.partition(raw, is_free)

    def rebuild(whole: tuple[Any, Array]) -> tuple[Any, Array]:
        return constrain(whole[0]), jnp.exp(whole[1])

    return free, held, rebuild


def _cast(tree: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)
