"""The same hares and lynxes through a program: each evaluation is a run of `awk`.

    python examples/black_box_subprocess.py       (files in output/black_box_subprocess)

Any program that reads numbers and prints numbers can be a `black_box`. This one takes 1000 steps of
the classical Runge-Kutta method. Four chains run four programs at once (`num_workers`); a program
that fails, hangs or prints NaN rejects its proposal. The model is that of `black_box.py`.
"""

import argparse
import functools
import os
import subprocess
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
from black_box import PELTS, SITES, model
from numpyro.infer import MCMC, init_to_median

import implicitppl as ip

PROGRAM = """
function f(x, y) { return a - b * exp(y) }
function g(x, y) { return d * exp(x) - c }
{
  a = exp($1); b = exp($2); c = exp($3); d = exp($4); x = $5; y = $6; h = 0.02
  for (year = 1; year <= 20; year++) {
    for (i = 0; i < 50; i++) {
      p1 = f(x, y);                       q1 = g(x, y)
      p2 = f(x + h/2*p1, y + h/2*q1);     q2 = g(x + h/2*p1, y + h/2*q1)
      p3 = f(x + h/2*p2, y + h/2*q2);     q3 = g(x + h/2*p2, y + h/2*q2)
      p4 = f(x + h*p3, y + h*q3);         q4 = g(x + h*p3, y + h*q3)
      x += h/6 * (p1 + 2*p2 + 2*p3 + p4); y += h/6 * (q1 + 2*q2 + 2*q3 + q4)
    }
    print x, y
  }
}
"""


def solve(inputs: np.ndarray) -> np.ndarray:
    """Return log populations (20, 2) from logs of theta and z_init."""
    done = subprocess.run(
        ["awk", "-v", "OFMT=%.9g", PROGRAM],
        input=" ".join(f"{x:.9g}" for x in inputs),
        capture_output=True,
        check=True,
        env=os.environ | {"LC_ALL": "C"},
        text=True,
        timeout=2.0,
    )
    return np.array(done.stdout.split(), float).reshape(20, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/black_box_subprocess"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="100 iterations instead of 300")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    num = 100 if args.quick else 300
    began = time.perf_counter()
    kernel = ip.infer.ScoreHMC(
        functools.partial(model, solve, num_workers=4), init_strategy=init_to_median()
    )
    mcmc = MCMC(
        kernel,
        num_warmup=num,
        num_samples=num,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(args.seed), PELTS, extra_fields=("num_evaluations", "num_failures"))
    idata = ip.diagnostics.to_arviz(mcmc, log_likelihood=False, posterior_predictive=False)
    idata.to_netcdf(args.out / "posterior.nc")
    for site in SITES:
        draws = np.asarray(idata["posterior"][site])
        print(f"{site:8}", *(f"{x.mean():.4g} ({x.std():.2g})" for x in np.moveaxis(draws, -1, 0)))
    last = {k: np.asarray(v)[:, -1].sum(axis=0) for k, v in mcmc.get_extra_fields(True).items()}
    print(
        f"{last['num_evaluations']} runs of awk in {time.perf_counter() - began:.0f} s; failed by "
        f"exit status, NaN, time-out: {last['num_failures'].tolist()}; files are in {args.out}/"
    )


if __name__ == "__main__":
    main()
