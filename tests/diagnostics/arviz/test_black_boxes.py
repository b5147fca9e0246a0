"""What the ArviZ container says of models with black boxes: kept outputs, and new ones."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.infer import MCMC

from implicitppl.diagnostics import to_arviz
from implicitppl.infer import ScoreHMC
from implicitppl.models import black_box

X = jnp.ones(3)
CALLS: list[float] = []


def product(mu: np.ndarray, x: np.ndarray) -> np.ndarray:
    CALLS.append(float(mu))
    return mu * x


def model(x: Array, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    mean = black_box("f", product, mu, x, out=(3,))
    numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def test_predictions_at_other_inputs_call_the_box() -> None:
    """What the run kept are outputs at its own inputs."""

    class Finished(MCMC):
        """A run of which only the draws are there."""

        def get_samples(self, group_by_chain: bool = False) -> Any:
            mu = jnp.linspace(2.9, 3.1, 40)[None]
            return {"mu": mu, "f": mu[..., None] * X}

        def get_extra_fields(self, group_by_chain: bool = False) -> Any:
            return {}

    run = Finished(ScoreHMC(model), num_warmup=1, num_samples=40, progress_bar=False)
    run._args, run._kwargs = (X, jnp.array([3.0, 3.1, 2.9])), {}

    def predicted(*args: Any) -> np.ndarray:
        found: Any = to_arviz(run, model_args=args)
        return np.asarray(found["posterior_predictive"]["y"]).mean(axis=(0, 1))

    CALLS.clear()
    np.testing.assert_allclose(predicted(X, jnp.zeros(3)), 3.0, atol=0.7)
    assert not CALLS  # other arguments, but the box's inputs are those of the run
    np.testing.assert_allclose(predicted(100 * X, jnp.zeros(3)), 300.0, atol=0.7)
    assert len(set(CALLS)) == 40  # once for the likelihood of the data, once for predictions
