"""GPyTorch's exact training step on a GPU: Cholesky factors, RBF-ARD, as `gp_gpytorch` has it.

python gpu_gpytorch.py 1000 4000    prints one JSON line for each number of rows and precision
"""

import json
import sys
import time

import gpytorch
import numpy as np
import torch
from gp_gpytorch import Model, logarithmic

NUM_DIMS, REPEATS, MAX_SECONDS = 8, 50, 4.0


def step_seconds(num: int, dtype: torch.dtype) -> list[float]:
    """Return wall-clock seconds of value and gradient of the log evidence."""
    torch.set_default_dtype(dtype)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, NUM_DIMS))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=num)
    x, y = (torch.as_tensor(a, dtype=dtype, device="cuda") for a in (x, y))
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=logarithmic(2))
    model = Model(x, y, likelihood)
    model.covar_module.base_kernel.lengthscale = 2.5
    likelihood.noise = 0.09
    model.cuda().train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    taken = []
    while len(taken) < REPEATS and (len(taken) < 4 or sum(taken[1:]) < MAX_SECONDS):
        begin = time.perf_counter()
        model.zero_grad()
        with gpytorch.settings.fast_computations(False, False, False):
            (-mll(model(x), y) * num).backward()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return taken[1:]


for size in map(int, sys.argv[1:]):
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        row = {"case": "GPyTorch, RBF", "size": size, "precision": name, "platform": "gpu"}
        row["device"] = torch.cuda.get_device_name()
        row["versions"] = {"torch": torch.__version__, "gpytorch": gpytorch.__version__}
        try:
            taken = step_seconds(size, dtype)
            row |= {"seconds": float(np.median(taken)), "repeats": len(taken)}
        except RuntimeError as error:
            row["error"] = str(error).splitlines()[0][:200]
        print(json.dumps(row), flush=True)
