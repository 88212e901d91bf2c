"""One loop for every trained network."""
