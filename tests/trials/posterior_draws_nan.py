"""float64: draws and densities of a posterior with little noise are NaN, silently; docs/gp.md promises least jitter or an error."""
import numpy as np, jax, jax.numpy as jnp, numpyro
numpyro.enable_x64()
import numpyro.distributions as dist
import implicitppl as ip
GP, RBF = ip.gp.GaussianProcess, ip.kernels.RBF
x = np.linspace(0, 5, 12); y = np.sin(x)
def truth(s, xs, l):
    K = lambda a, b: np.exp(-.5 * (a[:, None] - b) ** 2 / l**2)
    C = K(x, x) + s**2 * np.eye(12); k = K(x, xs)
    S = K(xs, xs) - k.T @ np.linalg.solve(C, k)
    return k.T @ np.linalg.solve(C, y), S
for s in (0.0, 1e-6, 1e-4, 1e-3):
    for n in (12, 30, 60, 200):
        xs = np.linspace(0, 5, n)
        post = GP(RBF(1.0)).condition(x, y, s)
        q = post(xs)
        d = np.asarray(q.sample(jax.random.key(0), (4,)))
        e = np.asarray(post.draw(jax.random.key(0), 4)(xs))
        m, S = truth(s, xs, 1.0)
        w = np.linalg.eigvalsh(S)
        try: np.linalg.cholesky(S + 1e-12 * np.eye(n)); ok = True   # jitter 1e-12 of the PRIOR variance
        except np.linalg.LinAlgError: ok = False
        print(f"noise {s:g} points {n:3d}: sample() NaN {np.isnan(d).mean():.0%}, draw() NaN {np.isnan(e).mean():.0%}, log_prob(mean) {float(q.log_prob(q.mean)):.4g}, q.jitter {float(q.jitter):.2g}, post.jitter {float(post.jitter):.2g}, largest sd {np.sqrt(np.diag(S).max()):.2g}; NumPy with jitter 1e-12 works: {ok}")
def model():
    f = ip.processes.function("f", GP(RBF(1.0)))
    numpyro.sample("y", dist.Normal(f(x), 0.1).to_event(1), obs=jnp.asarray(y))
    numpyro.deterministic("ahead", f(np.linspace(0.1, 4.9, 30)))
tr = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
print("function('f') asked at 12 and then 30 points in one model: second site NaN", bool(np.isnan(tr["f_1"]["value"]).any()), " log prob", float(tr["f_1"]["fn"].log_prob(tr["f_1"]["value"])))
