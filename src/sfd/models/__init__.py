"""Network architectures. Imports torch and nothing else."""
