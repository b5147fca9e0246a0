"""Marginal differences between two samples of the same quantities, in units a reader can judge.

For every scalar, with the reference's mean `m`, standard deviation `s` and quantiles `q_a`:

    (mean' - m) / s,   s' / s,   (q'_05 - q_05) / s,   (q'_95 - q_95) / s,   max_j |corr'_ij -
    corr_ij|.

Shapes: `(N, P)` and `(M, P)` columns; every result `(P,)`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array

from implicitppl.diagnostics._draws import paired_columns
from implicitppl.metrics._distances import sliced_wasserstein
from implicitppl.metrics._marginals import marginal_differences


@dataclass(frozen=True)
class Comparison:
    """A table of marginal differences; `print` it, or take `.to_dict()`.

    The arrays `(P,)` are those of `MarginalDifferences`, as NumPy; `sliced_wasserstein` is one
    number for the joint distribution.
    """

    names: tuple[str, ...]
    mean_shift: np.ndarray
    sd_ratio: np.ndarray
    q05_shift: np.ndarray
    q95_shift: np.ndarray
    corr_diff: np.ndarray
    sliced_wasserstein: float

    @property
    def worst(self) -> dict[str, float]:
        """The worst scalar of each column: largest absolute shift, sd ratio furthest from 1."""
        ratio = self.sd_ratio[np.argmax(np.abs(np.log(np.maximum(self.sd_ratio, 1e-12))))]
        return {
            "mean_shift": float(np.abs(self.mean_shift).max()),
            "sd_ratio": float(ratio),
            "q05_shift": float(np.abs(self.q05_shift).max()),
            "q95_shift": float(np.abs(self.q95_shift).max()),
            "corr_diff": float(self.corr_diff.max()),
            "sliced_wasserstein": self.sliced_wasserstein,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and floats, for JSON."""
        return {
            k: v.tolist() if isinstance(v, np.ndarray) else list(v) if k == "names" else v
            for k, v in asdict(self).items()
        }

    def __str__(self) -> str:
        width = max(9, *(len(n) for n in self.names))
        titles = ("mean shift", "sd ratio", "5% shift", "95% shift", "max |dcorr|")
        lines = ["  ".join([" " * width, *titles])]
        for i, name in enumerate(self.names):
            lines.append(
                f"{name:{width}}  {self.mean_shift[i]:>+10.3f}  {self.sd_ratio[i]:>8.3f}  "
                f"{self.q05_shift[i]:>+8.3f}  {self.q95_shift[i]:>+9.3f}  "
                f"{self.corr_diff[i]:>11.3f}"
            )
        lines.append(
            "shifts in units of the reference sd; "
            f"sliced Wasserstein {self.sliced_wasserstein:.4f} sd"
        )
        return "\n".join(lines)


def compare(
    reference_draws: Any,
    draws: Any,
    *,
    var_names: Sequence[str] | None = None,
    key: Array | None = None,
    num_projections: int = 100,
) -> Comparison:
    """Table of how each marginal, and the correlations, of `draws` differ from a reference's.

    Monte Carlo error is not subtracted: with `S` independent draws on each side a mean shift has
    standard error `sqrt(2 / S)`, a 5% quantile of a normal about twice that.

    Args:
        reference_draws: dict of `(S, ...)` arrays, or an ArviZ object with a posterior; usually
        NUTS.
        draws: the same for the guide; only sites that both have are compared.
        var_names: sites to compare; default all common ones.
        key: directions of the sliced Wasserstein distance; a fixed one by default, so that two
            comparisons use the same directions.
        num_projections: number of directions.

    Returns:
        `Comparison`, with `.worst` for the largest of each column.

    Raises:
        ValueError: no site in common, shapes that differ, NaN.

    Reference:
        Plain moments; no paper.

    Example:
        >>> import jax
        >>> from implicitppl.diagnostics import compare
        >>> x = jax.random.normal(jax.random.key(0), (400,))
        >>> round(float(compare({"x": x}, {"x": 2 * x}).sd_ratio[0]), 3)
        2.0
    """
    names, x, y = paired_columns(reference_draws, draws, var_names)
    difference = marginal_differences(jnp.asarray(x), jnp.asarray(y))
    key = random.key(0) if key is None else key
    distance = sliced_wasserstein(jnp.asarray(x), jnp.asarray(y), key, num_projections)
    mean_shift, sd_ratio, q05_shift, q95_shift, corr_diff = map(np.asarray, difference)
    return Comparison(
        tuple(names), mean_shift, sd_ratio, q05_shift, q95_shift, corr_diff, float(distance)
    )
