"""What every `fit` returns, whatever it fitted."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int


class FitResult(eqx.Module):
    """What a fit did; the result of each `fit` adds what it found.

    Attributes:
        losses: of each step, (num_steps,), in nats; lower is better.
        objective: in words, what the losses mean.
        converged: whether they stopped falling before the budget ended. It does not say that the
            result is right.
        num_steps: how many steps were run.
        num_skipped: steps whose loss or gradient was not finite.
    """

    losses: Float[Array, " steps"]
    objective: str = eqx.field(static=True)
    converged: Bool[Array, ""] | bool
    num_steps: int = eqx.field(static=True)
    num_skipped: Int[Array, ""] | int
