"""kernel_stein_discrepancy of draws of which most pairs coincide (a stuck chain, two-valued draws): NaN, and a p-value made of NaN comparisons."""
import numpy as np, jax, jax.numpy as jnp
import implicitppl as ip
from implicitppl.kernels._distances import median_lengthscale
x = np.random.default_rng(0).normal(size=(400, 1))
for nm, X in [("350 of 400 draws equal", np.r_[np.zeros((350, 1)), x[:50]]), ("draws of +-1", np.sign(x)), ("a third repeated", np.r_[np.zeros((130, 1)), x[:270]])]:
    X = jnp.asarray(X); r = ip.diagnostics.kernel_stein_discrepancy(-X, X, key=jax.random.key(0))
    print(f"{nm}: ksd {float(r.ksd):.4g} u {float(r.u_statistic):.4g} p {float(r.p_value):.4g} lengthscale {float(r.lengthscale):.4g}; kernels.median_lengthscale gives {float(median_lengthscale(X)):.4g}")
