"""Six real posteriors with published reference draws, as NumPyro models.

Data and reference draws are those of posteriordb (Magnusson et al. 2024, stan-dev/posteriordb,
BSD-3): 10 chains x 1,000 draws on the constrained scale. They are not bundled; every function
takes the folder that holds `posteriordb/<data>.json` and `posteriordb/<posterior>.npz`.

A `Posterior` is everything that a method needs: a NumPyro model, its arguments, and a map from
draws of its latent sites to the named scalars of the reference.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from benchmarks.hmc.lotka_volterra import lotka_volterra

Draws = Mapping[str, Any]
ExactSampler = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Posterior:
    """A posterior to be approximated, and where its reference draws come from.

    Exactly one source of truth is used, in this order: `exact` (independent draws of the named
    scalars), `draws_file` (published draws), else NUTS on `reference_model` (default: `model`).
    """

    name: str
    model: Callable[..., None]
    to_reference: Callable[[Draws], dict[str, np.ndarray]]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    gaussian: bool = True
    exact: ExactSampler | None = None
    draws_file: Path | None = None
    start_sites: tuple[str, ...] = ()  # non-empty: start at the best of prior draws of these
    reference_model: Callable[..., None] | None = None
    reference_to_reference: Callable[[Draws], dict[str, np.ndarray]] | None = None


def indexed(name: str, values: Any) -> dict[str, np.ndarray]:
    """Return `{name[1]: ..., name[2]: ...}` from draws of shape `(S, K)`, numbered as in Stan."""
    columns = np.asarray(values)
    return {f"{name}[{k + 1}]": columns[:, k] for k in range(columns.shape[1])}


def scalars(**sites: int) -> Callable[[Draws], dict[str, np.ndarray]]:
    """Return the map that flattens the named sites (0: scalar; 1: vector), in the given order."""

    def to_reference(draws: Draws) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, rank in sites.items():
            out |= indexed(name, draws[name]) if rank else {name: np.asarray(draws[name])}
        return out

    return to_reference


def flat(name: str, shape: tuple[int, ...] = (), support: Any = constraints.real) -> Any:
    """Sample a site with a flat (improper) prior on `support`."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def flat_regression(design: Any, response: Any) -> None:
    """Regression y ~ N(X beta, sigma) with flat priors on beta and sigma > 0."""
    beta = flat("beta", (design.shape[1],), constraints.real_vector)
    sigma = flat("sigma", support=constraints.positive)
    numpyro.sample("y", dist.Normal(design @ beta, sigma), obs=response)


def eight_schools_noncentred(y: Any, sigma: Any) -> None:
    """Eight schools: theta = mu + tau theta_trans, y ~ N(theta, sigma) (Rubin 1981)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    standard = dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1)
    theta_trans = numpyro.sample("theta_trans", standard)
    numpyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma).to_event(1), obs=y)


def eight_schools_scalars(draws: Draws) -> dict[str, np.ndarray]:
    """Return theta, mu and tau from draws of the noncentred model."""
    mu, tau = np.asarray(draws["mu"]), np.asarray(draws["tau"])
    theta = mu[:, None] + tau[:, None] * np.asarray(draws["theta_trans"])
    return indexed("theta", theta) | {"mu": mu, "tau": tau}


def autoregression(lags: Any, y: Any) -> None:
    """y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma)."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def linear_regression(design: Any, y: Any) -> None:
    """Regression: beta ~ N(0, 10), sigma ~ half-N(0, 10), y ~ N(X beta, sigma)."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([design.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def predator_prey(times: Any, y_init: Any, y: Any) -> None:
    """Lotka-Volterra dynamics with log-normal errors (hares and lynxes, 1900-1920)."""
    centre, spread = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    prior = dist.TruncatedNormal(centre, spread, low=0.0).to_event(1)
    theta = numpyro.sample("theta", prior)
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    log_z = lotka_volterra(theta, jnp.log(z_init), times)
    numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma).to_event(1), obs=y_init)
    numpyro.sample("y", dist.LogNormal(log_z, sigma).to_event(2), obs=y)


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return one data file with every list as a float array."""
    raw = json.loads((folder / "posteriordb" / f"{name}.json").read_text())
    return {k: np.asarray(v, float) if isinstance(v, list) else v for k, v in raw.items()}


def _lagged(d: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix of the last K values, most recent first, and what follows them."""
    y, order = d["y"], d["K"]
    lags = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1)
    return lags, y[order:]


def _mesquite(d: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return design (intercept, five log sizes, group) and log weight."""
    sizes = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [np.ones_like(d["weight"]), *(np.log(d[k]) for k in sizes), d["group"]]
    return np.stack(columns, axis=1), np.log(d["weight"])


def _earnings(d: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return design (intercept, standardised height, male, their product) and log earnings."""
    z = (d["height"] - d["height"].mean()) / d["height"].std(ddof=1)
    design = np.stack([np.ones_like(z), z, d["male"], z * d["male"]], axis=1)
    return design, np.log(d["earn"])


_REGRESSION = scalars(beta=1, sigma=0)
# posterior -> (data file, model, data -> arguments, draws -> named scalars)
_TABLE: dict[str, tuple[str, Any, Any, Any]] = {
    "eight_schools-eight_schools_noncentered": (
        "eight_schools",
        eight_schools_noncentred,
        lambda d: (d["y"], d["sigma"]),
        eight_schools_scalars,
    ),
    "arK-arK": ("arK", autoregression, _lagged, scalars(alpha=0, beta=1, sigma=0)),
    "mesquite-logmesquite": ("mesquite", flat_regression, _mesquite, _REGRESSION),
    "earnings-logearn_interaction_z": ("earnings", flat_regression, _earnings, _REGRESSION),
    "sblrc-blr": ("sblrc", linear_regression, lambda d: (d["X"], d["y"]), _REGRESSION),
    "hudson_lynx_hare-lotka_volterra": (
        "hudson_lynx_hare",
        predator_prey,
        lambda d: (tuple(d["ts"].tolist()), d["y_init"], d["y"]),
        scalars(theta=1, z_init=1, sigma=1),
    ),
}
NAMES = tuple(_TABLE)


def load(folder: str | Path, name: str) -> Posterior:
    """Return one of the six posteriors with its data and its file of reference draws.

    Args:
        folder: the folder that holds `posteriordb/`.
        name: one of `NAMES`.

    Raises:
        ValueError: when `name` is not one of `NAMES`.
    """
    if name not in _TABLE:
        raise ValueError(f"`name` must be one of {NAMES}; got {name!r}.")
    data, model, arguments, to_reference = _TABLE[name]
    folder = Path(folder)
    args = tuple(
        jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments(_read(folder, data))
    )
    draws_file = folder / "posteriordb" / f"{name}.npz"
    start_sites = ("theta", "z_init", "sigma") if model is predator_prey else ()
    return Posterior(
        name, model, to_reference, args, draws_file=draws_file, start_sites=start_sites
    )
