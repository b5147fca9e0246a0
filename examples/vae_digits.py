"""A variational autoencoder of handwritten digits whose amortised guide has no density.

1797 scans of digits, 8 x 8 (Alpaydin and Kaynak 1998, in scikit-learn), each pixel on or off:

    z_n ~ N(0, I_2),   x_n ~ Bernoulli(decoder(z_n)),   guide: z_n = sampler(noise, encoder(x_n)).

The usual guide makes q(z | x) a diagonal Gaussian. The implicit one is any network of noise and
features; `ImplicitELBO` estimates its score from the particles, with one minibatch for all of them.
With two latent coordinates the truth is known: log p(x), the log of the integral of p(x | z) p(z),
and every posterior, by the sum over a grid. On held-out digits each decoder is judged by that
log p(x), and each guide by the distance of its draws to the posterior under its own decoder.

Both guides use the same loss: for a Gaussian guide `ImplicitELBO` is `Trace_ELBO` with one
minibatch for all particles. `Trace_ELBO` itself takes a minibatch for every particle, here 16 times
the digits in each step, and a comparison of it with another loss compares that.

    python examples/vae_digits.py --out output/vae_digits
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Predictive
from sklearn.datasets import load_digits

import implicitppl as ip

mpl.use("Agg")
import matplotlib.pyplot as plt

LATENT, NOISE, FEATURES, WIDTH = 2, 4, 32, 64
NUM_TRAIN, BATCH, NUM_DRAWS = 1500, 64, 400
GRID = jnp.linspace(-5.0, 5.0, 301)
STEP = GRID[1] - GRID[0]


class Sampler(eqx.Module):
    """A draw of z from noise and the features of one digit."""

    net: eqx.nn.MLP

    def __call__(self, key: jax.Array, features: jax.Array) -> jax.Array:
        return self.net(jnp.concatenate([jax.random.normal(key, (NOISE,)), features]))


class Networks(NamedTuple):
    """Starting values; decoder and encoder are the same for both guides."""

    decoder: eqx.nn.MLP
    encoder: eqx.nn.MLP
    sampler: Sampler
    gaussian: eqx.nn.MLP


def networks(key: jax.Array) -> Networks:
    def mlp(size_in: int, size_out: int, depth: int, i: int) -> eqx.nn.MLP:
        return eqx.nn.MLP(
            size_in, size_out, WIDTH, depth, jax.nn.silu, key=jax.random.fold_in(key, i)
        )

    sampler = Sampler(mlp(NOISE + FEATURES, LATENT, 1, 2))
    return Networks(
        mlp(LATENT, 64, 2, 0), mlp(64, FEATURES, 2, 1), sampler, mlp(FEATURES, 2 * LATENT, 1, 3)
    )


def model(x: jax.Array, nets: Networks, batch: int | None = None) -> None:
    decoder = eqx_module("decoder", nets.decoder)
    with numpyro.plate("digits", len(x), subsample_size=batch) as rows:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        pixels = dist.Bernoulli(logits=jax.vmap(decoder)(z)).to_event(1)
        numpyro.sample("x", pixels, obs=x[rows])


def implicit_guide(x: jax.Array, nets: Networks, batch: int | None = None) -> None:
    encoder = eqx_module("encoder", nets.encoder)
    sampler = eqx_module("sampler", nets.sampler)
    with numpyro.plate("digits", len(x), subsample_size=batch) as rows:
        features = jax.vmap(encoder)(x[rows])
        q = ip.distributions.Implicit(
            sampler, (LATENT,), context=(features,), batch_shape=rows.shape
        )
        numpyro.sample("z", q)


def gaussian_guide(x: jax.Array, nets: Networks, batch: int | None = None) -> None:
    encoder = eqx_module("encoder", nets.encoder)
    head = eqx_module("head", nets.gaussian)
    with numpyro.plate("digits", len(x), subsample_size=batch) as rows:
        loc, log_scale = jnp.split(jax.vmap(head)(jax.vmap(encoder)(x[rows])), 2, axis=-1)
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


GUIDES = {"implicit": implicit_guide, "gaussian": gaussian_guide}


@eqx.filter_jit
def exact(decoder: eqx.nn.MLP, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log p(x) of each digit, (N,), and the posterior probability of each cell, (N, G, G)."""

    def row(first: jax.Array) -> jax.Array:
        z = jnp.stack([jnp.full_like(GRID, first), GRID], axis=-1)
        logits = jax.vmap(decoder)(z)
        log_prior = dist.Normal().log_prob(z).sum(axis=-1)
        return (log_prior - jax.nn.softplus(logits).sum(axis=-1))[:, None] + logits @ x.T

    joint = jnp.moveaxis(jax.lax.map(row, GRID), -1, 0)
    log_sum = jax.nn.logsumexp(joint, axis=(1, 2))
    return log_sum + 2 * jnp.log(STEP), jnp.exp(joint - log_sum[:, None, None])


@eqx.filter_jit
def distances(key: jax.Array, posterior: jax.Array, draws: jax.Array) -> jax.Array:
    """Energy distance of each digit's draws (NUM_DRAWS, N, 2) to its posterior, (N,)."""

    def one(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        key, p, z = row
        cell = jax.random.choice(key, p.size, (NUM_DRAWS,), p=p.ravel())
        corner = jnp.stack([GRID[cell // len(GRID)], GRID[cell % len(GRID)]], axis=-1)
        truth = corner + STEP * (jax.random.uniform(key, corner.shape) - 0.5)
        return ip.metrics.energy_distance(truth, z)

    keys = jax.random.split(key, len(posterior))
    return jax.lax.map(one, (keys, posterior, jnp.moveaxis(draws, 1, 0)))


class Judged(NamedTuple):
    """A trained decoder and guide, and the truth about them on held-out digits."""

    decoder: eqx.nn.MLP
    log_evidence: jax.Array
    posterior: jax.Array
    draws: jax.Array
    distance: jax.Array
    seconds: float


def run(name: str, key: jax.Array, nets: Networks, train: Any, test: Any, steps: int) -> Judged:
    """Trains one guide with its decoder; loss, optimiser, schedule and steps are the same."""
    began = time.perf_counter()
    train_key, draw_key, truth_key = jax.random.split(key, 3)
    guide, loss = GUIDES[name], ip.infer.ImplicitELBO(num_particles=16)
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    svi = SVI(model, guide, optimiser, loss, nets=nets, batch=BATCH)
    params = svi.run(train_key, steps, train).params
    seconds = time.perf_counter() - began
    decoder = eqx.combine(params["decoder$params"], nets.decoder)
    log_evidence, posterior = exact(decoder, test)
    predictive = Predictive(guide, params=params, num_samples=NUM_DRAWS, parallel=True)
    draws = predictive(draw_key, test, nets)["z"]
    distance = distances(truth_key, posterior, draws)
    return Judged(decoder, log_evidence, posterior, draws, distance, seconds)


def table(judged: dict[str, Judged]) -> str:
    lines = [
        "held-out digits: exact log p(x) under the decoder (higher is better); energy distance of",
        "the guide's draws to the exact posterior, in the posterior's sd (lower is better)",
        f"{'guide':10}{'log p(x)':>10}{'s.e.':>7}{'distance: median':>18}{'90%':>8}{'seconds':>9}",
    ]
    for name, j in judged.items():
        error = j.log_evidence.std() / len(j.log_evidence) ** 0.5
        cells = f"{j.log_evidence.mean():10.2f}{error:7.2f}{jnp.median(j.distance):18.4f}"
        lines.append(f"{name:10}{cells}{jnp.quantile(j.distance, 0.9):8.4f}{j.seconds:9.1f}")
    gap = judged["implicit"].log_evidence - judged["gaussian"].log_evidence
    error = gap.std() / len(gap) ** 0.5
    lines.append(f"log p(x), implicit - gaussian, paired: {gap.mean():+.2f} (s.e. {error:.2f})")
    return "\n".join(lines)


def plot_digits(judged: dict[str, Judged], x: jax.Array) -> plt.Figure:
    """Held-out digits, their mean reconstructions and images of prior draws."""
    show = 12
    prior = jax.random.normal(jax.random.key(0), (1, show, LATENT))
    rows = {"held-out digits": x[:show]}
    for name, j in judged.items():
        for title, z in (("reconstructions", j.draws[:100, :show]), ("prior draws", prior)):
            images = jax.nn.sigmoid(jax.vmap(jax.vmap(j.decoder))(z))
            rows[f"{name}: {title}"] = images.mean(axis=0)
    figure, axes = plt.subplots(len(rows), show, figsize=(show, 1.2 * len(rows)))
    for (title, images), line in zip(rows.items(), axes, strict=True):
        line[0].set_title(title, loc="left", fontsize=9)
        for image, ax in zip(images, line, strict=True):
            ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.axis("off")
    return figure


def plot_latent(judged: dict[str, Judged], labels: np.ndarray) -> plt.Figure:
    """All digits in latent space; posteriors at four quantiles of each guide's own distance."""
    figure, axes = plt.subplots(2, 5, figsize=(18, 8), layout="constrained")
    grid = np.asarray(GRID)
    for (name, j), line in zip(judged.items(), axes, strict=True):
        draws, distance = np.asarray(j.draws), np.asarray(j.distance)
        line[0].scatter(*draws[0].T, c=labels, cmap="tab10", s=8)
        line[0].set_title(f"{name}: a draw for each digit, by class", fontsize=9)
        for quantile, ax in zip((0.25, 0.5, 0.75, 0.95), line[1:], strict=True):
            n = np.argsort(distance)[int(quantile * len(distance))]
            posterior = np.asarray(j.posterior[n])
            cloud = np.concatenate(
                [grid[np.argwhere(posterior > 1e-3 * posterior.max())], draws[:, n]]
            )
            (left, bottom), (right, top) = cloud.min(axis=0) - 0.1, cloud.max(axis=0) + 0.1
            i, k = (grid > left) & (grid < right), (grid > bottom) & (grid < top)
            ax.contourf(grid[i], grid[k], np.sqrt(posterior[i][:, k]).T, levels=12, cmap="Blues")
            ax.scatter(*draws[:, n].T, s=3, color="tab:red", alpha=0.5)
            ax.set_title(
                f"a {labels[n]}; distance {distance[n]:.2f}, its {quantile:.0%} quantile\n"
                "exact posterior (blue), guide's draws (red)",
                fontsize=9,
            )
    return figure


def main() -> None:
    """Train both guides and judge them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/vae_digits"), help="folder")
    parser.add_argument("--seed", type=int, default=0, help="of the networks and random keys")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs")
    args = parser.parse_args()
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x = jnp.asarray(digits.data[order] >= 8, dtype=jnp.float32)
    test = x[NUM_TRAIN : NUM_TRAIN + 100] if args.quick else x[NUM_TRAIN:]
    net_key, run_key = jax.random.split(jax.random.key(args.seed))
    judged = {}
    for name in GUIDES:
        print(f"{name} guide", flush=True)
        steps = 200 if args.quick else 5000
        judged[name] = run(name, run_key, networks(net_key), x[:NUM_TRAIN], test, steps)
    text = table(judged)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.txt").write_text(text + "\n")
    labels = digits.target[order][NUM_TRAIN:][: len(test)]
    for file, figure in {
        "digits.png": plot_digits(judged, test),
        "latent.png": plot_latent(judged, labels),
    }.items():
        figure.savefig(args.out / file, dpi=120, bbox_inches="tight")
    print(f"\n{text}\n\nfiles are in {args.out}/")


if __name__ == "__main__":
    main()
