"""FunctionalELBO with the default network on 26 points with a gap: standard deviations beside those of the exact process."""
import numpy as np, jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
from numpyro.infer import SVI
from numpyro.contrib.module import eqx_module
import implicitppl as ip
GP = getattr(ip.gp, "GaussianProcess", None) or ip.gp.GaussianProcess
rng = np.random.default_rng(7); x = np.sort(np.r_[rng.uniform(-2, -.5, 13), rng.uniform(.5, 2, 13)]); y = np.sin(1.7 * x) - .3 * x + .15 * rng.normal(size=26)
xs = np.linspace(-2, 2, 33); k = lambda a, b: np.exp(-.5 * (a[:, None] - b) ** 2 / .49); A = np.linalg.solve(k(x, x) + .15**2 * np.eye(26), np.c_[y, k(x, xs)])
mu, sd = k(xs, x) @ A[:, 0], np.sqrt(1 - np.sum(k(x, xs) * A[:, 1:], 0)); X, Y = jnp.asarray(x)[:, None], jnp.asarray(y); prior = GP(ip.kernels.RBF(lengthscale=.7))
def model(X, Y=None): numpyro.sample("y", dist.Normal(numpyro.sample("f", prior(X)), .15).to_event(1), obs=Y)
net = ip.processes.BayesianNetwork(1, width=50, depth=2, key=jax.random.key(0))
def guide(X, Y=None): numpyro.sample("f", eqx_module("q", net)(X))
r = SVI(model, guide, optax.adam(2e-3), loss=ip.infer.FunctionalELBO(num_particles=100)).run(jax.random.key(0), 8000, X, Y, progress_bar=False)
with numpyro.handlers.seed(rng_seed=1), numpyro.handlers.substitute(data=r.params): S = np.asarray(eqx_module("q", net).sample(jax.random.key(2), jnp.asarray(xs)[:, None], 2000))
print("sd over exact sd by point:", (S.std(0) / sd).round(2), "| mean error in exact sd, largest", (np.abs(S.mean(0) - mu) / sd).max().round(2))
