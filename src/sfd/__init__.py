"""Semantic-First Diffusion (arXiv 2512.04926) as one reproducible, tracked and tunable pipeline."""

__version__ = "0.1.0"
