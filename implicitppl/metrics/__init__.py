"""Numbers on samples and predictions, without models: functions of arrays only."""

from implicitppl._core.faces import show_at
from implicitppl.metrics._distances import energy_distance, sliced_wasserstein
from implicitppl.metrics._marginals import marginal_differences

__all__ = [
    "energy_distance",
    "marginal_differences",
    "sliced_wasserstein",
]

show_at(globals())
