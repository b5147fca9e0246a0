"""float32 (default): gram by matrix products: close points of a long series, or of far clusters, get wrong covariances; nothing says so."""
import numpy as np, jax.numpy as jnp
import implicitppl as ip
from implicitppl.kernels import *
def exact(x, y, s, xs, l, nu):
    def K(a, b):
        r = np.abs(a[:, None] - b) / l
        return np.exp(-r) if nu == 12 else (1 + 3**.5 * r) * np.exp(-3**.5 * r) if nu == 32 else np.exp(-.5 * r * r)
    C = K(x, x) + s**2 * np.eye(len(x)); k = K(x, xs); w = np.linalg.solve(C, y)
    return k.T @ w, np.sqrt(1 - np.einsum("ij,ij->j", k, np.linalg.solve(C, k))), -.5*y@w-.5*np.linalg.slogdet(C)[1]-.5*len(x)*np.log(2*np.pi)
rng = np.random.default_rng(0)
n = 10000
x = np.arange(n, dtype=np.float32)[:, None]; sub = x[:3]
for k, f in [(RBF(2.0), lambda r: np.exp(-.5 * r**2)), (Matern12(2.0), lambda r: np.exp(-r))]:
    g = np.asarray(k.gram(jnp.asarray(sub), jnp.asarray(x)))[:, :3]
    print(f"{type(k).__name__}(2) of days 0,1,2 in a series of {n} days: gram row 0 {g[0].round(3)}, exact {f(np.arange(3)/2.).round(3)}, k(x,y) itself {float(k(jnp.array([0.]), jnp.array([1.]))):.3f}")
# two campaigns of 60 measurements each, `gap` days apart; correlation length 3 days; all inputs exact in float32
for gap in (100.0, 1000.0, 2000.0, 4000.0, 6000.0, 10957.0):
    x = np.r_[np.sort(rng.uniform(0, 40, 60)), gap + np.sort(rng.uniform(0, 40, 60))].astype(np.float32).astype(float)
    xs = np.r_[np.linspace(1, 39, 8), gap + np.linspace(1, 39, 8)].astype(np.float32).astype(float)
    s = 0.3; y = np.sin(x / 4) + s * rng.normal(size=120)
    for nm, k, nu in [("RBF", RBF(3.0), 0), ("Matern32", Matern32(3.0), 32), ("Matern12", Matern12(3.0), 12)]:
        m, sd, ev = exact(x, y, s, xs, 3.0, nu)
        gp = ip.gp.GaussianProcess(k)
        try: post = gp.condition(x, y, s)
        except ValueError as e: print(f"gap {gap:g} {nm}: ValueError {str(e)[:120]}"); continue
        q = post(xs); off = np.abs(np.asarray(q.mean) - m)
        print(f"gap {gap:g} {nm}: mean off by up to {off.max():.3f} = {(off/sd).max():.2f} exact sd; sd ratio {(np.sqrt(np.asarray(q.variance))/sd).min():.2f} to {(np.sqrt(np.asarray(q.variance))/sd).max():.2f}; log evidence {float(gp.log_evidence(x, y, s)):.1f} exact {ev:.1f}; jitter {float(post.jitter):.2g}")
