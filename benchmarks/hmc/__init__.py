"""Samplers that do without gradients."""
