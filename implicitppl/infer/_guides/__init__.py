"""Implicit guides, their loss, and `fit`."""
