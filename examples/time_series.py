"""What comes next? A neural kernel network learns how a series goes on, and says it in a formula.

    python examples/time_series.py                (picture in output/time_series)

Monthly means of CO2 at Mauna Loa, 1958 to 2001. Five months are missing: `observed=` says which.
The first 70% are fitted, the last 30% foretold, by a network of linear, periodic, RBF and rational
quadratic kernels and by an RBF kernel. The network's periods start at those that the fitted part
shows. Of a few starts the one with the highest evidence, which does not see the rest, is kept.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Normal
from statsmodels.datasets import co2

from implicitppl.gp import GaussianProcess, ProcessFitResult, fit
from implicitppl.kernels import RBF, Kernel, nkn_time_series

Start = Callable[[jax.Array], Kernel]


def monthly() -> tuple[np.ndarray, np.ndarray]:
    """Return years and the CO2 of each month in ppm, NaN where it is missing."""
    table = co2.load_pandas().data["co2"].resample("MS").mean()
    years = table.index.year + (table.index.month - 0.5) / 12
    return years.to_numpy(float), table.to_numpy(float)


def learn(
    make: Start,
    data: tuple[np.ndarray, np.ndarray],
    starts: int,
    num_steps: int,
) -> ProcessFitResult:
    """Return the fit of the start with the highest evidence."""
    x, y = data
    keys = jax.random.split(jax.random.key(0), starts)
    fits = [
        fit(GaussianProcess(make(key)), x, y, observed=np.isfinite(y), num_steps=num_steps)
        for key in keys
    ]
    return max(fits, key=lambda found: float(found.log_evidence))


def draw(
    years: np.ndarray, ppm: np.ndarray, num: int, bands: dict[str, np.ndarray], out: Path
) -> None:
    """Write a panel for each kernel: the mean and the 95% interval of the last 30%."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, len(bands), sharey=True)
    for axis, (name, (mean, deviation)) in zip(axes, bands.items(), strict=True):
        low, high = mean - 1.96 * deviation, mean + 1.96 * deviation
        axis.fill_between(years[num:], low, high, color="#d1560f", alpha=0.25, lw=0)
        axis.plot(years[num:], mean, color="#d1560f", lw=1.2, label="foretold, 95%")
        axis.plot(years[:num], ppm[:num], color="0.6", lw=0.8, label="fitted")
        axis.plot(years[num:], ppm[num:], color="black", lw=0.8, label="what came")
        axis.set(title=name, xlabel="year")
    axes[0].set_ylabel("CO2, ppm")
    axes[0].legend(frameon=False, loc="upper left")
    figure.savefig(out / "co2.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/time_series"))
    parser.add_argument("--quick", action="store_true", help="one start, 60 steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    starts, num_steps = (1, 60) if args.quick else (3, 300)

    years, ppm = monthly()
    num = round(0.7 * len(years))
    known = np.isfinite(ppm[:num])
    centre, scale = np.mean(ppm[:num][known]), np.std(ppm[:num][known])
    x, y = (years - years[:num].mean()) / years[:num].std(), (ppm - centre) / scale
    times, seen = jnp.asarray(x[:num][known])[:, None], y[:num][known]
    kernels: dict[str, Start] = {
        "RBF": lambda key: RBF(jnp.exp(jax.random.normal(key) - 1)),
        "neural kernel network": lambda key: nkn_time_series(times, seen, key=key),
    }

    bands = {}
    ahead = np.isfinite(ppm[num:])
    for name, make in kernels.items():
        found = learn(make, (x[:num], y[:num]), starts, num_steps)
        posterior = found.process.condition(
            x[:num], y[:num], found.noise_scale, observed=np.isfinite(y[:num])
        )
        values = posterior(x[num:], found.noise_scale)
        mean = centre + scale * np.asarray(values.mean)
        deviation = scale * np.sqrt(np.asarray(values.variance))
        bands[name] = np.stack([mean, deviation])
        density = Normal(mean, deviation).log_prob(ppm[num:])[ahead].mean()
        inside = np.abs(ppm[num:] - mean)[ahead] < 1.96 * deviation[ahead]
        print(f"{name}: log evidence {float(found.log_evidence):.1f}; of the last 30%: mean log")
        print(
            f"  density {density:.2f} a month, {inside.mean():.0%} of months inside 95% intervals"
        )
    print("the network's largest terms, by their share of the prior variance:")
    print(found.process.kernel.formula(times, min_share=0.02))
    draw(years, ppm, num, bands, args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
