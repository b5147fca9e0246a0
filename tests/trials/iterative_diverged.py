"""IterativeGaussianProcess.condition returns a posterior of conjugate gradients that diverged; no error, no warning; sd clipped to 0."""
import sys, numpy as np, jax, numpyro, warnings
if "64" in sys.argv: numpyro.enable_x64()
import implicitppl as ip
warnings.simplefilter("error")
rng = np.random.default_rng(0)
n = 800
x = np.sort(rng.uniform(0, 60, n)); y = np.sin(x) + .01 * rng.normal(size=n); xs = np.array([3.3, 30.5, 47.7])
K = {"32": lambda a, b, l: (1 + 3**.5 * np.abs(a[:, None] - b) / l) * np.exp(-3**.5 * np.abs(a[:, None] - b) / l), "rbf": lambda a, b, l: np.exp(-.5 * ((a[:, None] - b) / l) ** 2)}
for nm, k, l, s in [("32", ip.kernels.Matern32(1.0), 1.0, 1e-2), ("32", ip.kernels.Matern32(1.0), 1.0, 1e-3), ("rbf", ip.kernels.RBF(1.0), 1.0, 1e-2)]:
    C = K[nm](x, x, l) + s**2 * np.eye(n); kx = K[nm](x, xs, l)
    m = kx.T @ np.linalg.solve(C, y); sd = np.sqrt(1 - np.einsum("ij,ij->j", kx, np.linalg.solve(C, kx)))
    post = ip.gp.IterativeGaussianProcess(ip.gp.GaussianProcess(k), key=jax.random.key(0)).condition(x, y, s); q = post(xs)
    ex = ip.gp.GaussianProcess(k).condition(x, y, s)(xs)
    print(f"{nm} noise {s:g} {q.mean.dtype}: mean {np.asarray(q.mean).round(3)} exact {m.round(3)} (product's own GaussianProcess {np.asarray(ex.mean).round(3)}); sd {np.sqrt(np.asarray(q.variance)).round(4)} exact {sd.round(4)}; post.relative_residual {float(post.relative_residual):.3g}, iterations {int(post.num_iterations)}")
