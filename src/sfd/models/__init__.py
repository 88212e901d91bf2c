"""Network architectures. Imports torch, and of sfd only the errors and the tables of names."""
