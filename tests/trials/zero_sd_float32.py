"""float32, 20 exact points of a straight line: gp.fit then condition: sd exactly 0 at an extrapolated point where the mean is wrong by 0.75."""
import numpy as np, warnings
import implicitppl as ip
warnings.simplefilter("error")
x = np.linspace(0, 5, 20); xs = np.array([2.5, 6.0, 7.0, 8.0])
for nm, y, t in [("2x", 2 * x, 2 * xs), ("sin x", np.sin(x), np.sin(xs))]:
    f = ip.gp.fit(ip.gp.GaussianProcess(ip.kernels.RBF(1.0), 0.0), x, y, 0.1, num_steps=300)
    l, v, s, c = (float(a) for a in (f.process.kernel.lengthscale, f.process.kernel.variance, f.noise_scale, f.process.mean_at(np.zeros(1))[0]))
    post = f.process.condition(x, y, f.noise_scale); q = post(xs)
    K = lambda a, b: v * np.exp(-.5 * (a[:, None] - b) ** 2 / l**2)
    C = K(x, x) + s**2 * np.eye(20); k = K(x, xs); m = c + k.T @ np.linalg.solve(C, y - c); sd = np.sqrt(v - np.einsum("ij,ij->j", k, np.linalg.solve(C, k)))
    print(f"y = {nm}: l {l:.3f} v {v:.2f} noise {s:.5f} jitter {float(post.jitter):.2g} num_skipped {int(f.num_skipped)} evidence {float(f.log_evidence):.2f}\n  mean {np.asarray(q.mean)} sd {np.sqrt(np.asarray(q.variance))}\n  same parameters in float64: mean {m} sd {sd}\n  truth {t}")
