"""Three posteriors of everyday size, each with a second data set of equal shape.

| name | model | latent scalars |
|---|---|---|
| eight_schools | the noncentred hierarchy of `benchmarks.accuracy.targets` | 10 |
| kidscore | test score on mother's school, IQ and their product | 5 |
| logistic | malignant or not, from eleven measurements of a breast mass | 12 |

The scores of the 434 children (Gelman and Hill 2007, chapter 3) come with no package that the
project needs, so the responses are drawn around the regression that they print. The second data set
of each has the inputs of the first and other responses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.accuracy.targets import SCHOOLS, eight_schools_noncentred

NUM_CHILDREN = 434
KIDSCORE = np.array([-11.5, 51.3, 1.1, -0.5])
KIDSCORE_ERROR = 18.0


class Problem(NamedTuple):
    """A model, its data, and other data of equal shape."""

    model: Callable[..., None]
    data: tuple[Any, ...]
    other_data: tuple[Any, ...]


def kidscore_model(design: Any, score: Any) -> None:
    """Score of a child: intercept, mother went to high school, her IQ, their product."""
    scale = jnp.array([50.0, 50.0, 2.0, 2.0])
    beta = numpyro.sample("beta", dist.Normal(0.0, scale).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(25.0))
    numpyro.sample("score", dist.Normal(design @ beta, sigma).to_event(1), obs=score)


def logistic_model(design: Any, malignant: Any) -> None:
    """Bernoulli responses, normal priors on twelve coefficients."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.5).expand([design.shape[1]]).to_event(1))
    numpyro.sample("malignant", dist.Bernoulli(logits=design @ beta).to_event(1), obs=malignant)


def eight_schools() -> Problem:
    effects, errors = SCHOOLS
    return Problem(eight_schools_noncentred, SCHOOLS, (effects + 1.0, errors))


def kidscore() -> Problem:
    rng = np.random.default_rng(0)
    school = (rng.random(NUM_CHILDREN) < 0.786).astype(np.float32)
    iq = rng.normal(100.0, 15.0, NUM_CHILDREN)
    design = np.stack([np.ones(NUM_CHILDREN), school, iq, school * iq], axis=1)
    first, other = design @ KIDSCORE + KIDSCORE_ERROR * rng.normal(size=(2, NUM_CHILDREN))
    x = jnp.asarray(design, jnp.float32)
    return Problem(kidscore_model, (x, _floats(first)), (x, _floats(other)))


def logistic() -> Problem:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    inputs = data.data[:, :11]
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    design = _floats(np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1))
    malignant = _floats(data.target == 0)
    flipped = np.random.default_rng(0).random(len(inputs)) < 0.05
    other = jnp.where(flipped, 1 - malignant, malignant)
    return Problem(logistic_model, (design, malignant), (design, other))


def _floats(values: Any) -> Any:
    return jnp.asarray(np.asarray(values), jnp.float32)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "eight_schools": eight_schools,
    "kidscore": kidscore,
    "logistic": logistic,
}
