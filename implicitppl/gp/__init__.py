"""Gaussian processes at work: learning their parameters, and what makes them large."""

from implicitppl.gp._fit import Fit, fit

__all__ = ["Fit", "fit"]
