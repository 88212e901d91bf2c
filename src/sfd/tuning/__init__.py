"""Studies: an Optuna search over keys of ``params.yaml``, by any number of workers."""
