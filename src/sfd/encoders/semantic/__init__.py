"""Semantic latents from encoder features: SemVAE, and principal components, the baseline."""
