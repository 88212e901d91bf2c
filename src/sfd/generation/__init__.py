"""From classes and seeds to images."""
