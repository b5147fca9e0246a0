"""A weighted sum of kernel expansions, bounded where it leaves the samples: what `select` returns.

    s(x) = s_G(x) + r(x) min(1, R / |r(x)|),   r = sum_i w_i s_i - s_G,   R = 1.5 max_m |r(x_m)|,

norms in standard deviations, s_G the Gaussian part with its shares scaled to one. Away from the
samples a kernel estimate that was tuned on them may be anything: on household data with a long tail
a held-out outlier had a score of 178 where the samples have at most 14. The bound leaves every
sample as it is, and far away s_G rules.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicitppl.score._expansion import Expansion
from implicitppl.score._grid import KERNELS, REFERENCES
from implicitppl.score._held_out import ATOMS
from implicitppl.score._reference import GaussianReference

# With fewer samples there is nothing to hold out, and the Gaussian is returned.
MIN_SAMPLES = 20


class Stack(eqx.Module):
    """The bounded residual r; the leaves of `members` have a leading axis R.

    Attributes:
        members: kernel expansions.
        weights: their shares.
        rest: Gaussian part of r: all Gaussian shares minus s_G.
        unit: standard deviations, in which |r| is measured.
        bound: R.
    """

    members: Expansion
    weights: Float[Array, " R"]
    rest: GaussianReference
    unit: Float[Array, " D"]
    bound: Float[Array, ""]

    def residual(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return r for every row."""
        return self._add_members(self.rest.score(x), lambda member: member.score(x))

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the bounded residual for every row."""
        r = self.residual(x)
        inside, norm = self._inside(r)
        return jnp.where(inside, 1, self.bound / norm)[:, None] * r

    def divergence(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the divergence of the bounded residual for every row.

        Outside the bound the field is R r / n, n = |r|_unit, with divergence
        R (div r - r.grad n / n) / n, and r.grad n is the derivative of n along r: one jvp.
        """
        divergence = self._add_members(self.rest.divergence(x), lambda member: member.divergence(x))
        r = self.residual(x)
        inside, norm = self._inside(r)
        _, along = jax.jvp(self.residual, (x,), (r,))
        slope = jnp.sum(r * along * jnp.square(self.unit)[None, :], axis=1) / norm
        return jnp.where(inside, divergence, self.bound * (divergence - slope / norm) / norm)

    def _add_members(self, start: Array, evaluate: Callable[[Expansion], Array]) -> Array:
        """Return start + sum_i w_i evaluate(member_i); a member without a share costs nothing."""

        def add(total: Array, part: tuple[Array, Expansion]) -> tuple[Array, None]:
            share, member = part
            return jax.lax.cond(
                share > 0, lambda: total + share * evaluate(member), lambda: total
            ), None

        return jax.lax.scan(add, start, (self.weights, self.members))[0]

    def _inside(self, r: Float[Array, "N D"]) -> tuple[Bool[Array, " N"], Float[Array, " N"]]:
        """Return where |r| <= R, and |r|, 1 where it is 0 so that it can be divided by."""
        squared = jnp.sum(jnp.square(r * self.unit[None, :]), axis=1)
        norm = jnp.sqrt(jnp.where(squared > 0, squared, 1))
        return (squared == 0) | (norm <= self.bound), norm


class SelectionInfo(eqx.Module):
    """What `select` chose, and the evidence; R members, N configurations of F filters.

    Attributes:
        estimator: "select".
        solver: of the final fit: "full" (all samples span it), "landmarks" or "none".
        num_samples: M.
        num_judged: held-out points on which the candidates were compared.
        metrics: names that the integers of `metric` stand for.
        weights: (R,) share of each member in the score; the rest belongs to the Gaussians.
        gaussian_weights: (A,) shares of the Gaussians of `ATOMS`, full to isotropic.
        kernel: (R,) 0 for `RBF`, 1 for `InverseMultiquadric`.
        metric: (R,) index into `metrics`.
        lengthscale: (R,) in data units for the isotropic metric, else in standard deviations.
        level: (R,) regularisation as a share of the largest eigenvalue.
        power: (R,) 1 for Tikhonov, 2 for the ridge of SSGE.
        reference: (R,) 0 for none, 1 for the Gaussian.
        gain: (R,) held-out loss minus that of the Gaussian; negative is better.
        error: (R,) standard error of that difference.
        stacked_gain: the same for the stack; optimistic, since its weights were chosen by it.
        gaussian_loss: held-out loss of the Gaussian, in standardised units.
        all_gains: (N, F) of every candidate, for `plot_selection`.
        all_errors: (N, F).
        grid: (N, 3) kernel, metric and width factor of every configuration.
        filters: (F, 3) reference, power and level of every filter.
        num_errors: how many standard errors were added to a gain before it was believed.
        explained: not defined for a stack; NaN.
        effective_size: 1 / sum w^2, M without weights.
        finite: False where a sample or the result is not finite.
    """

    estimator: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    num_judged: int = eqx.field(static=True)
    metrics: tuple[str, ...] = eqx.field(static=True)
    weights: Float[Array, " R"]
    gaussian_weights: Float[Array, " A"]
    kernel: Int[Array, " R"]
    metric: Int[Array, " R"]
    lengthscale: Float[Array, " R"]
    level: Float[Array, " R"]
    power: Float[Array, " R"]
    reference: Int[Array, " R"]
    gain: Float[Array, " R"]
    error: Float[Array, " R"]
    stacked_gain: Float[Array, ""]
    gaussian_loss: Float[Array, ""]
    all_gains: Float[Array, "N F"]
    all_errors: Float[Array, "N F"]
    grid: Float[Array, "N 3"]
    filters: Float[Array, "F 3"]
    num_errors: Float[Array, ""]
    explained: Float[Array, ""]
    effective_size: Float[Array, ""]
    finite: Bool[Array, ""]

    def explain(self) -> str:
        """Return the choice in words; not inside `jit`, and for one problem at a time."""
        if self.num_judged == 0:
            return (
                f"Score from {self.num_samples} samples: too few to hold any out, so the Gaussian "
                "is returned."
            )
        if float(self.effective_size) < MIN_SAMPLES:
            return (
                f"Score from {self.num_samples} samples whose weights leave an effective size of "
                f"{float(self.effective_size):.1f}: too few to judge, so the Gaussian is returned."
            )
        lines = [
            f"Score from {self.num_samples} samples, judged on {self.num_judged} held-out points "
            "by the score-matching loss (standardised units; a difference of losses is half the "
            "difference of mean squared errors).",
            f"The Gaussian plug-in has loss {float(self.gaussian_loss):.3g}.",
        ]
        gaussian = float(jnp.sum(self.gaussian_weights))
        members = [r for r in range(self.weights.shape[0]) if float(self.weights[r]) > 0]
        if not members:
            lines.append(
                "No kernel estimate earned a share, each being charged "
                f"{float(self.num_errors):g} standard errors: the score is that of a Gaussian "
                f"({self._gaussians()})."
            )
            return "\n".join(lines)
        lines.append(f"The chosen combination is {-float(self.stacked_gain):.3g} lower; its parts:")
        lines += [f"- {100 * gaussian:.0f}% Gaussian ({self._gaussians()})"] if gaussian > 0 else []
        lines += [f"- {self._member(r)}" for r in members]
        return "\n".join(lines)

    def _gaussians(self) -> str:
        """Return the covariances of the Gaussian part, with their shares of the whole."""
        parts = [
            f"{100 * float(share):.0f}% {name}"
            for name, share in zip(ATOMS, self.gaussian_weights, strict=True)
            if float(share) > 0
        ]
        return ", ".join(parts) + " covariance"

    def _member(self, r: int) -> str:
        name = "Tikhonov" if float(self.power[r]) == 1 else "SSGE ridge"
        reference = REFERENCES[int(self.reference[r])]
        return (
            f"{100 * float(self.weights[r]):.0f}% {KERNELS[int(self.kernel[r])]}, "
            f"{self.metrics[int(self.metric[r])]} metric, lengthscale "
            f"{float(self.lengthscale[r]):.3g}, {name} {float(self.level[r]):.1g} of the largest "
            f"eigenvalue, reference {reference}: {-float(self.gain[r]):.3g} "
            f"(s.e. {float(self.error[r]):.2g}) lower than the Gaussian"
        )
