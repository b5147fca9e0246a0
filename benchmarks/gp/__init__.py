"""Kernels, evidence and speed of Gaussian processes."""
