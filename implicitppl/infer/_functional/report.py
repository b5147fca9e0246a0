"""What a functional ELBO says, and how its divergence grows with the points of comparison.

The divergence of a network from a process that is not degenerate is infinite. At finitely many
points and with noise it is a number; whether that number has settled is seen by asking at more
points. With fixed noise it goes on growing, with regularisation it converges.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from implicitppl.divergences._divergence import Pair
from implicitppl.divergences._growth import Growth, overstatement

NOISE_SHARE = 0.5
PRIOR_EXCESS = 0.5


class FunctionalReport(NamedTuple):
    """What the objective is at given parameters.

    Attributes:
        objective: in words, whether the loss is a bound.
        divergence: in words, with its settings.
        weight: of the divergence, as a number.
        num_particles: S.
        is_exact: whether the guide's moments are exact, and not those of the particles.
        expected_log_density: of everything in the model and guide that is no function, in nats.
        divergence_value: of all functions together, in nats, before the weight.
        growth: for each function, how the divergence grows with the points.
        warnings: what makes the numbers doubtful.
    """

    objective: str
    divergence: str
    weight: float
    num_particles: int
    is_exact: bool
    expected_log_density: float
    divergence_value: float
    growth: tuple[Growth, ...]
    warnings: tuple[str, ...]

    @property
    def loss(self) -> float:
        """Minus expected log density, plus weight times divergence."""
        return self.weight * self.divergence_value - self.expected_log_density

    def __str__(self) -> str:
        moments = "exact" if self.is_exact else "theirs"
        lines = [
            f"{self.objective}: {self.loss:.3f} nats",
            f"  expected log density {self.expected_log_density:.3f}",
            f"  divergence {self.divergence_value:.3f}, weight {self.weight:g}: {self.divergence}",
            f"  {self.num_particles} particles, the guide's moments are {moments}",
        ]
        for found in self.growth:
            lines.append(f"  divergence of '{found.name}' at more points (fixed noise | g n):")
            rows = zip(found.num_points, found.noisy, found.regularized, strict=True)
            lines += [f"    {n:6d} points {a:12.3f} | {b:10.3f}" for n, a, b in rows]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


def caveats(name: str, pair: Pair, noise_variance: Array) -> list[str]:
    """Return what is to be said of the particles of one function."""
    found = []
    num_particles, num_points = pair.values.shape
    smallest = jnp.sqrt(jnp.min(jnp.diagonal(pair.guide.covariance)))
    noise = jnp.sqrt(noise_variance)
    if bool(noise > NOISE_SHARE * smallest):
        found.append(
            f"'{name}': the noise of the divergence ({float(noise):.3g}) is not small beside the "
            f"least posterior standard deviation ({float(smallest):.3g}): variances below the "
            "square of the noise are lost. Take less noise."
        )
    if not pair.is_exact and num_particles <= num_points:
        found.append(
            f"'{name}': {num_particles} particles at {num_points} values; their covariance has "
            f"rank {num_particles - 1}, and the guide is pulled to be narrow. Take more particles."
        )
    elif not pair.is_exact and num_particles < 2 * num_points:
        excess = float(overstatement(num_particles, num_points))
        found.append(
            f"'{name}': {num_particles} particles at {num_points} values overstate the divergence "
            f"by up to {excess:.3g} nats, where the noise does not limit it. Take more particles."
        )
    if pair.draws is not None:
        found += drawn_prior(name, pair, noise_variance)
    if not bool(smallest > 0):
        found.append(
            f"'{name}': the particles do not vary at some point: the guide has collapsed there."
        )
    return found


def drawn_prior(name: str, pair: Pair, noise_variance: Array) -> list[str]:
    """Return what is to be said of a prior whose moments are those of draws, if it matters.

    The inverse of a covariance of S draws is too large by (S - 1) / (S - d - 2) on average, in the
    d directions in which the prior varies more than the noise.
    """
    if pair.draws is None:
        return []
    num_draws = pair.draws.shape[0]
    spectrum = jnp.maximum(jnp.linalg.eigvalsh(pair.prior.covariance), 0.0)
    freedom = round(float(jnp.sum(spectrum / (spectrum + noise_variance))))
    share = (freedom + 1) / (num_draws - freedom - 2)
    excess = 0.5 * freedom * share - float(overstatement(num_draws, freedom))
    if excess < PRIOR_EXCESS:
        return []
    return [
        f"'{name}': the prior's moments are those of {num_draws} draws at {len(spectrum)} values; "
        f"that overstates the divergence by about {excess:.2g} nats, and by {100 * share:.0f}% of "
        "what the guide's mean contributes."
    ]
