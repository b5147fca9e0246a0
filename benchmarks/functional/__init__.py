"""Inference over functions."""
