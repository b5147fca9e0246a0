"""Gradient-free HMC: trajectories on a surrogate, accept steps on the true density."""
