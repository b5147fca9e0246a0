"""Series and textures to extrapolate."""
