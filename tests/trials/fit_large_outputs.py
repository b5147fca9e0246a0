"""float32: outputs of size 1e9 and more: gp.fit returns its start after 200 steps, num_skipped = 0 (Adam's squared gradient overflows)."""
import numpy as np, warnings
import implicitppl as ip
warnings.simplefilter("error")
x = np.linspace(0, 5, 20)
for c in (1.0, 1e6, 1e9, 1e10, 1e12):
    f = ip.gp.fit(ip.gp.GaussianProcess(ip.kernels.RBF(1.0, c**2), 0.0), x, c * np.sin(x), 0.1, num_steps=200)
    print(f"y ~ {c:g}, kernel variance started at {c**2:g}, noise started at 0.1: noise {float(f.noise_scale):.4g} lengthscale {float(f.process.kernel.lengthscale):.4g} history {-float(f.losses[0]):.4g} -> {float(f.log_evidence):.4g} num_skipped {int(f.num_skipped)}")
for c in (1.0, 1e6, 1e9, 1e10, 1e12):
    f = ip.gp.fit(ip.gp.GaussianProcess(ip.kernels.RBF(1.0), 0.0), x, c * np.sin(x), 0.1, num_steps=200)
    print(f"y ~ {c:g}, default kernel: noise {float(f.noise_scale):.4g} lengthscale {float(f.process.kernel.lengthscale):.4g} variance {float(f.process.kernel.variance):.4g} history {-float(f.losses[0]):.4g} -> {float(f.log_evidence):.4g} num_skipped {int(f.num_skipped)}")
