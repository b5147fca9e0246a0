"""Gradient-free HMC: trajectories on a surrogate, accept steps on the true density."""

from implicitppl.infer.score_hmc._bank import Bank
from implicitppl.infer.score_hmc._kernel import ScoreHMC
from implicitppl.infer.score_hmc._state import ScoreHMCState

__all__ = ["Bank", "ScoreHMC", "ScoreHMCState"]
