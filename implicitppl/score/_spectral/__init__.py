"""Estimators that are a kernel and a spectral filter."""
