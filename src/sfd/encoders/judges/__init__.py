"""Judges: the frozen networks whose features score samples."""
