"""The method: schedule, loss, guidance and sampling. Imports torch (and torchdiffeq) and nothing else of ours."""
