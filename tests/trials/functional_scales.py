"""FunctionalELBO: noise is 0.01 of the prior's sd AVERAGED over all points and outputs; outputs or inputs of unlike scale lose their divergence."""
import sys, numpy as np, jax, jax.numpy as jnp, numpyro, warnings
numpyro.enable_x64()
import numpyro.distributions as dist
import implicitppl as ip
from implicitppl.divergences import GaussianKL
from implicitppl.infer import FunctionalELBO
GP, RBF, Linear = ip.gp.GaussianProcess, ip.kernels.RBF, ip.kernels.Linear
def kl(m1, S1, m2, S2, r):
    n = len(m1); A = S1 + r * np.eye(n); B = S2 + r * np.eye(n); d = m1 - m2
    return .5 * (np.trace(np.linalg.solve(B, A)) - n + d @ np.linalg.solve(B, d) + np.linalg.slogdet(B)[1] - np.linalg.slogdet(A)[1])
rng = np.random.default_rng(0); x = np.linspace(-2, 2, 15); key = jax.random.key(0)
def show(nm, prior, guide_process, y, s, x=x, truth=None):
    def model(x, y):
        f = numpyro.sample("f", prior(x)); numpyro.sample("y", dist.Normal(f, s).to_event(y.ndim), obs=y)
    def guide(x, y): numpyro.sample("f", guide_process(x))
    rep = FunctionalELBO(None, GaussianKL(0.01), num_particles=200).report(key, {}, model, guide, x, y, with_growth=False)
    print(f"{nm}: divergence {rep.divergence_value:.2f} nats (exact {truth:.2f}); loss {rep.loss:.2f}; warnings {[w[:150] for w in rep.warnings]}", flush=True)
    return rep
# 1. one output, posterior as guide: the bound should be -log evidence
p = GP(RBF(1.0)); y = np.sin(2 * x) + .1 * rng.normal(size=15); q = p.condition(x, y, .1)
K = np.asarray(p.covariance(x)); m, S = np.asarray(q.mean_at(x)), np.asarray(q.covariance(x))
r = show("one output", p, q, y, .1, truth=kl(m, S, 0 * m, K, 1e-4)); print("   minus log evidence", -float(p.log_evidence(x, y, .1)))
# 2. rows repeated
x2 = np.r_[x, x]; y2 = np.r_[y, y + .05]; q2 = p.condition(x2, y2, .1); K2 = np.asarray(p.covariance(x2)); m2, S2 = np.asarray(q2.mean_at(x2)), np.asarray(q2.covariance(x2))
show("repeated rows", p, q2, y2, .1, x=x2, truth=kl(m2, S2, 0 * m2, K2, 1e-4)); print("   minus log evidence", -float(p.log_evidence(x2, y2, .1)))
# 3. two outputs, the second in other units (1000 times); each output has the same information
for c in (1.0, 100.0, 1000.0):
    big = GP(RBF(1.0, c**2)); both = ip.processes.stack([p, big]); qb = ip.processes.stack([q, big.condition(x, c * y, .1 * c)])
    one = kl(m, S, 0 * m, K, 1e-4)
    show(f"two outputs, the second times {c:g}", both, qb, np.c_[y, c * y], np.array([.1, .1 * c]), truth=2 * one)
# a guide that is plainly wrong in output 1: twice too certain and shifted by one prior sd
wrong = GP(RBF(1.0, 0.01), 1.0); mw, Sw = np.ones(15), .01 * K
for c in (1.0, 1000.0):
    both = ip.processes.stack([p, GP(RBF(1.0, c**2))]); show(f"guide = prior in output 2 (sd {c:g}), wrong in output 1", both, ip.processes.stack([wrong, GP(RBF(1.0, c**2))]), np.zeros((15, 2)), np.array([1.0, c]), truth=kl(mw, Sw, 0 * mw, K, 1e-4))
# 4. prior whose variance grows: one row far out
pl = GP(Linear(1.0) + RBF(1.0))
for far in (2.5, 100.0, 1000.0):
    x3 = np.r_[x, far]; y3 = np.r_[y, far]; q3 = pl.condition(x3, y3, .1); K3 = np.asarray(pl.covariance(x3)); m3, S3 = np.asarray(q3.mean_at(x3)), np.asarray(q3.covariance(x3))
    show(f"Linear + RBF, one of 16 inputs at {far:g}", pl, q3, y3, .1, x=x3, truth=kl(m3, S3, 0 * m3, K3, 1e-4)); print("   minus log evidence", -float(pl.log_evidence(x3, y3, .1)))
