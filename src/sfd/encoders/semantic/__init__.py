"""Semantic latents from encoder features: SemVAE, and principal components as the baseline."""
