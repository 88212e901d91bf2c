"""Data sets of generated images: made by a registered model, and weighed against real ones."""
