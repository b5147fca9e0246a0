"""Targets for samplers that see only values of a log density on an unconstrained vector.

| name | D | what is hard | truth |
|---|---|---|---|
| gaussian_10 | 10 | every pair correlated .9 | closed form |
| gaussian_50 | 50 | neighbours correlated .9, scales from .1 to 10 | closed form |
| banana_2, banana_8 | 2, 8 | curved: b = .03, V = 100, the other six N(0, 1) | exact draws |
| eight_schools | 10 | noncentred; log tau has a long left tail | NUTS |
| breast_cancer | 11 | logistic regression, predictors correlated up to .998 | NUTS |
| a posteriordb name | 5-10 | flat priors, an ordinary differential equation | published draws |

Chains start at U(-2, 2) in every coordinate, NumPyro's `init_to_uniform`, drawn again where the
density is not finite. Errors are judged on named scalars: the coordinates themselves, or, for
posteriors, the scalars of the reference draws (on the constrained scale).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.infer.util import initialize_model

from benchmarks.accuracy import posteriors
from benchmarks.accuracy.posteriors import Posterior, eight_schools_noncentred, scalars
from benchmarks.accuracy.references import reference
from benchmarks.accuracy.targets import SCHOOLS, banana_log_density, exact_banana
from benchmarks.common.paths import CACHE

RADIUS, MAX_TRIES = 2.0, 100
PROBABILITIES = (0.05, 0.5, 0.95)
NORMAL_QUANTILES = np.array([-1.6448536269514722, 0.0, 1.6448536269514722])
CORRELATION = 0.9
SCALES = np.logspace(-1.0, 1.0, 50)
EXACT_SIZE = 1_000_000
NUM_PREDICTORS, PRIOR_SCALE = 10, 2.5
LogDensity = Callable[[Float[Array, " D"]], Float[Array, ""]]


@dataclass(frozen=True)
class Truth:
    """Moments `(P,)` and 5, 50 and 95% quantiles `(3, P)` of the named scalars.

    `error` is the Monte Carlo standard error of `mean`, zero where that is in closed form.
    """

    names: list[str]
    mean: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray
    error: np.ndarray
    source: str


@dataclass(frozen=True, eq=False)
class Target:
    """A log density, where chains start, and what is true of it.

    Attributes:
        name: of the target.
        dimension: D.
        log_density: from a vector `(D,)` to a scalar, up to a constant.
        truth: returns the truth of the scalars; a first call may run NUTS and keeps its draws.
        scalars: from draws `(N, D)` to the scalars `(N, P)` that the truth is about.
    """

    name: str
    dimension: int
    log_density: LogDensity
    truth: Callable[[], Truth]
    scalars: Callable[[np.ndarray], np.ndarray] = np.asarray

    def init(self, key: Array) -> Float[Array, " D"]:
        """Return a start: uniform in (-2, 2), drawn again (100 times) until its value is finite."""

        def draw(tries: Array) -> Float[Array, " D"]:
            key_ = jax.random.fold_in(key, tries)
            return jax.random.uniform(key_, (self.dimension,), minval=-RADIUS, maxval=RADIUS)

        def unusable(state: tuple[Array, Array]) -> Array:
            tries, x = state
            return (tries < MAX_TRIES) & ~jnp.isfinite(self.log_density(x))

        def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
            return state[0] + 1, draw(state[0] + 1)

        return jax.lax.while_loop(unusable, again, (jnp.array(0), draw(jnp.array(0))))[1]

    def starts(self, key: Array, num_chains: int) -> Float[Array, "C D"]:
        """Return one start for each chain; the first of them are the same for any number."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_chains))
        return jax.jit(jax.vmap(self.init))(keys)


def from_draws(names: list[str], draws: np.ndarray, source: str) -> Truth:
    """Return the truth that draws `(chains, n, P)` give; their standard error is that of ArviZ."""
    import arviz as az

    pooled = draws.reshape(-1, draws.shape[-1]).astype(float)
    exact = source == "exact draws"
    error = pooled.std(axis=0) / np.sqrt(len(pooled))
    if not exact:
        data = az.convert_to_dataset({"x": draws.astype(float)})
        error = np.asarray(az.mcse(data, method="mean")["x"])
    quantiles = np.quantile(pooled, PROBABILITIES, axis=0)
    return Truth(names, pooled.mean(axis=0), pooled.std(axis=0), quantiles, error, source)


def equicorrelated(x: Float[Array, " D"]) -> Float[Array, ""]:
    """Return the log density of N(0, (1 - r) I + r 11'), by Sherman and Morrison's formula."""
    r, d = CORRELATION, x.shape[0]
    return -0.5 / (1 - r) * (jnp.sum(x**2) - r / (1 + (d - 1) * r) * jnp.sum(x) ** 2)


def autoregressive(x: Float[Array, " 50"]) -> Float[Array, ""]:
    """Return the log density of x_t = scale_t u_t, u_t ~ N(r u_{t-1}, 1 - r^2), u_1 ~ N(0, 1)."""
    u = x / jnp.asarray(SCALES, x.dtype)
    steps = u[1:] - CORRELATION * u[:-1]
    return -0.5 * (u[0] ** 2 + jnp.sum(steps**2) / (1 - CORRELATION**2))


def normal_truth(sd: np.ndarray) -> Truth:
    """Return the truth of normal coordinates with mean zero."""
    names = [f"x[{i + 1}]" for i in range(len(sd))]
    zero = np.zeros_like(sd)
    return Truth(names, zero, sd, NORMAL_QUANTILES[:, None] * sd, zero, "closed form")


def banana(x: Float[Array, " D"]) -> Float[Array, ""]:
    """Return the log density of the banana in the first two coordinates, N(0, 1) in the rest."""
    return banana_log_density(x[:2]) - 0.5 * jnp.sum(x[2:] ** 2)


@functools.cache
def banana_truth(dimension: int) -> Truth:
    """Return the truth of 1,000,000 exact draws, and closed forms for the normal coordinates."""
    columns = exact_banana(np.random.default_rng(0), EXACT_SIZE)
    bent = from_draws(list(columns), np.stack(list(columns.values()), -1)[None], "exact draws")
    rest = normal_truth(np.ones(dimension - 2))
    names = [f"x[{i + 1}]" for i in range(dimension)]
    join = functools.partial(np.concatenate, axis=-1)
    parts = zip(
        (bent.mean, bent.sd, bent.quantiles, bent.error),
        (rest.mean, rest.sd, rest.quantiles, rest.error),
        strict=True,
    )
    return Truth(names, *(join(pair) for pair in parts), source="exact draws")


def logistic_regression(design: Float[Array, "N D"], y: Float[Array, " N"]) -> None:
    """Logistic regression: beta ~ N(0, 2.5), y ~ Bernoulli(logit = X beta)."""
    beta = numpyro.sample("beta", dist.Normal(0.0, PRIOR_SCALE).expand([design.shape[1]]))
    numpyro.sample("y", dist.Bernoulli(logits=design @ beta), obs=y)


def breast_cancer() -> Posterior:
    """Return the regression of scikit-learn's breast cancer data on its ten mean measurements."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = x[:, :NUM_PREDICTORS]
    design = np.column_stack([np.ones(len(x)), (x - x.mean(axis=0)) / x.std(axis=0)])
    args = (jnp.asarray(design, jnp.float32), jnp.asarray(y, jnp.float32))
    return Posterior("breast_cancer", logistic_regression, scalars(beta=1), args)


def eight_schools() -> Posterior:
    """Return noncentred eight schools with the scalars that the model samples."""
    sites = scalars(mu=0, tau=0, theta_trans=1)
    return Posterior("eight_schools_noncentred", eight_schools_noncentred, sites, SCHOOLS)


def from_posterior(posterior: Posterior, cache: Path = CACHE, name: str | None = None) -> Target:
    """Return the target of a NumPyro model: its sites, unconstrained, in one vector."""
    info = initialize_model(
        jax.random.key(0),
        posterior.model,
        model_args=posterior.args,
        model_kwargs=posterior.kwargs,
        validate_grad=False,
    )
    flat, unravel = ravel_pytree(info.param_info.z)
    constrain = jax.jit(jax.vmap(lambda x: info.postprocess_fn(unravel(x))))

    @functools.cache
    def truth() -> Truth:
        found = reference(posterior, cache)
        return from_draws(found.names, found.draws, found.source)

    def to_scalars(draws: np.ndarray) -> np.ndarray:
        columns = posterior.to_reference(constrain(jnp.asarray(draws)))
        return np.stack([np.asarray(columns[n]) for n in truth().names], axis=-1)

    return Target(
        name or posterior.name,
        flat.size,
        lambda x: -info.potential_fn(unravel(x)),
        truth,
        to_scalars,
    )


_BUNDLED: dict[str, Callable[[Path], Target]] = {
    "gaussian_10": lambda _: Target(
        "gaussian_10", 10, equicorrelated, lambda: normal_truth(np.ones(10))
    ),
    "gaussian_50": lambda _: Target(
        "gaussian_50", 50, autoregressive, lambda: normal_truth(SCALES)
    ),
    "banana_2": lambda _: Target("banana_2", 2, banana, lambda: banana_truth(2)),
    "banana_8": lambda _: Target("banana_8", 8, banana, lambda: banana_truth(8)),
    "eight_schools": lambda cache: from_posterior(eight_schools(), cache, "eight_schools"),
    "breast_cancer": lambda cache: from_posterior(breast_cancer(), cache),
}
BUNDLED = tuple(_BUNDLED)


def names(data: Path | None) -> list[str]:
    """Return the names of the targets that can run; posteriordb's need its folder."""
    return [*BUNDLED, *(posteriors.NAMES if data is not None else ())]


def find(name: str, data: Path | None = None, cache: Path = CACHE) -> Target:
    """Return the target of that name.

    Raises:
        ValueError: when the name is unknown, or needs `data`.
    """
    if name in _BUNDLED:
        return _BUNDLED[name](cache)
    if name not in posteriors.NAMES:
        raise ValueError(f"`name` must be one of {(*BUNDLED, *posteriors.NAMES)}; got {name!r}.")
    if data is None:
        raise ValueError(f"`data` must name the folder of posteriordb to run {name!r}; got None.")
    return from_posterior(posteriors.load(data, name), cache)
