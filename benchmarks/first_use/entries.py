"""One entry point in one process: `python -m benchmarks.first_use.entries NAME [PROBLEM]`.

Prints one JSON line for each stage, `{"entry": ..., "stage": "first" or "again", ...}`. The stage
"first" of a guide begins with the process: interpreter, imports, data and the first 1,000 draws are
in it. All others begin where the imports are done. "again" is the same call on other data of equal
shape, in the same process.

No import that takes long stands at the top: the clock of this process runs from its start.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.first_use.costs import Costs, costs

NUM_DRAWS = 1000
GUIDES = ("AutoImplicit", "AutoMultivariateNormal", "AutoBNAFNormal")
REPORT = "report"


def emit(entry: str, problem: str, stage: str, cost: Costs, **more: Any) -> None:
    row = {"entry": entry, "problem": problem, "stage": stage, **cost.as_row(), **more}
    print(json.dumps(row), flush=True)


def guide(name: str, problem_name: str, quick: bool) -> None:
    """A guide on a posterior: fit by the rule of `infer.fit`, 1,000 draws; ours with its report."""
    with costs(since=0.0) as first:
        import jax
        from numpyro.infer import autoguide

        import implicitppl as ip
        from benchmarks.first_use.problems import PROBLEMS

        problem = PROBLEMS[problem_name]()
        source: Any = ip.infer if name == "AutoImplicit" else autoguide
        fitted = getattr(source, name)(problem.model)
        options: dict[str, Any] = {"num_steps": 400} if quick else {}

        def draws(data: tuple[Any, ...]) -> Any:
            fit_key, draw_key = jax.random.split(jax.random.key(0))
            result = ip.infer.fit(
                fit_key, problem.model, fitted, *data, progress_bar=False, **options
            )
            sites = fitted.sample_posterior(
                draw_key, result.params, *data, sample_shape=(NUM_DRAWS,)
            )
            jax.block_until_ready(sites)
            return result

        result = draws(problem.data)
    emit(name, problem_name, "first", first, steps=result.num_steps)

    def check(result: Any, data: tuple[Any, ...]) -> None:
        key = jax.random.key(1)
        ip.diagnostics.report(key, problem.model, fitted, result, model_args=data)

    ours = name == "AutoImplicit"
    if ours:
        with costs() as first:
            check(result, problem.data)
        emit(REPORT, problem_name, "first", first)
    with costs() as again:
        result = draws(problem.other_data)
    emit(name, problem_name, "again", again, steps=result.num_steps)
    if ours:
        with costs() as again:
            check(result, problem.other_data)
        emit(REPORT, problem_name, "again", again)


def twice(entry: str, call: Callable[[int], Any]) -> None:
    """Measure `call(0)`, then `call(1)`: other data of equal shape."""
    import jax

    for i, stage in enumerate(("first", "again")):
        with costs() as cost:
            jax.block_until_ready(call(i))
        emit(entry, "", stage, cost)


def score_hmc(quick: bool) -> None:
    """Gradient-free HMC on a model with a black box of two parameters."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC

    import implicitppl as ip

    times = np.linspace(0.0, 3.0, 8)

    def decay(rate: Any, start: Any) -> np.ndarray:
        return np.asarray(start) * np.exp(-np.asarray(rate) * times)

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
        start = numpyro.sample("start", dist.LogNormal(1.0, 0.5))
        mean = ip.models.black_box("decay", decay, rate, start, out=(len(times),))
        numpyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)

    noise = np.random.default_rng(0).normal(size=(2, len(times)))
    data = [jnp.asarray(3.0 * np.exp(-0.7 * times) + 0.1 * e) for e in noise]
    size = {"num_warmup": 20, "num_samples": 20} if quick else {"num_warmup": 300}
    mcmc = MCMC(
        ip.infer.ScoreHMC(model),
        **{"num_samples": 250, **size},
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )

    def call(i: int) -> Any:
        mcmc.run(jax.random.key(i), data[i])
        return mcmc.get_samples()

    twice("ScoreHMC", call)


def select(quick: bool) -> None:
    """The score of 500 samples in ten dimensions, tuned by held-out score matching."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import implicitppl as ip

    samples = jnp.asarray(
        np.random.default_rng(0).standard_t(5.0, (2, 100 if quick else 500, 10)), jnp.float32
    )

    def call(i: int) -> Any:
        fitted = ip.score.select(samples[i], key=jax.random.key(i))
        return fitted(samples[i])

    twice("score.select", call)


def regression(num_rows: int) -> tuple[Any, Any]:
    """Return inputs (N, 3) and two sets of outputs (2, N)."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, 3))
    y = np.sin(x @ np.array([1.0, 0.5, -1.0])) + 0.1 * rng.normal(size=(2, num_rows))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def gp_fit(kernel: str, quick: bool) -> None:
    """Type-II maximum likelihood on 200 rows, then the posterior at 100 points."""
    import jax

    import implicitppl as ip

    x, y = regression(40 if quick else 200)
    start: Any = ip.kernels.RBF()
    if kernel == "network":
        start = ip.kernels.nkn_regression(x, key=jax.random.key(0))

    def call(i: int) -> Any:
        found = ip.gp.fit(
            ip.gp.GaussianProcess(start), x, y[i], 0.1, num_steps=20 if quick else 500
        )
        ahead = found.process.condition(x, y[i], found.noise_scale)(x[:20] + 0.1)
        return ahead.mean, ahead.variance

    twice(f"gp.fit, {kernel}", call)


def functional(quick: bool) -> None:
    """A Bayesian network under a prior over functions, trained by the functional ELBO."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    import optax
    from numpyro.contrib.module import eqx_module
    from numpyro.infer import SVI

    import implicitppl as ip

    x, y = regression(40 if quick else 200)
    prior = ip.gp.GaussianProcess(ip.kernels.RBF())
    network = ip.processes.BayesianNetwork(3, width=50, key=jax.random.key(1))

    def model(x: Any, y: Any) -> None:
        f = numpyro.sample("f", prior(x))
        numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)

    def guide(x: Any, y: Any) -> None:
        numpyro.sample("f", eqx_module("network", network)(x))

    svi = SVI(model, guide, optax.adam(1e-2), ip.infer.FunctionalELBO(num_particles=8))

    def call(i: int) -> Any:
        run = svi.run(jax.random.key(0), 20 if quick else 1000, x, y[i], progress_bar=False)
        return run.losses

    twice("FunctionalELBO", call)


ENTRIES: dict[str, Callable[[bool], None]] = {
    "ScoreHMC": score_hmc,
    "score.select": select,
    "gp.fit, RBF": lambda quick: gp_fit("RBF", quick),
    "gp.fit, network": lambda quick: gp_fit("network", quick),
    "FunctionalELBO": functional,
}
IMPORTS = {
    "numpyro, equinox, optax": "import numpyro, equinox, optax",
    "implicitppl": "import implicitppl",
}


def imports(name: str) -> None:
    """The CPU seconds from the start of the interpreter to the end of an import."""
    exec(IMPORTS[name])
    cost = Costs(run_seconds=time.process_time())
    emit(f"import {name}", "", "first", cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("entry", choices=[*GUIDES, *ENTRIES, *IMPORTS])
    parser.add_argument("problem", nargs="?", default="")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.entry in GUIDES:
        guide(args.entry, args.problem, args.quick)
    elif args.entry in IMPORTS:
        imports(args.entry)
    else:
        ENTRIES[args.entry](args.quick)


if __name__ == "__main__":
    main()
