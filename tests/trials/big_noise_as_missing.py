"""Per-point noise with one huge value (a bad reading switched off): the jitter is relative to the mean variance INCLUDING noise, so it swamps all other points."""
import sys, numpy as np, numpyro
if "64" in sys.argv: numpyro.enable_x64()
import implicitppl as ip
x = np.r_[np.linspace(0, 4, 20), np.linspace(0, 4, 20)]; y = np.sin(x); xs = np.linspace(0, 4, 33)
for big in (1.0, 1e2, 1e4, 1e6):
    s = np.zeros(40); s[7] = big; y2 = y.copy(); y2[7] = 50.0
    post = ip.gp.GaussianProcess(ip.kernels.RBF(1.0)).condition(x, y2, s); q = post(xs)
    seen = np.arange(40) != 7
    drop = ip.gp.GaussianProcess(ip.kernels.RBF(1.0)).condition(x, y2, np.zeros(40), observed=seen)
    print(f"noise of reading 7 = {big:g} {q.mean.dtype}: jitter {float(post.jitter):.3g}, mean off sin(x) by {np.abs(np.asarray(q.mean) - np.sin(xs)).max():.4f}, largest sd {float(np.sqrt(q.variance.max())):.4f};  observed=False for it instead: jitter {float(drop.jitter):.3g}, off by {np.abs(np.asarray(drop(xs).mean) - np.sin(xs)).max():.4f}")
