"""Fills a hole in a texture with one kernel for each axis, and appends a row for each kernel.

    python -m benchmarks.series.texture --data FOLDER  (FOLDER holds texture/plate.png)
    python -m benchmarks.series.texture --quick        (the roof alone, 20 steps)
    python -m benchmarks.series.tables                 (writes the table of docs/series.md)

The roof is a patch of scikit-learn's picture of a temple, 20 x 100 pixels; the plate 224 x 224 with
the hole of Sun et al. (2018), rows 60 to 119 and columns 80 to 159. Grey values are standardised on
what is seen, and figures are in its standard deviations. Kernels start from the two profiles along
the axes that explain most of what is seen (its first singular vectors).
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.paths import RESULTS
from benchmarks.common.rows import append, provenance, read
from benchmarks.series.problems import NORMAL_95
from implicitppl.gp import GridGaussianProcess, ProcessFitResult, fit
from implicitppl.kernels import RBF, Kernel, SpectralMixture, nkn_texture

KEY = ("texture", "method", "seed")
GREY = np.array([0.299, 0.587, 0.114])
ROOF = (slice(260, 280), slice(184, 284))
SEEDS, STEPS, DRAWS, COMPONENTS = 1, 100, 50, 10
LEARNING_RATE, NOISE = 0.05, 0.3
TOLERANCE = 1e-3
"""Of conjugate gradients while learning: the evidence is off by its square."""


class Texture(NamedTuple):
    """A standardised picture, what of it is seen, and positions in units of its longer side."""

    y: np.ndarray
    seen: np.ndarray
    axes: tuple[np.ndarray, np.ndarray]
    profiles: tuple[np.ndarray, np.ndarray]


def texture(grey: np.ndarray, hole: tuple[slice, slice]) -> Texture:
    """Return the picture with that hole."""
    seen = np.ones(grey.shape, bool)
    seen[hole] = False
    y = (grey - grey[seen].mean()) / grey[seen].std()
    left, _, right = np.linalg.svd(np.where(seen, y, 0))
    rows, columns = (np.arange(n) / max(grey.shape) for n in grey.shape)
    return Texture(y, seen, (rows, columns), (left[:, 0], right[0]))


def roof() -> Texture:
    from sklearn.datasets import load_sample_image

    return texture(load_sample_image("china.jpg")[ROOF] @ GREY, (slice(5, 15), slice(40, 64)))


def plate(data: Path) -> Texture:
    from matplotlib.image import imread

    picture = imread(data / "texture" / "plate.png")[..., :3]
    return texture(picture @ GREY, (slice(60, 120), slice(80, 160)))


def mixture(x: np.ndarray, profile: np.ndarray) -> Kernel:
    """Return a spectral mixture of variance 1 at the frequencies of a profile."""
    found = SpectralMixture.from_data(x, profile, COMPONENTS)
    weights = jnp.asarray(found.weights)
    return SpectralMixture(weights / jnp.sum(weights), found.means, found.scales)


def kernels(t: Texture) -> dict[str, Callable[[jax.Array], list[Kernel]]]:
    """Return for each method the kernels of the axes to start from, given a key."""
    pairs = list(zip(t.axes, t.profiles, strict=True))

    def networks(key: jax.Array, use_profiles: bool) -> list[Kernel]:
        keys = jax.random.split(key, len(pairs))
        return [
            nkn_texture(jnp.asarray(x)[:, None], profile if use_profiles else None, key=k)
            for k, (x, profile) in zip(keys, pairs, strict=True)
        ]

    return {
        "RBF": lambda key: [RBF(0.05) for _ in pairs],
        f"spectral mixture, {COMPONENTS}": lambda key: [mixture(*pair) for pair in pairs],
        "NKN as published": lambda key: networks(key, False),
        "NKN, period of the profile": lambda key: networks(key, True),
    }


def fill(
    t: Texture, found: ProcessFitResult, num_draws: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean and standard deviation of every pixel, noise included, and the residual."""
    process = GridGaussianProcess(found.process.kernels)  # conjugate gradients to the end
    posterior = process.condition(t.axes, t.y, found.noise_scale, observed=t.seen)
    draws = np.asarray(posterior.on_grid().sample(jax.random.key(0), num_draws))
    mean = np.asarray(posterior.on_grid().mean)
    variance = np.mean((draws - mean) ** 2, axis=0) + float(found.noise_scale) ** 2
    return mean, np.sqrt(variance), float(posterior.relative_residual)


def run(t: Texture, start: list[Kernel], num_steps: int, num_draws: int) -> dict[str, Any]:
    """Return the row of one method and seed; CPU seconds include compilation."""
    begin = time.process_time()
    found = fit(
        GridGaussianProcess(start, tolerance=TOLERANCE),
        t.axes,
        t.y,
        NOISE,
        observed=t.seen,
        num_steps=num_steps,
        learning_rate=LEARNING_RATE,
    )
    mean, deviation, residual = fill(t, found, num_draws)
    hole = ~t.seen
    z = ((t.y - mean) / deviation)[hole]
    log_density = -0.5 * z**2 - np.log(deviation[hole]) - 0.5 * np.log(2 * np.pi)
    return {
        "rmse": float(np.sqrt(np.mean((t.y - mean)[hole] ** 2))),
        "log_density": float(np.mean(log_density)),
        "coverage": float(np.mean(np.abs(z) < NORMAL_95)),
        "log_evidence": float(found.log_evidence),
        "noise_scale": float(found.noise_scale),
        "spread_in_hole": float(t.y[hole].std()),
        "relative_residual": residual,
        "num_failed": int(found.num_skipped),
        "num_steps": num_steps,
        "cpu_seconds": time.process_time() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds texture/")
    parser.add_argument("--out", type=Path, help="result file (JSON lines)")
    parser.add_argument("--only", action="append", default=[], help="only these textures")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="20 steps, 5 draws, the roof")
    args = parser.parse_args()
    num_draws = DRAWS
    if args.quick:
        args.seeds, args.steps, args.data, num_draws = 1, 20, None, 5
    out = args.out or RESULTS / ("texture-quick.jsonl" if args.quick else "texture.jsonl")
    done = {tuple(row[k] for k in KEY) for row in read(out)}
    with jax.enable_x64(True):
        textures = {"roof": roof()} | ({} if args.data is None else {"plate": plate(args.data)})
        for name, t in textures.items():
            for method, start in kernels(t).items():
                for seed in range(args.seeds):
                    if (name, method, seed) in done or (args.only and name not in args.only):
                        continue
                    row = run(t, start(jax.random.key(seed)), args.steps, num_draws)
                    head = dict(zip(KEY, (name, method, seed), strict=True))
                    append(out, head | row | provenance())
                    told = {k: round(row[k], 3) for k in ("rmse", "log_density", "cpu_seconds")}
                    print(name, method, seed, told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
