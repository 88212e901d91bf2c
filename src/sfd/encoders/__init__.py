"""Frozen networks: vision encoder, texture VAE, judge."""
