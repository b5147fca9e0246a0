"""The contract of a score estimator: samples in, a fitted score out.

`Estimator.fit` is what users call. It checks its arguments, stops derivatives and compiles, the
same for all; what an estimator adds is `from_sample`, a pure function of a checked `Sample`.
Losses and reports ask for less: anything with a `fit`, as `EstimatorLike` says.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax
from jax.typing import ArrayLike
from jaxtyping import Array

from implicitppl._core.checks import check_key
from implicitppl._core.mesh import on_one_device
from implicitppl.score._fitted import FittedScore
from implicitppl.score._sample import Sample, check_arrays, make_sample


@runtime_checkable
class EstimatorLike(Protocol):
    """Anything with `fit(samples)` that gives a score function."""

    def fit(self, samples: Array, /) -> Callable[[Array], Array]:
        """Return a function from points (..., D) to scores (..., D)."""
        ...


class Estimator(eqx.Module):
    """A way to estimate a score from samples: options as fields, and `from_sample`.

    Attributes:
        takes_covariates: whether it has a conditional form, for `fit(samples, covariates=...)`.
        gathers: whether samples spread over a mesh are gathered on one device first.
    """

    takes_covariates: ClassVar[bool] = True
    gathers: ClassVar[bool] = False

    def fit(
        self,
        samples: ArrayLike,
        *,
        covariates: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        key: Array | None = None,
    ) -> FittedScore:
        """Return the score estimated from samples.

        Args:
            samples: (M, D), M >= 2, finite, each row a draw from q.
            covariates: (M, C), for the conditional score grad_x log q(x | c), which is then
                called as `fitted(x, covariates)`. They need no density: Stein's identity in x
                holds for fixed designs and for categories (as indicator columns) too.
            weights: (M,) non-negative importance weights; None for equal ones.
            key: for estimators that draw something; each says what, and what it does without one.

        Returns:
            A `FittedScore`; its `info` tells what was chosen.

        Raises:
            ValueError: for a wrong rank, fewer than two samples, values that are not finite, or a
                `key` that is not one key. Inside `jit` values are unknown: `info.finite` is False
                instead.
            TypeError: for covariates, where an estimator has no conditional form.

        Derivatives go through the query, never through the fit. Coordinates that are constant in
        the samples get the score 0, as does every coordinate when all samples coincide.
        """
        if covariates is not None and not self.takes_covariates:
            raise TypeError(
                f"`covariates` were given, but {type(self).__name__} has no conditional form."
            )
        if key is not None:
            check_key(key)
        arrays = check_arrays(samples, covariates, weights)
        run = partial(on_one_device, _fit) if self.gathers else _fit
        return run(*arrays, self, key)

    @abstractmethod
    def from_sample(self, sample: Sample, key: Array | None) -> FittedScore:
        """Return the score estimated from a checked sample; called inside `jit`."""


@eqx.filter_jit
def _fit(
    samples: Array,
    covariates: Array | None,
    weights: Array | None,
    estimator: Estimator,
    key: Array | None,
) -> FittedScore:
    sample = make_sample(samples, covariates, weights)
    estimator, sample = _stop_gradient((estimator, sample))
    return estimator.from_sample(sample, key)


def _stop_gradient(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, tree)
