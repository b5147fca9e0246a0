"""The PyPI package `non_param_score_est`, with the defaults of its constructors, jitted.

Needs jax 0.4.35, dm-haiku 0.0.12 and tensorflow-probability 0.25.0 in an environment of its own.
"""

import jax
import numpy as np
from non_param_score_est.estimators import SSGE, Stein
from worker import serve


def jitted(estimator: object) -> object:
    """Return samples, queries -> scores, compiled."""
    call = jax.jit(lambda queries, samples: estimator.estimate_gradients_s_x(queries, samples))
    return lambda samples, queries: np.asarray(call(queries, samples))


if __name__ == "__main__":
    serve({"npse SSGE": jitted(SSGE())})
    serve({"npse Stein": jitted(Stein())}, largest=100)
