"""The stage contract, and the stages' bodies."""
