"""Data sets of images that a registered model draws, and their comparison with real images."""
