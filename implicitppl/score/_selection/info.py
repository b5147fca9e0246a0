"""What `select` chose and why: the evidence as arrays, and in words."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicitppl.score._fitted import FitInfo, base_info
from implicitppl.score._sample import Sample
from implicitppl.score._selection.grid import KERNELS, REFERENCES
from implicitppl.score._selection.prepared import ATOMS

# With fewer samples there is nothing to hold out, and the Gaussian is returned.
MIN_SAMPLES = 20


class SelectionInfo(FitInfo):
    """What `select` chose, and the evidence; R members, N configurations of F filters.

    Attributes:
        estimator: "select".
        solver: of the final fit: "full" (all samples span it), "landmarks" or "none".
        num_samples: M.
        dtype: of the samples, and of the scores.
        effective_size: 1 / sum w^2, M without weights.
        finite: False where a sample or the result is not finite.
        num_judged: held-out points on which the candidates were compared.
        metrics: names that the integers of `metric` stand for.
        candidates: names of the E candidates that the user brought.
        weights: (R,) share of each member in the score; the rest belongs to the Gaussians and to
            what the user brought.
        candidate_weights: (E,) shares of what the user brought.
        candidate_gain: (E,) their held-out loss minus that of the Gaussian; negative is better.
        candidate_error: (E,) standard error that is charged, as `error`.
        gaussian_weights: (A,) shares of the Gaussians of `ATOMS`, full to isotropic.
        kernel: (R,) 0 for `RBF`, 1 for `InverseMultiquadric`.
        metric: (R,) index into `metrics`.
        lengthscale: (R,) in data units for the isotropic metric, else in standard deviations.
        level: (R,) regularisation as a share of the largest eigenvalue.
        power: (R,) 1 for Tikhonov, 2 for the ridge of SSGE.
        reference: (R,) 0 for none, 1 for the Gaussian.
        gain: (R,) held-out loss minus that of the Gaussian; negative is better.
        error: (R,) standard error that is charged: of the difference to the Gaussian, or to the
            best of it and two defaults, as `not_gaussian` says.
        stacked_gain: the same for the stack; optimistic, since its weights were chosen by it.
        gaussian_loss: held-out loss of the Gaussian, in standardised units.
        all_gains: (N, F) of every candidate, for `plot_selection`.
        all_errors: (N, F).
        grid: (N, 3) kernel, metric and width factor of every configuration.
        filters: (F, 3) reference, power and level of every filter.
        not_gaussian: 0 where skewness and kurtosis are those of Gaussian samples, 1 where they
            clearly are not; errors change with it from those of a difference to the Gaussian to
            those of a difference to the best of it and two defaults. 0 with weights, covariates
            or `autocorrelated`, where the moments are not tested.
        num_errors: how many standard errors were added to a gain before it was believed.
    """

    num_judged: int = eqx.field(static=True)
    metrics: tuple[str, ...] = eqx.field(static=True)
    candidates: tuple[str, ...] = eqx.field(static=True)
    weights: Float[Array, " R"]
    candidate_weights: Float[Array, " E"]
    candidate_gain: Float[Array, " E"]
    candidate_error: Float[Array, " E"]
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
    not_gaussian: Float[Array, ""]

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
        if float(self.not_gaussian) > 0:
            clearly = "clearly" if float(self.not_gaussian) == 1 else "probably"
            lines.append(
                f"By their skewness and kurtosis the samples are {clearly} not Gaussian, so the "
                "standard errors are of differences to the best of the Gaussian and two default "
                "estimates."
            )
        gaussian = float(jnp.sum(self.gaussian_weights))
        members = [self._member(r) for r, w in enumerate(self.weights) if float(w) > 0]
        members += [self._brought(e) for e, w in enumerate(self.candidate_weights) if float(w) > 0]
        if not members:
            lines.append(
                "No other estimate earned a share, each being charged "
                f"{float(self.num_errors):g} standard errors: the score is that of a Gaussian "
                f"({self._gaussians()})."
            )
            return "\n".join(lines)
        lines.append(f"The chosen combination is {-float(self.stacked_gain):.3g} lower; its parts:")
        lines += [f"- {100 * gaussian:.0f}% Gaussian ({self._gaussians()})"] if gaussian > 0 else []
        lines += [f"- {member}" for member in members]
        return "\n".join(lines)

    def _brought(self, e: int) -> str:
        return (
            f"{100 * float(self.candidate_weights[e]):.0f}% {self.candidates[e]}: "
            f"{-float(self.candidate_gain[e]):.3g} (s.e. {float(self.candidate_error[e]):.2g}) "
            "lower than the Gaussian"
        )

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


def selection_info(sample: Sample, *fitted: Array, **details: Any) -> SelectionInfo:
    """Return a `SelectionInfo`; without details that of a Gaussian that had no competitors."""
    none, zero = jnp.zeros((0,), sample.dtype), jnp.zeros((), sample.dtype)
    per_member = ("weights", "lengthscale", "level", "power", "gain", "error")
    per_candidate = ("candidate_weights", "candidate_gain", "candidate_error")
    defaults = (
        {"solver": "none", "num_judged": 0, "metrics": (), "candidates": ()}
        | dict.fromkeys(per_member + per_candidate, none)
        | dict.fromkeys(("kernel", "metric", "reference"), none.astype(int))
        | dict.fromkeys(("grid", "filters"), jnp.zeros((0, 3), sample.dtype))
        | dict.fromkeys(("all_gains", "all_errors"), jnp.zeros((0, 0), sample.dtype))
        | dict.fromkeys(("stacked_gain", "not_gaussian"), zero)
        | dict.fromkeys(("gaussian_loss", "num_errors"), zero * jnp.nan)
        | {"gaussian_weights": jnp.asarray([1.0, 0.0, 0.0, 0.0], sample.dtype)}
    )
    return SelectionInfo(**(base_info("select", sample, *fitted) | defaults | details))
