"""Guides on posteriors: how far their draws are from reference draws."""
