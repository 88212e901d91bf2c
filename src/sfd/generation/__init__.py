"""From conditions and seeds to images."""
