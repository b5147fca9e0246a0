"""GPJax: its objective and posterior, in a loop compiled once; parameters as ours.

`gpjax.fit` traces anew at every call, and a posterior called outside `jit` runs operation by
operation: both are compiled here, once for each shape, which is the best that a user can do.
Parameters are logarithms, that of the noise of its standard deviation, as in the other libraries.
"""

from functools import partial

import equinox as eqx
import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gp_worker import NOISE_VARIANCE, Problem, serve
from gpjax.parameters import NonNegativeReal

jax.config.update("jax_enable_x64", True)
JITTER = 1e-10
"""Its default, 1e-6, is as large as the noise of yacht."""


class Log(NonNegativeReal):
    """A positive parameter that is learned as its logarithm."""

    def __init__(self, value):
        self._unconstrained = jnp.log(jnp.asarray(value))

    def unwrap(self):
        return jnp.exp(self._unconstrained)


def objective(model, data):
    """Return the log evidence, or the collapsed bound of it."""
    if isinstance(model, gpx.variational_families.CollapsedVariationalGaussian):
        return gpx.objectives.collapsed_elbo(model, data)
    return gpx.objectives.conjugate_mll(model, data)


@partial(jax.jit, static_argnames=("num_steps", "total"))
def advance(model, state, data, rate, num_steps: int, total: int):
    """Return model and optimiser state after more steps."""
    optimiser = adam(rate, total)

    def step(carry, _):
        model, state = carry
        _, slope = jax.value_and_grad(lambda m: -objective(m, data))(model)
        updates, state = optimiser.update(slope, state, model)
        return (eqx.apply_updates(model, updates), state), None

    return jax.lax.scan(step, (model, state), None, num_steps)[0]


def adam(rate, total: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, total))


@jax.jit
def predictive(posterior, likelihood, x):
    found = posterior(x, covariance="diagonal")
    return found.mean, found.variance + likelihood.obs_stddev.unwrap() ** 2


evidence = jax.jit(objective)
condition = jax.jit(lambda model, data: model.condition(data))


class Regression:
    def __init__(self, problem: Problem):
        self.problem = problem
        self.data = gpx.Dataset(X=jnp.asarray(problem.x), y=jnp.asarray(problem.y)[:, None])
        kernel = gpx.kernels.RBF(
            n_dims=problem.x.shape[1], lengthscale=Log(problem.lengthscale), variance=Log(1.0)
        )
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel, jitter=JITTER)
        self.model = prior * gpx.likelihoods.Gaussian(Log(NOISE_VARIANCE**0.5))
        if problem.inducing is not None:
            collapsed = gpx.variational_families.CollapsedVariationalGaussian
            self.model = collapsed(self.model, jnp.asarray(problem.inducing))
        self.state = adam(problem.learning_rate, problem.num_steps).init(self.model)
        self.posterior = None

    def train(self, num_steps: int) -> None:
        rate, total = self.problem.learning_rate, self.problem.num_steps
        self.model, self.state = advance(self.model, self.state, self.data, rate, num_steps, total)
        jax.block_until_ready(self.model)
        self.posterior = None

    def log_evidence(self) -> float:
        return float(evidence(self.model, self.data))

    def predict(self) -> tuple[np.ndarray, np.ndarray]:
        if self.posterior is None:
            self.posterior = condition(self.model, self.data)
        joint = getattr(self.model, "model", self.model)
        x_test = jnp.asarray(self.problem.x_test)
        mean, variance = predictive(self.posterior, joint.likelihood, x_test)
        return np.asarray(mean), np.asarray(variance)


if __name__ == "__main__":
    serve(Regression)
