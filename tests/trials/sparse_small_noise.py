"""float32: SparseGaussianProcess with small noise: NaN posterior without an error, or a standard deviation several times too small."""
import numpy as np, warnings
import implicitppl as ip
warnings.simplefilter("error")
rng = np.random.default_rng(0)
x = np.sort(rng.uniform(0, 10, 300)); y = np.sin(x); xs = np.array([2., 5., 9.5])
f = lambda a, b: np.exp(-.5 * (a[:, None] - b) ** 2)
for s in (1e-2, 1e-3, 1e-4):
    for nm, z in [("20 inducing", np.linspace(0, 10, 20)), ("40: each of 20 twice", np.repeat(np.linspace(0, 10, 20), 2)), ("60 inducing", np.linspace(0, 10, 60))]:
        F = np.linalg.cholesky(f(z, z) + 1e-12 * np.eye(len(z))); A = np.linalg.solve(F, f(z, x)) / s; R = np.linalg.cholesky(np.eye(len(z)) + A @ A.T)
        a = np.linalg.solve(F, f(z, xs)); b = np.linalg.solve(R, a); c = np.linalg.solve(R, A @ y / s)
        sd = np.sqrt(1 - (a**2).sum(0) + (b**2).sum(0)); ev = -300*np.log(s)-150*np.log(2*np.pi)-np.log(np.diag(R)).sum()-.5*(y@y/s**2-c@c)-.5*(300/s**2-(A**2).sum())
        sp = ip.gp.SparseGaussianProcess(ip.gp.GaussianProcess(ip.kernels.RBF(1.)), z); post = sp.condition(x, y, s); q = post(xs)
        print(f"noise {s:g}, {nm}: mean {np.asarray(q.mean).round(3)} sd/exact {(np.sqrt(np.asarray(q.variance)) / sd).round(2)}, bound {float(sp.log_evidence(x, y, s)):.1f} exact bound {ev:.1f}, jitter {float(post.jitter):.2g}")
