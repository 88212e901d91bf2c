"""Measures the speed of the pipeline's heavy parts on synthetic data: no images, no downloads, no tracking."""
