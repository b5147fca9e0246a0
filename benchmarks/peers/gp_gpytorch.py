"""GPyTorch: exact inference by Cholesky factors, or inducing points, parameters as ours.

Its default switches to conjugate gradients beyond 800 rows, which costs accuracy on concrete; that
is switched off here. With inducing points its predictions are those of another model than the one
whose bound it trains, with corrected variances at the training inputs too; that is switched off and
the test inputs' own part added, so that predictions are Titsias's. Parameters are logarithms, the
noise that of a standard deviation: the path of Adam is then the same in all libraries.
"""

import math

import gpytorch
import numpy as np
import torch
from gp_worker import NOISE_VARIANCE, Problem, serve
from gpytorch.constraints import Positive

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Model(gpytorch.models.ExactGP):
    """Zero mean, RBF-ARD, seen through inducing points where there are any."""

    def __init__(self, x, y, likelihood, lengthscale, inducing=None):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        base = gpytorch.kernels.RBFKernel(
            ard_num_dims=x.shape[1], lengthscale_constraint=logarithmic()
        )
        self.exact = gpytorch.kernels.ScaleKernel(base, outputscale_constraint=logarithmic())
        base.lengthscale, self.exact.outputscale = lengthscale, 1.0
        self.covar_module = (
            self.exact
            if inducing is None
            else gpytorch.kernels.InducingPointKernel(self.exact, inducing, likelihood)
        )

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def logarithmic(power: int = 1) -> Positive:
    """Return the constraint under which log(x) / power is learned."""
    return Positive(lambda u: torch.exp(power * u), lambda x: torch.log(x) / power)


class Regression:
    def __init__(self, problem: Problem):
        self.problem, self.done = problem, 0
        self.x, self.y, self.x_test = (torch.from_numpy(a) for a in problem[:3])
        inducing = None if problem.inducing is None else torch.from_numpy(problem.inducing)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=logarithmic(2))
        lengthscale = torch.from_numpy(problem.lengthscale)
        self.model = Model(self.x, self.y, likelihood, lengthscale, inducing)
        likelihood.noise = NOISE_VARIANCE
        self.mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, self.model)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=problem.learning_rate)

    def evidence(self) -> torch.Tensor:
        dense = self.problem.inducing is None  # else Woodbury, which is what "fast" means there
        with gpytorch.settings.fast_computations(not dense, not dense, not dense):
            return self.mll(self.model(self.x), self.y) * len(self.y)

    def train(self, num_steps: int) -> None:
        self.model.train()
        for _ in range(num_steps):
            share = min(self.done / self.problem.num_steps, 1)
            rate = self.problem.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            self.optimiser.param_groups[0]["lr"] = rate
            self.optimiser.zero_grad()
            (-self.evidence()).backward()
            self.optimiser.step()
            self.done += 1

    def log_evidence(self) -> float:
        self.model.train()
        with torch.no_grad():
            return float(self.evidence())

    def predict(self) -> tuple[np.ndarray, np.ndarray]:
        self.model.eval()  # the factor of the training data is kept from the first call on
        fast = gpytorch.settings.fast_pred_var(False)
        plain = gpytorch.settings.sgpr_diagonal_correction(False)
        exact = gpytorch.settings.fast_computations(False, False, False)
        with torch.no_grad(), fast, plain, exact:
            found = self.model.likelihood(self.model(self.x_test))
            return found.mean.numpy(), (found.variance + self.unseen()).numpy()

    def unseen(self) -> torch.Tensor | float:
        """Return the prior variances that the inducing points do not explain, 0 without them."""
        if self.problem.inducing is None:
            return 0.0
        seen = self.model.covar_module(self.x_test, diag=True)
        return self.model.exact(self.x_test, diag=True) - seen


if __name__ == "__main__":
    serve(Regression)
