"""A hole in a roof, filled in by what the rest of the roof shows.

    python examples/texture.py                    (picture in output/texture)

The roof is a patch of 20 x 100 pixels of a picture that comes with scikit-learn, with a hole of 10
x 24 pixels, five rows of tiles wide. A Gaussian process on the grid of pixels has one kernel for
each axis, so that nothing is larger than an axis; the missing pixels are left out by `observed=`.
An RBF kernel goes back to the mean within a tile. A neural kernel network continues the tiles, and
so does a spectral mixture: both start from the frequencies that the patch shows along each axis.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Normal
from sklearn.datasets import load_sample_image

from implicitppl.gp import GridGaussianProcess, fit
from implicitppl.kernels import RBF, Kernel, SpectralMixture, nkn_texture

PATCH = (slice(260, 280), slice(184, 284))
HOLE = (slice(5, 15), slice(40, 64))
Axis = tuple[np.ndarray, np.ndarray]  # positions, and a profile along them


def patch() -> tuple[np.ndarray, np.ndarray]:
    """Return the patch in grey, 0 to 1, and which of its pixels are seen."""
    grey = load_sample_image("china.jpg")[PATCH] @ np.array([0.299, 0.587, 0.114]) / 255
    seen = np.ones(grey.shape, bool)
    seen[HOLE] = False
    return grey, seen


def profiled(y: np.ndarray, seen: np.ndarray) -> list[Axis]:
    """Return positions along each axis, and the profile there that explains most of the patch."""
    left, _, right = np.linalg.svd(np.where(seen, y, 0))
    rows, columns = (np.arange(n) / max(y.shape) for n in y.shape)
    return [(rows, left[:, 0]), (columns, right[0])]


def network(axis: Axis) -> Kernel:
    x, profile = axis
    return nkn_texture(jnp.asarray(x)[:, None], profile, key=jax.random.key(len(x)))


def mixture(axis: Axis) -> Kernel:
    found = SpectralMixture.from_data(*axis, num_components=4)
    weights = jnp.asarray(found.weights)
    return SpectralMixture(weights / jnp.sum(weights), found.means, found.scales)


KERNELS: dict[str, Callable[[Axis], Kernel]] = {
    "RBF": lambda axis: RBF(0.05),
    "spectral mixture": mixture,
    "neural kernel network": network,
}


def draw(pictures: dict[str, np.ndarray], out: Path) -> None:
    """Write the pictures below each other, in the grey of the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.9 * len(pictures)), layout="constrained")
    first = next(iter(pictures.values()))
    for axis, (name, picture) in zip(figure.subplots(len(pictures)), pictures.items(), strict=True):
        axis.imshow(picture, cmap="gray", vmin=first.min(), vmax=first.max())
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
    figure.savefig(out / "roof.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/texture"))
    parser.add_argument("--quick", action="store_true", help="40 steps instead of 200")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)

    grey, seen = patch()
    centre, scale = grey[seen].mean(), grey[seen].std()
    y = (grey - centre) / scale
    axes = profiled(y, seen)
    positions = [x for x, _ in axes]
    pictures = {"the roof": grey, "what is seen of it": np.where(seen, grey, np.nan)}
    print(f"the hole, in standard deviations of what is seen; its own is {y[~seen].std():.2f}")
    for name, kernel in KERNELS.items():
        start = GridGaussianProcess([kernel(axis) for axis in axes])
        found = fit(start, positions, y, 0.3, observed=seen, num_steps=40 if args.quick else 200)
        posterior = found.process.condition(positions, y, found.noise_scale, observed=seen)
        mean = np.asarray(posterior.on_grid().mean)
        draws = np.asarray(posterior.on_grid().sample(jax.random.key(0), 50))
        deviation = np.sqrt(draws.var(axis=0) + float(found.noise_scale) ** 2)
        density = np.asarray(Normal(mean, deviation).log_prob(y))[~seen].mean()
        error = np.sqrt(np.mean((y - mean)[~seen] ** 2))
        print(f"  {name:22s} RMSE {error:.2f}, mean log density {density:.2f}")
        filled = np.where(seen, grey, centre + scale * mean)
        pictures[f"{name}: RMSE {error:.2f}, log density {density:.2f}"] = filled
    draw(pictures, args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
