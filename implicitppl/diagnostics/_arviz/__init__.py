"""The way into ArviZ, on both of its lines."""
