"""The semantic VAE: encoder features to compact semantic latents."""
