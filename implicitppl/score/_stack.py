"""A weighted sum of kernel expansions: the score that `select` returns."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicitppl.score._expansion import Expansion
from implicitppl.score._grid import KERNELS, REFERENCES


class Stack(eqx.Module):
    """sum_r w_r k_r(z_r, Y_r) C_r; the leaves of `members` have a leading axis R."""

    members: Expansion
    weights: Float[Array, " R"]

    def score(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Return the kernel part of the score for every row."""

        def add(total: Array, part: tuple[Array, Expansion]) -> tuple[Array, None]:
            return total + part[0] * part[1].score(x), None

        return jax.lax.scan(add, jnp.zeros_like(x), (self.weights, self.members))[0]

    def divergence(self, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return the divergence of the kernel part for every row."""

        def add(total: Array, part: tuple[Array, Expansion]) -> tuple[Array, None]:
            return total + part[0] * part[1].divergence(x), None

        start = jnp.zeros((x.shape[0],), x.dtype)
        return jax.lax.scan(add, start, (self.weights, self.members))[0]


class SelectionInfo(eqx.Module):
    """What `select` chose, and the evidence; R members, N configurations of F filters.

    Attributes:
        estimator: "select".
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
                "No kernel estimate beats it by more than "
                f"{float(self.num_errors):g} standard errors, so the Gaussian is returned."
            )
            return "\n".join(lines)
        lines.append(f"The chosen combination is {-float(self.stacked_gain):.3g} lower; its parts:")
        lines += [f"- {100 * gaussian:.0f}% Gaussian"] if gaussian > 0 else []
        lines += [f"- {self._member(r)}" for r in members]
        return "\n".join(lines)

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
