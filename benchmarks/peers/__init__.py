"""Peers, each run from a virtual environment of its own; never a dependency of the project."""
