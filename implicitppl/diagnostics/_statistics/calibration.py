"""Simulation-based calibration of model + guide + optimiser, through NumPyro's `vsbc_diagnostic`.

Draw `theta*` from the prior and data from the model, refit the guide, and record
`p = Pr_q(theta < theta*)` for each scalar. For an exact posterior `p` is uniform (Talts et al.
2018, arXiv 1804.06788); for an approximation with unbiased location `p` is at least symmetric about
1/2 (Yao, Vehtari, Simpson, Gelman 2018, arXiv 1802.02538). Symmetry sees bias and not width.

NumPyro tests symmetry by a two-sample Kolmogorov-Smirnov test of `p` against `1 - p`, as if the two
were independent; they determine each other, and the test rejects 11% of calibrated fits at a
nominal 5%. Here `sqrt(n) sup_x |F(x) + F(1 - x) - 1|` is referred to its own limit, `sup |W|` of a
Brownian motion on [0, 1] (the limit has covariance `2 min(x, y)` on [0, 1/2]).

Shapes: probabilities `(num_simulations, ...)` per site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from implicitppl.models._sites import site_labels


@dataclass(frozen=True)
class Calibration:
    """Calibration probabilities per scalar and the p-values of two tests, `(P,)` each.

    `symmetry`: location unbiased on average. `uniformity`: width and shape right as well. No
    correction for several scalars is in the p-values; `ok` applies Bonferroni at 1%.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    symmetry: np.ndarray
    uniformity: np.ndarray
    numpyro_result: Any

    @property
    def ok(self) -> bool:
        """Whether no p-value is below `.01 / (2 P)`."""
        smallest = min(self.symmetry.min(), self.uniformity.min())
        return bool(smallest > 0.01 / (2 * len(self.names)))

    def __str__(self) -> str:
        width = max(9, *(len(n) for n in self.names))
        lines = [f"{'':{width}}  {'mean p':>7}  {'sd p':>6}  {'symmetry':>8}  {'uniformity':>10}"]
        for i, name in enumerate(self.names):
            p = self.probabilities[:, i]
            lines.append(
                f"{name:{width}}  {p.mean():>7.3f}  {p.std():>6.3f}  "
                f"{self.symmetry[i]:>8.3f}  {self.uniformity[i]:>10.3f}"
            )
        lines.append(
            f"{len(self.probabilities)} simulations; "
            "calibrated: mean p .5, sd p .289, p-values above .01"
        )
        return "\n".join(lines)


def calibration(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    optim: Any,
    loss: Any,
    *args: Any,
    observed_sites: list[str] | None = None,
    num_simulations: int = 100,
    num_svi_steps: int = 1000,
    num_samples: int = 1000,
    chain_method: Any = "sequential",
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration of a guide and its training, by refitting simulated data sets.

    Needs draws of the guide only, so it suits guides without a density. Averages over the prior: a
    guide can be calibrated on average and wrong at your data, and a model whose prior is far wider
    than your posterior tests the guide elsewhere. Sees marginals only, not correlations.

    Args:
        rng_key: random key.
        model: generative model: called without its observed arguments it simulates them.
        guide: guide; refitted from scratch for every simulated data set.
        optim: NumPyro optimiser.
        loss: NumPyro loss.
        *args: arguments of model and guide, `None` where the observed data go.
        observed_sites: names of the observed sites.
        num_simulations: simulated data sets; 100 detect a bias of about .25 sd at 5%.
        num_svi_steps: optimiser steps of each fit.
        num_samples: guide draws of each fit.
        chain_method: `"sequential"`, `"vectorized"`, `"parallel"` or a callable.
        **kwargs: keyword arguments of model and guide.

    Returns:
        `Calibration`, with NumPyro's own result in `.numpyro_result`.

    Raises:
        NotImplementedError: NumPyro older than 0.22, which has no `vsbc_diagnostic`.
        ValueError: from NumPyro, e.g. a discrete latent site.

    Reference:
        Yao et al. 2018 (arXiv 1802.02538), algorithm 2; Talts et al. 2018 (arXiv 1804.06788).

    Example:
        >>> from implicitppl.diagnostics._statistics.calibration import symmetry_p_value
        >>> import numpy as np
        >>> biased = np.linspace(0.4, 1.0, 50)
        >>> symmetry_p_value(biased) < 0.01
        True
    """
    try:
        from numpyro.infer.calibration import vsbc_diagnostic
    except ImportError as error:
        raise NotImplementedError(
            "`calibration` needs numpyro >= 0.22 (numpyro.infer.calibration.vsbc_diagnostic); "
            "upgrade numpyro, or skip this check."
        ) from error
    if jax.dtypes.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        rng_key = jax.random.key_data(rng_key)  # NumPyro 0.22 reshapes raw keys
    result = vsbc_diagnostic(
        rng_key,
        model,
        guide,
        optim,
        loss,
        *args,
        observed_sites=observed_sites,
        num_simulations=num_simulations,
        num_svi_steps=num_svi_steps,
        num_samples=num_samples,
        chain_method=chain_method,
        **kwargs,
    )
    return _from_result(result, num_samples)


def _from_result(result: Any, num_samples: int) -> Calibration:
    names, table = [], []
    for site in result.param_names:
        p = np.asarray(result.probabilities[site])
        names += site_labels(site, p.shape[1:])
        table.append(p.reshape(p.shape[0], -1))
    # ranks live on a grid of `num_samples` + 1 points: move each to the middle of its cell
    probabilities = (np.concatenate(table, axis=1) * num_samples + 0.5) / (num_samples + 1)
    return Calibration(
        tuple(names),
        probabilities,
        np.array([symmetry_p_value(p) for p in probabilities.T]),
        np.array([_uniformity_p_value(p) for p in probabilities.T]),
        result,
    )


def symmetry_p_value(probabilities: np.ndarray) -> float:
    """P-value of symmetry about 1/2, from `sup |F(x) + F(1 - x) - 1|` and its Brownian limit.

    Args:
        probabilities: independent calibration probabilities `(n,)`, in [0, 1].

    Returns:
        `P(sup |W| > sqrt(n) D)`, asymptotic in `n`; `W` a Brownian motion on [0, 1].

    Reference:
        Smirnov's test of symmetry; the law of `sup |W|` is Billingsley 1968, equation 11.13.
    """
    p = np.sort(np.asarray(probabilities, dtype=np.float64))
    n = len(p)
    points = np.unique(np.concatenate([p, 1 - p]))
    below = np.searchsorted(p, points, side="right") / n
    above = 1 - np.searchsorted(p, 1 - points, side="left") / n
    return _brownian_tail(np.sqrt(n) * np.abs(below - above).max())


def _brownian_tail(b: float) -> float:
    if b < 1e-3:
        return 1.0
    k = np.arange(60)
    terms = (-1.0) ** k / (2 * k + 1) * np.exp(-((2 * k + 1) ** 2) * np.pi**2 / (8 * b**2))
    return float(np.clip(1 - 4 / np.pi * terms.sum(), 0.0, 1.0))


def _uniformity_p_value(p: np.ndarray) -> float:
    from scipy.stats import kstest

    return float(kstest(p, "uniform").pvalue)
