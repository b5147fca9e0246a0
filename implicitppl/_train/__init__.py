"""Loops that learn parameters, and the programs and files that they keep."""
