"""Data sets of generated images: drawn by a registered model, and compared with real ones."""
