"""ArviZ containers from NumPyro: MCMC runs and variational fits, one function, both ArviZ lines.

Groups: `posterior` (latent and deterministic sites), `posterior_predictive`, `log_likelihood`,
`sample_stats` (MCMC), `prior` and `prior_predictive` on request, `observed_data`, `constant_data`.
Plates name the dimensions. A variational fit is one chain of independent draws.

Shapes: every variable of a draw-wise group is `(chain, draw, ...)`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.autoguide import AutoGuide

from implicitppl._core.checks import check_count
from implicitppl.diagnostics._arviz.functions import FunctionDraws, drawn_functions
from implicitppl.diagnostics._arviz.replay import numpy_dict, replay, site_dims
from implicitppl.diagnostics._arviz.versions import container, import_arviz
from implicitppl.diagnostics._guide_draws import params_of
from implicitppl.models._call import Call
from implicitppl.models._sites import (
    forget_data,
    is_black_box,
    is_latent,
    is_likelihood,
)

_STAT_NAMES = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}


def to_arviz(
    source: Any,
    result: Any = None,
    model: Callable | None = None,
    *,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    rng_key: Array | None = None,
    num_samples: int = 1000,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    num_prior_samples: int = 0,
    constant_data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 100,
) -> Any:
    """`InferenceData` (ArviZ 0.x) or `DataTree` (1.x) of an MCMC run or of a variational fit.

    `to_arviz(mcmc)` needs nothing else; `to_arviz(guide, result, model_args=(data,))` takes any
    guide, with the model given for a guide that is a function; `to_arviz({"f": predict(...)})`
    takes functions drawn at any inputs, with the inputs as constant data `f_x`. Factor and
    surrogate sites are never exported as log likelihood, prediction or observed data. Predictions
    simulate every observed site; data that the model also takes as inputs (lagged values) stay.

    Args:
        source: `numpyro.infer.MCMC` after `run`, a guide, or a dict of names and
            `implicitppl.infer.FunctionSamples`, all of as many functions. A fit or a model is then
            refused, and settings of replays have no effect; dimensions are called `f_point`,
            `f_output` and `f_input`.
        result: for a guide, its fit: anything with `.params`, or the dict itself.
        model: needed with a guide that is a plain function; otherwise taken from the source.
        model_args: arguments of the model; default those of `mcmc.run`.
        model_kwargs: keyword arguments of the model; likewise.
        rng_key: key for guide draws and predictions; default `jax.random.key(0)`.
        num_samples: draws of a guide. An MCMC run keeps its own.
        posterior_predictive: simulate data at every draw.
        log_likelihood: evaluate every likelihood at every draw, `draws x data` numbers. Switch off
            for large data and for models that call host functions.
        num_prior_samples: draws for the prior groups; 0 leaves them out.
        constant_data: named arrays to store, e.g. covariates.
        coords: labels of dimensions.
        dims: names of the dimensions of a variable, instead of its plates.
        batch_size: draws replayed at once; memory grows with it.

    Returns:
        The container of the installed ArviZ line, with the same groups, variables and dimensions on
        both; `.to_netcdf(path)` writes it.

    Raises:
        ValueError: an MCMC that has not run, a missing fit or model, a model site without draws,
            coords of the wrong length, different numbers of functions, functions with a model
            or without a name.

    Reference:
        The InferenceData schema of ArviZ.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from implicitppl.diagnostics import to_arviz
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> guide = AutoNormal(model)
        >>> loss, optimiser = numpyro.infer.Trace_ELBO(), numpyro.optim.Adam(0.1)
        >>> svi = numpyro.infer.SVI(model, guide, optimiser, loss)
        >>> fit = svi.get_params(svi.init(jax.random.key(0), 1.0))
        >>> data = to_arviz(guide, fit, model_args=(1.0,), num_samples=50)
        >>> data["posterior"]["mu"].shape
        (1, 50)
    """
    check_count("num_samples", num_samples, 1)
    check_count("batch_size", batch_size, 1)
    key = random.key(0) if rng_key is None else rng_key
    draw_key, replay_key, prior_key = random.split(key, 3)
    if isinstance(source, FunctionDraws):
        raise ValueError("drawn functions need a name: to_arviz({'f': functions}).")
    if isinstance(source, Mapping):
        if result is not None or model is not None or model_args or model_kwargs:
            raise ValueError(
                "`result`, `model` and its arguments are for a guide; with drawn functions, which "
                "have none, they would be ignored."
            )
        draws, inputs, names = drawn_functions(source)
        run = _Run(draws, None, (), {})
        constant_data, dims = {**inputs, **(constant_data or {})}, {**names, **(dims or {})}
    elif isinstance(source, MCMC):
        run = _from_mcmc(source, model, model_args, model_kwargs)
    else:
        run = _from_guide(draw_key, source, result, model, model_args, model_kwargs, num_samples)
    layout = _Layout(run, dict(coords or {}), {k: list(v) for k, v in (dims or {}).items()})
    groups = {"posterior": run.draws}
    if run.model is not None:
        switches = {
            "deterministic": not isinstance(source, MCMC),
            "log_likelihood": log_likelihood,
            "predictive": posterior_predictive,
        }
        groups |= _replayed(replay_key, run, switches, batch_size)
    groups["sample_stats"] = run.stats
    data_sets = {k: layout.drawn(v) for k, v in groups.items() if v}
    if run.model is not None and num_prior_samples:
        data_sets |= _prior(prior_key, run, layout, num_prior_samples)
    data_sets |= _constant_groups(run, layout, constant_data)
    return container(data_sets)


class _Run:
    """Grouped draws `(chain, draw, ...)`, the model with its arguments, its trace at one draw."""

    def __init__(
        self, draws: Any, model: Any, args: tuple, kwargs: dict[str, Any], stats: Any = None
    ) -> None:
        self.draws = draws
        self.model = model
        self.args = tuple(args)
        self.kwargs = dict(kwargs)
        self.stats = stats or {}
        self.trace: dict[str, Any] = {}
        self.other_boxes: set[str] = set()  # given other inputs than in the run
        if model is not None:
            self.trace = self._trace_at(self.args, self.kwargs)

    def compare_boxes(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find the black boxes whose outputs cannot be kept, by their inputs at the first draw.

        Args:
            args: of the model, when the draws were made.
            kwargs: those given by name.
        """
        before = self._trace_at(args, kwargs)
        for name, site in self.trace.items():
            if is_black_box(site) and not _same_inputs(site, before.get(name)):
                self.other_boxes.add(name)

    def _trace_at(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a trace of the model at the first draw."""
        # As JAX arrays: a model may call `site.at[...]`.
        first = {k: jnp.asarray(v[0, 0]) for k, v in self.draws.items()}
        return Call(self.model, args, kwargs).trace(random.key(0), first)

    def latents(self) -> dict[str, Any]:
        """Flat draws `(S, ...)` of the model's latent sites; every one of them must be there.

        With them go the outputs of black boxes, where the run kept them: no host is called again,
        unless the arguments give a box other inputs.
        """
        names = [k for k, site in self.trace.items() if is_latent(site)]
        missing = [k for k in names if k not in self.draws]
        if missing:
            raise ValueError(
                f"the posterior must have draws of every latent site; {missing} missing. "
                "Set `log_likelihood=False` and `posterior_predictive=False` to leave them out."
            )
        boxes = [k for k, site in self.trace.items() if is_black_box(site) and k in self.draws]
        boxes = [k for k in boxes if k not in self.other_boxes]
        return {k: self.draws[k].reshape((-1, *self.draws[k].shape[2:])) for k in names + boxes}


def _from_mcmc(mcmc: Any, model: Any, args: tuple | None, kwargs: Any) -> _Run:
    try:
        samples = mcmc.get_samples(group_by_chain=True)
    except (AssertionError, AttributeError, TypeError, KeyError):
        samples = None
    if samples is None:
        raise ValueError("`source` must be an MCMC that has run; got one without samples.")
    if hasattr(samples, "_asdict"):
        samples = samples._asdict()
    if not isinstance(samples, Mapping):
        import jax

        samples = {f"Param:{i}": v for i, v in enumerate(jax.tree.leaves(samples))}
    model = mcmc.sampler.model if model is None else model
    is_other = args is not None or kwargs is not None
    args = mcmc._args if args is None else args
    kwargs = mcmc._kwargs if kwargs is None else kwargs
    run = _Run(numpy_dict(samples), model, args or (), kwargs or {}, _sample_stats(mcmc))
    if is_other and any(is_black_box(site) for site in run.trace.values()):
        run.compare_boxes(mcmc._args, mcmc._kwargs)
    return run


def _same_inputs(site: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Whether a black box is given the inputs that it was given."""
    if before is None or len(site["args"]) != len(before["args"]):
        return False
    pairs = zip(site["args"], before["args"], strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _sample_stats(mcmc: Any) -> dict[str, np.ndarray]:
    fields = numpy_dict(mcmc.get_extra_fields(group_by_chain=True))
    stats = {_STAT_NAMES.get(k, k): v for k, v in fields.items()}
    if "lp" in stats:
        stats["lp"] = -stats["lp"]
    if "n_steps" in stats and isinstance(mcmc.sampler, NUTS):
        stats["tree_depth"] = (
            np.floor(np.log2(np.maximum(stats["n_steps"], 1))).astype(np.int64) + 1
        )
    return stats


def _from_guide(
    key: Array,
    guide: Any,
    result: Any,
    model: Any,
    args: tuple | None,
    kwargs: Any,
    num_samples: int,
) -> _Run:
    if result is None:
        raise ValueError(
            "`result` must be the fit of the guide (with `.params`) or a dict; got None."
        )
    if not callable(guide):
        raise ValueError(f"`source` must be a numpyro MCMC or a guide; got {type(guide).__name__}.")
    model = getattr(guide, "model", None) if model is None else model
    if model is None:
        raise ValueError("`model` must be given with a guide that is a function; got None.")
    params, args, kwargs = params_of(result), tuple(args or ()), dict(kwargs or {})
    if isinstance(guide, AutoGuide):
        draws = guide.sample_posterior(key, params, *args, sample_shape=(num_samples,), **kwargs)
    else:
        predictive = Predictive(guide, params=params, num_samples=num_samples)
        draws = predictive(key, *args, **kwargs)
    grouped = {k: v[None] for k, v in numpy_dict(draws).items()}
    run = _Run(grouped, handlers.substitute(model, data=params), args, kwargs)
    # a guide draws auxiliary sites as well; deterministic ones come from the replay
    run.draws = {k: v for k, v in grouped.items() if k in run.trace and is_latent(run.trace[k])}
    return run


def _replayed(key: Array, run: Any, switches: Any, batch_size: Any) -> dict[str, Any]:
    """Groups that come from running the model at every draw; empty where nothing is asked."""
    data = any(is_likelihood(site) for site in run.trace.values())
    wanted = {
        "deterministic": switches["deterministic"]
        and any(site["type"] == "deterministic" for site in run.trace.values()),
        "log_likelihood": switches["log_likelihood"] and data,
        "predictive": switches["predictive"] and data,
    }
    if not any(wanted.values()):
        return {}
    fixed, likelihood, new = replay(
        key,
        Call(run.model, run.args, run.kwargs),
        run.latents(),
        batch_size=batch_size,
        **wanted,
    )
    shape = next(iter(run.draws.values())).shape[:2]

    def grouped(values: Any) -> Any:
        return {k: v.reshape((*shape, *v.shape[1:])) for k, v in numpy_dict(values).items()}

    return {
        "posterior": run.draws | grouped(fixed),
        "posterior_predictive": grouped(new),
        "log_likelihood": grouped(likelihood),
    }


def _prior(key: Array, run: Any, layout: Any, num: int) -> dict[str, Any]:
    sites = [k for k, s in run.trace.items() if is_latent(s) or s["type"] == "deterministic"]
    data = [k for k, s in run.trace.items() if is_likelihood(s)]
    predictive = Predictive(forget_data(run.model), num_samples=num, return_sites=sites + data)
    draws = {k: v[None] for k, v in numpy_dict(predictive(key, *run.args, **run.kwargs)).items()}
    groups = {
        "prior": {k: v for k, v in draws.items() if k in sites},
        "prior_predictive": {k: v for k, v in draws.items() if k in data},
    }
    return {k: layout.drawn(v) for k, v in groups.items() if v}


def _constant_groups(run: Any, layout: Any, constant_data: Any) -> dict[str, Any]:
    observed = {k: s["value"] for k, s in run.trace.items() if is_likelihood(s)}
    groups = {"observed_data": numpy_dict(observed)}
    groups["constant_data"] = {k: np.asarray(v) for k, v in (constant_data or {}).items()}
    return {k: layout.data_set(v, ()) for k, v in groups.items() if v}


class _Layout:
    """Names and labels of dimensions, and the data sets made with them."""

    def __init__(self, run: Any, coords: Any, dims: Any) -> None:
        self._trace = run.trace
        # xarray: no dimension may have the name of a variable
        self._variables = {k for k, site in run.trace.items() if site["type"] != "plate"}
        self._coords = {k: np.asarray(v) for k, v in coords.items()}
        self._dims = dims

    def drawn(self, variables: Any) -> Any:
        """Data set of `(chain, draw, ...)` variables."""
        return self.data_set(variables, ("chain", "draw"))

    def data_set(self, variables: Any, leading: Any) -> Any:
        """Data set whose first axes are `leading`."""
        import numpyro
        import xarray

        arviz, _ = import_arviz()
        sizes: dict[str, int] = {}
        entries = {}
        for name, values in variables.items():
            own = self._names(name, values.shape[len(leading) :], sizes)
            entries[name] = ((*leading, *own), values)
        coords = {d: np.arange(n) for d, n in sizes.items()}
        coords |= {d: self._labels(d, n) for d, n in sizes.items() if d in self._coords}
        first = next(iter(variables.values()))
        coords |= {d: np.arange(first.shape[i]) for i, d in enumerate(leading)}
        attrs = {
            "inference_library": "numpyro",
            "inference_library_version": numpyro.__version__,
            "arviz_version": arviz.__version__,
        }
        return xarray.Dataset(entries, coords=coords, attrs=attrs)

    def _names(self, name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> list[str]:
        """A name per axis; a plate name already used with another size becomes a generic one."""
        if name in self._dims:
            given: list[str | None] = list(self._dims[name])
            if len(given) > len(shape):
                raise ValueError(
                    f"`dims[{name!r}]` must name at most {len(shape)} axes; got {given}."
                )
            given += [None] * (len(shape) - len(given))
        elif name in self._trace:
            given = site_dims(self._trace[name], shape)
        else:
            given = [None] * len(shape)
        names: list[str] = []
        for axis, (label, size) in enumerate(zip(given, shape, strict=True)):
            taken = label in names or label in self._variables
            if label is None or taken or sizes.get(label, size) != size:
                label = f"{name}_dim_{axis}"
            sizes[label] = size
            names.append(label)
        return names

    def _labels(self, dim: str, size: int) -> np.ndarray:
        labels = self._coords[dim]
        if len(labels) != size:
            raise ValueError(f"`coords[{dim!r}]` must have {size} labels; got {len(labels)}.")
        return labels
