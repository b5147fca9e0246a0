"""Thompson sampling from posteriors over reward functions."""
