"""Frozen networks: vision encoder, texture VAE, semantic encoder, judge."""
