"""The method: schedule, loss, guidance and sampling. Imports torch and torchdiffeq, and no other part of sfd."""
