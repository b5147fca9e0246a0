"""Unix times as inputs without x64: silently rounded to 128 s (or wrapped, for int64 ms/ns); datetime64 gives an internal JAX error."""
import numpy as np, warnings
import implicitppl as ip
warnings.simplefilter("error")                       # any warning would end this
t = 1.7e9 + 60 * np.arange(60.0); y = np.sin(2 * np.pi * np.arange(60) / 30)
u = t - t[0]; K = np.exp(-.5 * ((u[:, None] - u) / 300) ** 2)
m = K @ np.linalg.solve(K + .01 * np.eye(60), y)
for name, tt, unit in [("float64 seconds", t, 1.0), ("int64 seconds", t.astype(np.int64), 1.0), ("int64 nanoseconds", (t * 1e9).astype(np.int64), 1e9), ("float64 seconds less the first", t - t[0], 1.0)]:
    post = ip.gp.GaussianProcess(ip.kernels.RBF(300.0 * unit)).condition(tt, y, 0.1)
    x = np.asarray(post.evidence.x[:, 0], float)
    print(f"{name}: distinct inputs {len(np.unique(x))} of 60, x[0]={x[0]:.0f}, mean at the data off by {np.abs(np.asarray(post(tt).mean) - m).max():.3f}")
try: ip.gp.GaussianProcess(ip.kernels.RBF(300.0)).condition(t.astype("int64").astype("datetime64[s]"), y, 0.1)
except Exception as e: print("datetime64:", type(e).__name__, str(e)[:140])
