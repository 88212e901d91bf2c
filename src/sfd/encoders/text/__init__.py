"""Frozen text encoders: captions to token embeddings. One file per kind."""
